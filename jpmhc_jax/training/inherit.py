"""A new run that starts from the parameters of another: what fits is taken, and what does not is said."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpmhc_jax.core.errors import CheckpointError, ConfigError
from jpmhc_jax.data import Dataset
from jpmhc_jax.data.dataset import digest
from jpmhc_jax.training import checkpoint, integrity
from jpmhc_jax.training.state import Setup, TrainState
from jpmhc_jax.training.step import fresh_carry

_SHOWN = 4  # names in a sentence
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
  """What a run starts from. arrays: the leaves of a `TrainState` by path. averaged: the average of the parameters."""

  workdir: pathlib.Path
  step: int
  arrays: Arrays
  identifiers: tuple[str, ...]

  @property
  def averaged(self) -> bool:
    """Whether the average of the parameters is taken: where the run kept one, as its evaluation does."""
    return any(name.startswith(".ema") for name in self.arrays)

  @property
  def sha256(self) -> str:
    """Of all that a run may take."""
    names = sorted(name for name in self.arrays if name.startswith((".params", ".ema", ".buffers", ".table")))
    return digest(*(part for name in names for part in (name, self.arrays[name])))

  def part(self, name: str) -> dict[str, np.ndarray]:
    """The leaves below a field of the state, by their path in it."""
    return {path.removeprefix(name): array for path, array in self.arrays.items() if path.startswith(f"{name}[")}


@dataclasses.dataclass(frozen=True)
class Inheritance:
  """What a run took from another, for environment.json and the first lines of the run.

  taken: arrays of the model that fit; new: those that start as without a source, with the reason; unused: those that
  only the source has. sha256: of the source's parameters, buffers and table.
  """

  workdir: str
  step: int
  averaged: bool
  sha256: str
  taken: tuple[str, ...]
  new: tuple[str, ...]
  unused: tuple[str, ...]

  def sentences(self) -> tuple[str, ...]:
    """What is taken, what is new and what is left, in words."""
    which = "averaged parameters" if self.averaged else "parameters"
    lines = [
      f"starting from the {which} of {self.workdir} at step {self.step:,} (sha256 {self.sha256[:12]}): "
      f"{len(self.taken)} of {len(self.taken) + len(self.new)} arrays taken; optimizer and steps start anew"
    ]
    lines += [f"  new here: {_listed(self.new)}"] if self.new else []
    lines += [f"  left there: {_listed(self.unused)}"] if self.unused else []
    return tuple(lines)


def read_source(workdir: pathlib.Path) -> Source:
  """The latest intact checkpoint of a workdir; raises CheckpointError where there is none."""
  checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", owner=False)
  try:
    for step in reversed(checkpoints.steps()):
      folder = checkpoints.here(step)
      if not integrity.problem(folder):
        arrays, names = checkpoint.arrays(folder)
        return Source(workdir, step, arrays, names)
  finally:
    checkpoints.close()
  raise CheckpointError(f"init_from={str(workdir)!r}: expected the workdir of a run with an intact checkpoint")


def started(setup: Setup, dataset: Dataset, source: Source) -> tuple[TrainState, Inheritance]:
  """The first state of a run with the source's parameters, buffers and table rows, where names and shapes fit.

  Rows of the table are found by the names of the identifiers. Raises ConfigError where no array fits.
  """
  state = setup.create()
  params, taken, new, unused = _merged(state.params, source.part(".ema" if source.averaged else ".params"))
  buffers, *others = _merged(state.buffers, source.part(".buffers"))
  taken, new, unused = (a + b for a, b in zip((taken, new, unused), others, strict=True))
  if not taken:
    raise ConfigError(f"init_from={str(source.workdir)!r}: no array fits; {_listed(new)}: take a run of such a model")
  state = with_arrays(setup, state, params, buffers, _rows(state.table, source, dataset))
  return state, Inheritance(str(source.workdir), source.step, source.averaged, source.sha256, taken, new, unused)


def with_arrays(setup: Setup, state: TrainState, params: Any, buffers: Any, table: Any) -> TrainState:
  """A first state with these arrays, of the host or of the devices: average, optimiser and carry start from them."""
  layout = setup.shardings

  def complete(params: Any, buffers: Any, table: Any, state: TrainState) -> TrainState:
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    moments = setup.optimizer.init(params)
    new = dataclasses.replace(state, params=params, ema=ema, optimizer=moments, buffers=buffers, table=table)
    return dataclasses.replace(new, carry=fresh_carry(setup, new, state.carry.data))

  placed = jax.tree.map(_placed, (params, buffers, table), (layout.params, layout.buffers, layout.table))
  done: TrainState = jax.jit(complete, out_shardings=layout)(*placed, state)
  return done


def rows_by_name(
  shape: tuple[int, int], names: Sequence[str], theirs: np.ndarray, their_names: Sequence[str]
) -> tuple[np.ndarray, int]:
  """(a table of this shape, one row a name, with the rows that another table has for these names; how many it has)."""
  rows = np.zeros(shape, np.float32)
  number = {name: row for row, name in enumerate(their_names)}
  known = [(row, number[name]) for row, name in enumerate(names) if name in number]
  ours, there = np.array(known, np.int64).reshape(-1, 2).T
  rows[ours] = theirs[there]
  return rows, len(known)


def _merged(ours: Any, theirs: Arrays) -> tuple[Any, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
  """(the tree with the arrays of the source that fit, taken, new, unused)."""
  paths, structure = jax.tree_util.tree_flatten_with_path(ours)
  own = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
  fitting = {name for name, leaf in own.items() if name in theirs and theirs[name].shape == leaf.shape}
  merged = jax.tree.unflatten(structure, [theirs[name] if name in fitting else leaf for name, leaf in own.items()])
  new = tuple(_why_new(name, leaf, theirs) for name, leaf in own.items() if name not in fitting)
  unused = tuple(_dotted(name) for name in theirs if name not in own)
  return merged, tuple(_dotted(name) for name in own if name in fitting), new, unused


def _why_new(name: str, leaf: Any, theirs: Arrays) -> str:
  shapes = f" ({list(theirs[name].shape)} there, {list(leaf.shape)} here)" if name in theirs else ""
  return _dotted(name) + shapes


def _rows(table: Any, source: Source, dataset: Dataset) -> Any:
  """The table with the rows of the identifiers that the source knows, where they are as wide."""
  theirs = source.arrays.get(".table")
  if table is None or theirs is None or theirs.shape[1] != table.shape[1]:
    return table
  return rows_by_name(table.shape, dataset.identifiers, theirs, source.identifiers)[0]


def _placed(array: Any, sharding: jax.sharding.Sharding) -> Any:
  if isinstance(array, jax.Array):
    return array
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _dotted(path: str) -> str:
  """ "['blocks']['kernel']" -> 'blocks.kernel'."""
  return path.replace("']['", ".").strip("[']")


def _listed(names: tuple[str, ...]) -> str:
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return ", ".join(names[:_SHOWN]) + more
