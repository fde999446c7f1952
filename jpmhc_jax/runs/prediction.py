"""Answers of a trained model to inputs that a user writes down: grids in their own symbols, or arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jpmhc_jax.core.errors import ConfigError, DataError, nearest
from jpmhc_jax.core.examples import IGNORED
from jpmhc_jax.data import TokenDataset
from jpmhc_jax.evaluation.evaluator import Rollout
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.state import Setup, TrainState

Grid = str | Sequence[str] | Sequence[Sequence[Any]] | np.ndarray


def predict(setup: Setup, rollout: Rollout, dataset: Any, state: TrainState, examples: Any) -> Any:
  """See `Run.predict`."""
  if isinstance(examples, Mapping):
    return _answers(setup, rollout, dataset, state, {name: np.asarray(array) for name, array in examples.items()})
  if not isinstance(dataset, TokenDataset) or not dataset.symbols:
    names = ", ".join(dataset.element_spec)
    raise ConfigError(f"predict({type(examples).__name__}): expected a dict of arrays for {dataset.kind!r}: {names}")
  grid, numbers = _cells(examples, dataset)
  tokens = np.array([_token(dataset, cell) for row in grid for cell in row], np.int32)
  labels = np.full((1, dataset.label_length), IGNORED, np.int32)
  answer = _answers(setup, rollout, dataset, state, {"inputs": tokens[None], "labels": labels})[0]
  rows = [[dataset.symbols[token - 1] for token in row] for row in answer.reshape(dataset.side, -1).clip(1).tolist()]
  return [[int(cell) if cell.isdigit() else 0 for cell in row] for row in rows] if numbers else list(map("".join, rows))


def _answers(
  setup: Setup, rollout: Rollout, dataset: Any, state: TrainState, given: Mapping[str, np.ndarray]
) -> np.ndarray:
  """`predictions` of the task for these arrays; those of the data set that are not given are zeros."""
  spec = dataset.element_spec
  for name in given:
    if name not in spec:
      raise DataError(f"predict: unknown array {name!r}; expected {', '.join(spec)}.{nearest(name, spec)}")
  count = len(next(iter(given.values())))
  rows = -(-count // meshes.ways(setup.mesh)) * meshes.ways(setup.mesh)
  batch = {name: np.zeros((rows, *row.shape), row.dtype) for name, row in spec.items()}
  for name, array in given.items():
    if array.shape != (count, *spec[name].shape):
      raise DataError(f"predict: {name!r} has the shape {array.shape}; expected (examples, *{spec[name].shape})")
    batch[name][:count] = array
  placed = jax.device_put(batch, meshes.batch_sharding(setup.mesh))
  result = rollout(state.evaluated, state.buffers, state.table, placed)
  if "predictions" not in result:
    raise ConfigError(f"model.kind={setup.config.model.kind!r}: predict gives {', '.join(result)}, no 'predictions'")
  return np.asarray(result["predictions"])[:count]


def _cells(grid: Grid, dataset: TokenDataset) -> tuple[list[list[str]], bool]:
  """(the symbols of a grid, whether they were given as numbers)."""
  side = dataset.side
  lines = [line for line in grid.splitlines() if line.strip("\n")] if isinstance(grid, str) else list(grid)
  if len(lines) == 1 and len(lines[0]) == side**2:
    lines = [lines[0][i : i + side] for i in range(0, side**2, side)]
  rows = [[str(cell) for cell in line] for line in lines]
  if len(rows) != side or any(len(row) != side for row in rows):
    shape = f"{len(rows)} rows of {', '.join(sorted({str(len(row)) for row in rows})) or 'no'} cells"
    raise DataError(f"predict: a grid of {shape}; expected {side} rows of {side}, as text, lists or an array")
  return rows, not isinstance(lines[0], str)


def _token(dataset: TokenDataset, cell: str) -> int:
  known = dataset.symbols if cell in dataset.symbols else "0" * (dataset.symbols[0] == ".")
  if len(cell) != 1 or cell not in known:
    raise DataError(f"predict: cell {cell!r}; expected one of {' '.join(map(repr, dataset.symbols))}")
  return known.index(cell) + 1
