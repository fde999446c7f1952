"""Answers of a trained model to inputs that a user writes down: grids in their own symbols, or arrays."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
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


@dataclasses.dataclass(frozen=True)
class Model:
  """A trained model as a whole: how it is laid out, its compiled rollout, the data it knows, its numbers."""

  setup: Setup
  rollout: Rollout
  dataset: Any
  state: TrainState


@dataclasses.dataclass(frozen=True)
class Solved:
  """A grid and the answer to it, in the symbols that the grid was written in; `example`: as the report draws it."""

  given: list[str]
  answer: Any
  example: dict[str, Any]


def predict(model: Model, examples: Any) -> Any:
  """See `Run.predict`."""
  if isinstance(examples, Mapping):
    given = {name: np.asarray(array) for name, array in examples.items()}
    return _results(model, given, ("predictions",))["predictions"]
  if not _has_symbols(model.dataset):
    kind, names = model.dataset.kind, ", ".join(model.dataset.element_spec)
    raise ConfigError(f"predict({type(examples).__name__}): expected a dict of arrays for {kind!r}: {names}")
  if is_batch(examples, model.dataset.side):
    return [solved.answer for solved in solve(model, examples)]
  return solve(model, [examples])[0].answer


def solve(model: Model, grids: Sequence[Grid]) -> list[Solved]:
  """The answer to each grid; raises DataError for one of another shape or with unknown cells."""
  dataset = model.dataset
  if not _has_symbols(dataset):
    raise ConfigError(f"data.kind={dataset.kind!r}: has no grids that a person writes; give arrays to Run.predict")
  read = [_cells(grid, dataset) for grid in grids]
  if not read:
    raise DataError(f"predict: no grid; expected {dataset.side} rows of {dataset.side} cells")
  tokens = np.array([[_token(dataset, cell) for row in rows for cell in row] for rows, _ in read], np.int32)
  labels = np.full((len(read), dataset.label_length), IGNORED, np.int32)
  results = _results(model, {"inputs": tokens, "labels": labels}, ("predictions", "q_halt", "exact_accuracy"))
  batch = {"inputs": tokens, "labels": labels, "index": np.arange(len(read))}
  solved = []
  for row, (cells, numbers) in enumerate(read):
    example = dataset.example(batch, results, row)
    drawn = {name: value for name, value in example.items() if name not in ("truth", "solved_at")}
    solved.append(Solved(list(map("".join, cells)), _written(dataset, results["predictions"][row], numbers), drawn))
  return solved


def is_batch(examples: Any, side: int) -> bool:
  """Whether these are several grids of a side: an array of three axes, or a sequence of what is a grid each."""
  if isinstance(examples, np.ndarray):
    return examples.ndim == 3
  if isinstance(examples, str) or not len(examples):
    return False
  first = examples[0]
  if isinstance(first, str):
    return len(first) > side
  inner = first[0] if len(first) else None
  return isinstance(inner, list | tuple | np.ndarray) or (isinstance(inner, str) and len(inner) == side > 1)


def read_grids(text: str, side: int) -> list[Any]:
  """The grids of a text: rows, with an empty line between two grids; one of side² characters a line; or a JSON list.

  Raises DataError for what begins like JSON and is none.
  """
  if text.lstrip().startswith("["):
    try:
      value = json.loads(text)
    except (ValueError, RecursionError) as error:
      raise DataError(
        f"not readable as JSON ({error}); expected a grid as a list of rows, or a list of such"
      ) from error
    return value if is_batch(value, side) else [value]
  lines = text.splitlines()
  if all(len(line) == side**2 for line in lines if line):
    return [[line] for line in lines if line]
  grids: list[list[str]] = [[]]
  for line in lines:
    if line:
      grids[-1].append(line)
    elif grids[-1]:
      grids.append([])
  return [grid for grid in grids if grid]


def _has_symbols(dataset: Any) -> bool:
  return isinstance(dataset, TokenDataset) and bool(dataset.symbols)


def _written(dataset: TokenDataset, answer: np.ndarray, numbers: bool) -> Any:
  """The answer as rows of text, or of numbers with 0 for what is no digit."""
  rows = [[dataset.symbols[token - 1] for token in row] for row in answer.reshape(dataset.side, -1).clip(1).tolist()]
  return [[int(cell) if cell.isdigit() else 0 for cell in row] for row in rows] if numbers else list(map("".join, rows))


def _results(model: Model, given: Mapping[str, np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
  """What the task predicts for these arrays; those of the data set that are not given are zeros."""
  setup, spec = model.setup, model.dataset.element_spec
  for name in given:
    if name not in spec:
      raise DataError(f"predict: unknown array {name!r}; expected {', '.join(spec)}.{nearest(name, spec)}")
  count, ways = len(next(iter(given.values()))), meshes.ways(setup.mesh)
  for name, array in given.items():
    if array.shape != (count, *spec[name].shape):
      raise DataError(f"predict: {name!r} has the shape {array.shape}; expected (examples, *{spec[name].shape})")
  most = min(setup.config.evaluation.batch_size or setup.config.batch_size, count)
  rows = -(-most // ways) * ways
  parts = [_batch_results(model, given, slice(start, start + rows), rows) for start in range(0, count, rows)]
  for name in wanted:
    if name not in parts[0]:
      raise ConfigError(f"model.kind={setup.config.model.kind!r}: predict gives {', '.join(parts[0])}, no {name!r}")
  return {name: np.concatenate([part[name] for part in parts])[:count] for name in wanted}


def _batch_results(model: Model, given: Mapping[str, np.ndarray], part: slice, rows: int) -> dict[str, np.ndarray]:
  batch = {name: np.zeros((rows, *row.shape), row.dtype) for name, row in model.dataset.element_spec.items()}
  for name, array in given.items():
    batch[name][: len(array[part])] = array[part]
  state = model.state
  placed = jax.device_put(batch, meshes.batch_sharding(model.setup.mesh))
  return jax.device_get(dict(model.rollout(state.evaluated, state.buffers, state.table, placed)))


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
