"""A run small enough to compile in seconds: 4×4 Sudoku, one block, two streams."""

import dataclasses
import pathlib
from typing import Any

import chex
import jax
import pytest

from jpmhc_jax import data
from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.state import prepare, Setup
from jpmhc_jax.training.step import make_train_step


def config(**changes: Any) -> schema.Config:
  """The tiny config; keyword arguments replace top-level groups."""
  base = schema.Config(
    steps=8,
    batch_size=16,
    data=schema.Data(
      kind="sudoku", prefetch=0, sudoku=schema.SudokuData(train_puzzles=60, test_puzzles=20, shuffles=20)
    ),
    model=schema.Model(
      width=16,
      heads=2,
      layers=1,
      mlp_multiple=8,
      recursion=schema.Recursion(outer=2, inner=2, max_steps=4),
      puzzle=schema.Puzzle(width=16, slots=1),
    ),
    connection=schema.Connection(mixer="cayley", streams=2),
    optimizer=schema.Optimizer(learning_rate=1e-2, warmup_steps=4, ema=0.9),
    mesh=schema.Mesh(data=1),
    logging=schema.Logging(every=1, tensorboard=False),
  )
  return dataclasses.replace(base, **changes)


def write_config(path: pathlib.Path, c: schema.Config) -> pathlib.Path:
  """A file for `--config` with just this config; its variant "misspelt" sets a field that there is not."""
  path.write_text(
    "import ml_collections\n\n\ndef get_config(variant='plain'):\n"
    f"  config = ml_collections.ConfigDict({configs.to_dict(c)!r}).lock()\n"
    "  if variant == 'misspelt':\n    config.optimizer.learning_rat = 1e-3\n"
    "  return config\n"
  )
  return path


def dataset(c: schema.Config) -> data.Dataset:
  return data.build(c.data, batch_size=c.batch_size, seed=c.seed)


def setup(c: schema.Config, devices: int | None = None) -> Setup:
  count = devices or c.mesh.data * c.mesh.fsdp * c.mesh.tensor
  return prepare(c, dataset(c), make_mesh(c.mesh, jax.devices()[:count]))


def run(c: schema.Config, steps: int, prepared: Setup | None = None):
  """(state, per-step metrics) after some steps from the initial state."""
  prepared = prepared or setup(c)
  step, examples, state = make_train_step(prepared), dataset(c), prepared.create()
  metrics = []
  for k in range(steps):
    state, values = step(state, jax.device_put(examples.batch(k)))
    metrics.append(values.scalars())
  return state, metrics


def trace_once(patch: pytest.MonkeyPatch, prepared: Setup) -> None:
  """Makes it an AssertionError to trace the task's objective, and so the step around it, more than once."""
  chex.clear_trace_counter()
  patch.setattr(prepared.task, "objective", chex.assert_max_traces(prepared.task.objective, n=1))


def model_of(prepared: Setup, state: Any) -> Any:
  """The model with the parameters that evaluation uses."""
  return prepared.model(state.evaluated, state.buffers)
