"""What train and evaluate share: from a config to data, setup and evaluator on one workdir."""

import pathlib

import jax

from jpmhc_jax import data
from jpmhc_jax.core import schema
from jpmhc_jax.evaluation.evaluator import Evaluator
from jpmhc_jax.evaluation.mixers import make_diagnose
from jpmhc_jax.training import loop
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.state import prepare


def open_run(config: schema.Config, workdir: pathlib.Path) -> loop.Run:
  """Builds data, model layout and evaluator. Nothing is compiled or written but the workdir's evaluation folder."""
  if config.precision.matmul != "default":
    jax.config.update("jax_default_matmul_precision", config.precision.matmul)
  dataset = data.build(config.data, batch_size=config.batch_size, seed=config.seed)
  setup = prepare(config, dataset, make_mesh(config.mesh))
  diagnose = make_diagnose(setup) if config.logging.diagnostics_every else None
  return loop.Run(setup, dataset, workdir, Evaluator(setup, dataset, workdir), diagnose)
