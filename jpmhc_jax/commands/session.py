"""What the commands share: from a config to data, setup and evaluator on one workdir, and its checkpoints."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import pathlib
import sys
from typing import Any

import jax

from jpmhc_jax import data
from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core import launch
from jpmhc_jax.core.files import shortages
from jpmhc_jax.evaluation.evaluator import Evaluator
from jpmhc_jax.evaluation.mixers import make_diagnose
from jpmhc_jax.training import loop
from jpmhc_jax.training.checkpoint import Checkpoints, Restored
from jpmhc_jax.training.hosts import distributed
from jpmhc_jax.training.mesh import fitted, make_mesh
from jpmhc_jax.training.state import prepare
from jpmhc_jax.training.workdir import agreed


def open_run(config: schema.Config, workdir: pathlib.Path, *, trains: bool = True) -> loop.Run:
  """Builds data, model layout and evaluator. Nothing is compiled or written but the workdir's evaluation folder.

  trains=False: for a run that is only looked at, on any number of devices.
  """
  _ask_xla(config)
  if config.precision.matmul != "default":
    jax.config.update("jax_default_matmul_precision", config.precision.matmul)
  dataset = data.build(config.data, batch_size=config.batch_size, seed=config.seed)
  setup = prepare(config, dataset, make_mesh(config.mesh), trains=trains)
  diagnose = make_diagnose(setup) if config.logging.diagnostics_every else None
  return loop.Run(setup, dataset, workdir, Evaluator(setup, dataset, workdir), diagnose)


def on_these_devices(recorded: schema.Config, overrides: Sequence[str], groups: Sequence[str]) -> schema.Config:
  """A run's config for looking at it here: its mesh fitted to the devices that there are, then the overrides.

  Raises ConfigError for an override of a field that is in none of the groups.
  """
  _ask_xla(recorded)
  here = dataclasses.replace(recorded, mesh=fitted(recorded.mesh, jax.devices()))
  return configs.override(here, overrides, groups)


def _ask_xla(config: schema.Config) -> None:
  """The flags of a config; before anything asks for a device, because XLA reads them once."""
  if config.precision.deterministic:
    launch.add_xla_flag(launch.DETERMINISTIC_FLAG)


def restore(run: loop.Run, step: int | None) -> Restored:
  """The checkpoint of a step (None: the latest) of the run's workdir; says on stderr what was found damaged."""
  checkpoints = Checkpoints(run.workdir / "checkpoints", owner=False)
  try:
    restored = checkpoints.restore(run.setup, run.dataset, step)
  finally:
    checkpoints.close()
  for note in restored.notes:
    print(note, file=sys.stderr)
  return restored


@contextlib.contextmanager
def processes_of(config: schema.Config, **arguments: Any) -> Iterator[None]:
  """Joins the other processes of the run, if the environment names any, and leaves them in good order.

  arguments: those of the command that all processes must have been given alike, beside the config. Raises ConfigError
  where they were not. An error that comes out ends this process at once and the others with it, which would wait for it
  otherwise.
  """
  _ask_xla(config)
  distributed.join(config.processes)
  try:
    with shortages():
      distributed.agree(agreed(config) | {f"--{name}": value for name, value in arguments.items()})
      yield
    distributed.leave()
  except Exception as error:
    distributed.abandon(error)
    raise
