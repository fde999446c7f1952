"""From a config to data, setup and evaluator on one workdir, and to its checkpoints, in one process or several."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import pathlib
import sys
from typing import Any

import jax

from jpmhc_jax import data
from jpmhc_jax.config import schema
from jpmhc_jax.core import process
from jpmhc_jax.core.files import shortages
from jpmhc_jax.data import Dataset
from jpmhc_jax.evaluation.evaluator import Evaluator
from jpmhc_jax.evaluation.mixers import make_diagnose
from jpmhc_jax.training import loop
from jpmhc_jax.training.checkpoint import Checkpoints, Restored
from jpmhc_jax.training.hosts import distributed
from jpmhc_jax.training.mesh import fitted, make_mesh
from jpmhc_jax.training.state import prepare, Setup
from jpmhc_jax.training.tasks import task_of
from jpmhc_jax.training.workdir import agreed

Change = Callable[[schema.Config], schema.Config]


def open_run(config: schema.Config, workdir: pathlib.Path) -> loop.Run:
  """Builds data, model layout and evaluator of a run that trains.

  Nothing is compiled or written but the workdir's evaluation folder.
  """
  _ask_xla(config)
  setup, dataset = prepared(config, trains=True)
  diagnose = make_diagnose(setup) if config.logging.diagnostics_every else None
  return loop.Run(setup, dataset, workdir, Evaluator(setup, dataset, workdir), diagnose)


def prepared(config: schema.Config, *, trains: bool) -> tuple[Setup, Dataset]:
  """Model layout and data; trains=False: for a run that is only looked at, on any number of devices."""
  task_of(config)  # what cannot work is found before the data is built
  dataset = data.build(config.data, batch_size=config.batch_size, seed=config.seed)
  return prepare(config, dataset, make_mesh(config.mesh), trains=trains), dataset


def on_these_devices(recorded: schema.Config, change: Change) -> schema.Config:
  """A run's config for looking at it here: its mesh fitted to the devices that there are, then `change` of it."""
  _ask_xla(recorded)
  return change(dataclasses.replace(recorded, mesh=fitted(recorded.mesh, jax.devices())))


def _ask_xla(config: schema.Config) -> None:
  """The flags of a config; before anything asks for a device, because XLA reads them once."""
  if config.precision.deterministic:
    process.add_xla_flag(process.DETERMINISTIC_FLAG)


def restore(setup: Setup, dataset: Dataset, workdir: pathlib.Path, step: int | None) -> Restored:
  """The checkpoint of a step (None: the latest) of a workdir; says on stderr what was found damaged."""
  checkpoints = Checkpoints(workdir / "checkpoints", owner=False)
  try:
    restored = checkpoints.restore(setup, dataset, step)
  finally:
    checkpoints.close()
  for note in restored.notes:
    print(note, file=sys.stderr)
  return restored


@contextlib.contextmanager
def precision_of(config: schema.Config) -> Iterator[None]:
  """Products of matrices inside have the precision of the config, and that of the process again afterwards."""
  if config.precision.matmul == "default":
    yield
    return
  with jax.default_matmul_precision(config.precision.matmul):
    yield


@contextlib.contextmanager
def processes_of(config: schema.Config, **arguments: Any) -> Iterator[None]:
  """Joins the other processes of the run, if the environment names any, and leaves them in good order.

  arguments: those of the command that all processes must have been given alike, beside the config. Raises ConfigError
  where they were not. A NonFiniteLossError or Interrupted comes out on every process, and all leave in good order. Any
  other error that comes out ends this process at once and the others with it, which would wait for it otherwise.
  """
  _ask_xla(config)
  distributed.join(config.processes)
  try:
    with shortages(), precision_of(config):
      distributed.agree(agreed(config) | {f"--{name}": value for name, value in arguments.items()})
      yield
    distributed.leave()
  except (loop.Interrupted, loop.NonFiniteLossError):
    distributed.leave()
    raise
  except Exception as error:
    distributed.abandon(error)
    raise
