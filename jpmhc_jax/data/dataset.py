"""What a trainer and an evaluator see of a data set, whatever its kind, and the part that most data sets share."""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
import numpy as np

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.data.batches import BatchPlan, Split

BLANK = "<blank>"

Batch = dict[str, np.ndarray]
Rows = slice | np.ndarray  # which rows of a batch: a range, or their numbers


def digest(*parts: str | np.ndarray) -> str:
  """sha256 (hex) over the parts, each preceded by its length, so no two lists of parts collide by concatenation.

  Strings count as UTF-8; in names of files, bytes that are none count as they are.
  """
  sha = hashlib.sha256()
  for part in parts:
    data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else np.ascontiguousarray(part).tobytes()
    sha.update(len(data).to_bytes(8, "big"))
    sha.update(data)
  return sha.hexdigest()


@dataclasses.dataclass(frozen=True)
class Coverage:
  """What an evaluation looks at: the first `examples` of the `held_out` ones."""

  examples: int
  held_out: int

  @property
  def partial(self) -> bool:
    """Whether held-out examples are left out."""
    return self.examples < self.held_out

  @property
  def suffix(self) -> str:
    """Marks the names of a partial evaluation's files; empty for a whole one."""
    return f"_partial_{self.examples}_of_{self.held_out}" if self.partial else ""

  def __str__(self) -> str:
    part = f"the first {self.examples:,} of {self.held_out:,}" if self.partial else f"all {self.held_out:,}"
    return f"{part} held-out examples"


@dataclasses.dataclass(frozen=True)
class ElementSpec:
  """What one row of an array of a batch is."""

  shape: tuple[int, ...]
  dtype: np.dtype


