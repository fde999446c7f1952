"""What the commands share: from a config to data, setup and evaluator on one workdir, and its checkpoints."""

from collections.abc import Iterator
import contextlib
import pathlib
import sys

import jax

from jpmhc_jax import data
from jpmhc_jax.core import launch, schema
from jpmhc_jax.core.errors import UserError
from jpmhc_jax.evaluation.evaluator import Evaluator
from jpmhc_jax.evaluation.mixers import make_diagnose
from jpmhc_jax.training import distributed, loop
from jpmhc_jax.training.checkpoint import Checkpoints, Restored
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.state import prepare


def open_run(config: schema.Config, workdir: pathlib.Path) -> loop.Run:
  """Builds data, model layout and evaluator. Nothing is compiled or written but the workdir's evaluation folder."""
  _ask_xla(config)
  if config.precision.matmul != "default":
    jax.config.update("jax_default_matmul_precision", config.precision.matmul)
  dataset = data.build(config.data, batch_size=config.batch_size, seed=config.seed)
  setup = prepare(config, dataset, make_mesh(config.mesh))
  diagnose = make_diagnose(setup) if config.logging.diagnostics_every else None
  return loop.Run(setup, dataset, workdir, Evaluator(setup, dataset, workdir), diagnose)


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
def processes_of(config: schema.Config) -> Iterator[None]:
  """Joins the other processes of the run, if the environment names any, and leaves them in good order.

  An error that comes out ends this process at once and tells the others, which would wait for it otherwise.
  """
  _ask_xla(config)
  distributed.join(config.processes)
  try:
    yield
    distributed.leave()
  except Exception as error:
    distributed.abandon(error.exit_code if isinstance(error, UserError) else 1, error)
    raise
