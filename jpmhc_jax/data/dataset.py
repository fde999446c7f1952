"""What a trainer and an evaluator see of a data set, whatever its kind."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
from typing import Any

from jaxtyping import Int
import numpy as np

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.images import ImageFormat
from jpmhc_jax.data.batches import BatchPlan, Split

PAD = 0
IGNORED_LABEL = -100
BLANK = "<blank>"

Batch = dict[str, np.ndarray]
Rows = slice | np.ndarray  # which rows of a batch: a range, or their numbers


def digest(*parts: str | np.ndarray) -> str:
  """sha256 (hex) over the parts, each preceded by its length, so no two lists of parts collide by concatenation.

  Strings count as UTF-8; in names of files, bytes that are none count as they are.
  """
  sha = hashlib.sha256()
  for part in parts:
    data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else bytes(np.ascontiguousarray(part))
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
    return self.examples < self.held_out

  @property
  def suffix(self) -> str:
    """Marks the names of a partial evaluation's files; empty for a whole one."""
    return f"_partial_{self.examples}_of_{self.held_out}" if self.partial else ""

  def __str__(self) -> str:
    part = f"the first {self.examples:,} of {self.held_out:,}" if self.partial else f"all {self.held_out:,}"
    return f"{part} held-out examples"


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Training batches as a pure function of (seed, step), evaluation batches in stored order.

  side: of the square token canvas, 0 where the tokens are no grid. length: of a row; 0 takes side².
  image: set where the rows are images, which have one label each, class + 1.
  identifiers: name of every puzzle identifier, "<blank>" first.
  test_puzzles: scored ARC tasks by name in the public JSON layout with answers; empty for other kinds.
  notes: facts for `describe`. content: hash of everything that the examples are made of.
  """

  kind: str
  side: int
  vocab_size: int
  identifiers: Sequence[str]
  train: Split
  evaluation: Split
  plan: BatchPlan
  content: str
  test_puzzles: Mapping[str, Mapping[str, list]] = dataclasses.field(default_factory=dict)
  notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  length: int = 0
  image: ImageFormat | None = None
  pad_id: int = PAD
  ignored_label: int = IGNORED_LABEL

  @property
  def sequence_length(self) -> int:
    return self.length or self.side**2

  @property
  def label_length(self) -> int:
    """Labels of a row: one for each token, or one for an image."""
    return 1 if self.image else self.sequence_length

  @property
  def num_identifiers(self) -> int:
    return len(self.identifiers)

  def batch(self, step: int, rows: Rows = slice(None)) -> Batch:
    """Rows of the global batch of a step, int32: inputs (b, s), labels (b, s or 1) with −100 ignored,
    puzzle_identifiers (b,).

    The same for the same (seed, step) on every host and in every order of calls; only the asked rows are encoded.
    """
    return _collate(self.train, self.plan.examples(step)[rows])

  def coverage(self, max_examples: int = 0) -> Coverage:
    """Of an evaluation on at most max_examples (0 = all)."""
    examples = self.evaluation.examples
    return Coverage(min(max_examples or examples, examples), examples)

  def evaluation_batches(
    self, batch_size: int, max_examples: int = 0, rows: slice = slice(None)
  ) -> "EvaluationBatches":
    """Batches over the held-out examples in stored order, at most max_examples (0 = all); see EvaluationBatches."""
    return EvaluationBatches(self.evaluation, batch_size, self.coverage(max_examples).examples, rows)

  def describe(self) -> dict[str, Any]:
    """Counts for logs and the report, and the fingerprint."""
    splits = {"train": self.train, "evaluation": self.evaluation}
    counts = {
      f"{name}_{what}": getattr(split, what)
      for name, split in splits.items()
      for what in ("groups", "puzzles", "examples")
    }
    return {
      "kind": self.kind,
      "vocab_size": self.vocab_size,
      "sequence_length": self.sequence_length,
      "identifiers": self.num_identifiers,
      **counts,
      **self.notes,
      "sha256": self.content,
    }

  def fingerprint(self) -> str:
    """Hash of the examples and of the identifier map: two runs with the same fingerprint train on the same rows."""
    return self.content


@dataclasses.dataclass(frozen=True)
class EvaluationBatches:
  """Batches of the held-out examples, each with `valid` (b,) bool and `index` (b,) int64, the example number.

  The last batch is padded at its end: inputs PAD, labels −100, identifier 0, valid False, index −1.
  """

  split: Split
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

  def __getitem__(self, i: int) -> Batch:
    if not -len(self) <= i < len(self):
      raise IndexError(f"evaluation batch {i} of {len(self)}")
    index = (i % len(self)) * self.batch_size + np.arange(self.batch_size)[self.rows]
    valid = index < self.examples
    batch = _collate(self.split, index[valid])
    missing = int((~valid).sum())
    fill = {"inputs": PAD, "labels": IGNORED_LABEL, "puzzle_identifiers": 0}
    padded = {name: _pad_rows(value, missing, fill[name]) for name, value in batch.items()}
    return padded | {"valid": valid, "index": np.where(valid, index, -1)}


def _collate(split: Split, examples: Int[np.ndarray, "b"]) -> Batch:
  try:
    inputs, labels = split.encode(examples)
  except OSError as error:  # a file that is gone, or a disk that fails, while the run reads it
    raise DataError(
      f"{error.filename or 'data'}: cannot be read any more ({error.strerror or error}); bring it back and run the "
      "same command to resume from the last checkpoint"
    ) from error
  labels = labels.astype(np.int32)
  labels[labels == PAD] = IGNORED_LABEL
  identifiers = split.identifiers[split.puzzle_of(examples)].astype(np.int32)
  return {"inputs": inputs.astype(np.int32), "labels": labels, "puzzle_identifiers": identifiers}


def _pad_rows(values: np.ndarray, rows: int, fill: int) -> np.ndarray:
  return np.concatenate([values, np.full((rows, *values.shape[1:]), fill, values.dtype)]) if rows else values