@runtime_checkable
class Dataset(Protocol):
  """Training batches as a pure function of (seed, step), evaluation batches in stored order.

  A batch maps names to arrays (b, …) of any dtype that JAX has; all batches have the names, dtypes and shapes of
  `element_spec`. kind: the name in `data.kind`. identifiers: what the rows of a task's table stand for, "<blank>"
  first. `ExampleDataset` has most of it.

  >>> arrays = {"x": np.zeros((4, 3))}
  >>> isinstance(jp.ArrayDataset.of(arrays, arrays, kind="zeros", batch_size=2, seed=0), jp.Dataset)
  True
  """

  @property
  def kind(self) -> str:
    """The name in `data.kind`."""
    ...

  @property
  def identifiers(self) -> Sequence[str]:
    """What the rows of a table stand for."""
    ...

  @property
  def element_spec(self) -> Mapping[str, ElementSpec]:
    """Shape and dtype of one row of each array."""
    ...

  def batch(self, step: int, rows: Rows = slice(None)) -> Batch:
    """Rows of the global batch of a step: the same for the same (seed, step) on every host, in every order of calls."""
    ...

  def coverage(self, max_examples: int = 0) -> Coverage:
    """Of an evaluation on at most max_examples (0 = all)."""
    ...

  def evaluation_batches(self, batch_size: int, max_examples: int = 0, rows: slice = slice(None)) -> Sequence[Batch]:
    """Batches over the held-out examples in stored order, with `valid` and `index`; see EvaluationBatches."""
    ...

  def example(self, batch: Batch, result: Mapping[str, np.ndarray], row: int) -> dict[str, Any] | None:
    """What the report shows of a held-out example and the answer to it: plain JSON values. None for nothing.

    `kind` names a drawing of `reporting.examples`.
    """
    ...

  def describe(self) -> dict[str, Any]:
    """Counts for logs and the report, and the fingerprint."""
    ...

  def fingerprint(self) -> str:
    """Hash of the examples and of the identifiers: two runs with the same fingerprint train on the same rows."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleDataset(abc.ABC):
  """A `Dataset` over numbered examples: a subclass says how they are read.

  plan: the examples of every step. content: hash of everything that the examples are made of. notes: facts for
  `describe`.
  """

  kind: str
  train: Split
  evaluation: Split
  plan: BatchPlan
  content: str
  identifiers: Sequence[str] = (BLANK,)
  notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def padding(self) -> Mapping[str, int]:
    """What fills the last evaluation batch up, by name of the array; 0 where it says nothing."""
    return {}

  def read(self, split: Split, examples: Int[np.ndarray, "b"]) -> Batch:
    """The arrays of these examples."""
    return split.encode(examples)

  def example(self, batch: Batch, result: Mapping[str, np.ndarray], row: int) -> dict[str, Any] | None:
    """Nothing; a subclass whose examples the report can draw overrides it."""
    return None

  @functools.cached_property
  def element_spec(self) -> Mapping[str, ElementSpec]:
    """Shape and dtype of one row of each array, as the first training example has them."""
    row = self._read(self.train, np.zeros(1, np.int64))
    return {name: ElementSpec(values.shape[1:], values.dtype) for name, values in row.items()}

  def batch(self, step: int, rows: Rows = slice(None)) -> Batch:
    """Rows of the global batch of a step; only the asked rows are read."""
    return self._read(self.train, self.plan.examples(step)[rows])

  def coverage(self, max_examples: int = 0) -> Coverage:
    """Of an evaluation on at most max_examples (0 = all)."""
    examples = self.evaluation.examples
    return Coverage(min(max_examples or examples, examples), examples)

  def evaluation_batches(
    self, batch_size: int, max_examples: int = 0, rows: slice = slice(None)
  ) -> "EvaluationBatches":
    """Batches over the held-out examples in stored order, at most max_examples (0 = all); see EvaluationBatches."""
    read = functools.partial(self._read, self.evaluation)
    return EvaluationBatches(read, self.padding, batch_size, self.coverage(max_examples).examples, rows)

  def describe(self) -> dict[str, Any]:
    """Counts for logs and the report, and the fingerprint."""
    splits = {"train": self.train, "evaluation": self.evaluation}
    counts = {
      f"{name}_{what}": getattr(split, what)
      for name, split in splits.items()
      for what in ("groups", "puzzles", "examples")
    }
    return {"kind": self.kind, **self.sizes(), **counts, **self.notes, "sha256": self.content}

  def sizes(self) -> dict[str, Any]:
    """What `describe` says of one example."""
    return {name: f"{spec.dtype}{list(spec.shape)}" for name, spec in self.element_spec.items()}

  def fingerprint(self) -> str:
    """`content`."""
    return self.content

  def _read(self, split: Split, examples: Int[np.ndarray, "b"]) -> Batch:
    try:
      return self.read(split, examples)
    except OSError as error:  # a file that is gone, or a disk that fails, while the run reads it
      raise DataError(
        f"{error.filename or 'data'}: cannot be read any more ({error.strerror or error}); bring it back and run the "
        "same command to resume from the last checkpoint"
      ) from error


@dataclasses.dataclass(frozen=True)
class EvaluationBatches(Sequence[Batch]):
  """Batches of the held-out examples, each with `valid` (b,) bool and `index` (b,) int64, the example number.

  The last batch is padded at its end: `padding` by name of the array, 0 for the others; valid False, index −1.
  """

  read: Callable[[Int[np.ndarray, "b"]], Batch]
  padding: Mapping[str, int]
  batch_size: int
  examples: int
  rows: slice = dataclasses.field(default_factory=lambda: slice(None))

  def __post_init__(self) -> None:
    if self.batch_size < 1:
      raise ValueError(f"evaluation batch_size={self.batch_size}: expected at least 1.")

  def __len__(self) -> int:
    return -(-self.examples // self.batch_size)

  def __iter__(self) -> Iterator[Batch]:
    return (self[i] for i in range(len(self)))

  def __getitem__(self, i: int) -> Batch:  # type: ignore[override]
    if not -len(self) <= i < len(self):
      raise IndexError(f"evaluation batch {i} of {len(self)}")
    index = (i % len(self)) * self.batch_size + np.arange(self.batch_size)[self.rows]
    valid = index < self.examples
    missing = int((~valid).sum())
    padded = {
      name: _pad_rows(values, missing, self.padding.get(name, 0)) for name, values in self.read(index[valid]).items()
    }
    return padded | {"valid": valid, "index": np.where(valid, index, -1)}


def _pad_rows(values: np.ndarray, rows: int, fill: int) -> np.ndarray:
  return np.concatenate([values, np.full((rows, *values.shape[1:]), fill, values.dtype)]) if rows else values
