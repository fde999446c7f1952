"""What one pass over held-out examples counts: sums for the means, examples to show, ARC votes; and its files."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import gzip
import pathlib
from typing import Any
import zlib

import numpy as np

from jpmhc_jax.core.files import from_json, storing, to_json, write_atomically
from jpmhc_jax.data import Dataset
from jpmhc_jax.evaluation.arc import ArcVotes
from jpmhc_jax.training.hosts import distributed

EXAMPLES = 60  # shown in the report


class EvalAccumulator:
  """Sums over valid examples. Tallies of consecutive ranges of examples merge into that of the whole range.

  names: the per-example arrays that are summed. kept: those of which every value is kept. voting: count ARC votes
  instead of keeping examples to show.
  """

  def __init__(self, dataset: Dataset, names: Sequence[str], kept: Sequence[str], voting: bool):
    self._dataset = dataset
    self.sums = dict.fromkeys(names, 0.0)
    self.kept: dict[str, list[float]] = {name: [] for name in kept}
    self.count = 0
    self.examples: list[dict[str, Any]] = []
    self.votes = ArcVotes(dataset.identifiers, dataset.side) if voting else None  # type: ignore[attr-defined]

  def add(self, batch: dict[str, np.ndarray], result: dict[str, np.ndarray]) -> None:
    """Counts one batch; rows that are not `valid` are padding, and those that the task calls so are only answered."""
    valid = batch["valid"]
    compared = valid & (result["valid"] > 0) if "valid" in result else valid
    self.count += int(compared.sum())
    for name in self.sums:
      self.sums[name] += float(result[name][compared].astype(np.float64).sum())
    for name, values in self.kept.items():
      values += result[name][compared].tolist()
    if self.votes is not None:
      q = result["q_halt"].astype(np.float32)
      self.votes.add(batch["puzzle_identifiers"], batch["inputs"], result["predictions"], q, valid)
    elif len(self.examples) < EXAMPLES:
      rows = np.flatnonzero(valid)[: EXAMPLES - len(self.examples)]
      self.examples += filter(None, (self._dataset.example(batch, result, int(row)) for row in rows))

  def merge(self, other: "EvalAccumulator") -> None:
    """Adds a tally of later examples."""
    self.sums = {name: total + other.sums[name] for name, total in self.sums.items()}
    self.kept = {name: values + other.kept[name] for name, values in self.kept.items()}
    self.count += other.count
    self.examples = (self.examples + other.examples)[:EXAMPLES]
    if self.votes is not None and other.votes is not None:
      self.votes.merge(other.votes)

  def to_state(self) -> dict[str, Any]:
    """Plain JSON values; `from_state` restores them bit for bit."""
    votes = None if self.votes is None else self.votes.to_state()
    return {"sums": self.sums, "kept": self.kept, "count": self.count, "examples": self.examples, "votes": votes}

  @classmethod
  def from_state(cls, dataset: Dataset, state: dict[str, Any]) -> "EvalAccumulator":
    """The tally that `to_state` described."""
    tally = cls(dataset, list(state["sums"]), (), voting=False)
    tally.sums, tally.kept = state["sums"], state["kept"]
    tally.count, tally.examples = state["count"], state["examples"]
    if state["votes"] is not None:
      tally.votes = ArcVotes.from_state(dataset.identifiers, state["votes"])
    return tally


Tally = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EvalProgress:
  """The files of one pass: what it has counted so far, so that a restart goes on where it was.

  Every share of the processes writes its own file after the same batches, and the last two are kept: a kill may hit
  between two processes' writes, and all must go on at the same batch. describe: says what must be equal for a tally to
  be used (state, data, fields, shares).
  """

  folder: pathlib.Path
  name: str
  describe: Callable[[], str]
  share: int

  @functools.cached_property
  def identity(self) -> str:
    """What `describe` says, asked once: every process must ask."""
    return self.describe()

  def save(self, batches: int, tally: Callable[[], Tally]) -> None:
    """Writes what was counted in the first `batches` batches."""
    content = to_json({"identity": self.identity, "batches": batches, "tally": tally()}, words=True)
    with storing(str(self.folder)):
      write_atomically(self._path(batches), gzip.compress(content.encode(), mtime=0))
      for older in sorted(self._found())[:-2]:
        self._path(older).unlink(missing_ok=True)

  def load(self) -> tuple[int, Tally | None]:
    """The latest batch that all processes have saved and what this one had counted by then; (0, None) when none."""
    if not any(distributed.gather(self._found())):
      return 0, None
    usable = {batches: tally for batches in self._found() if (tally := self._read(batches)) is not None}
    common = set.intersection(*(set(names) for names in distributed.gather(sorted(usable))))
    batches = max(common, default=0)
    return batches, usable.get(batches)

  def discard(self) -> None:
    """The pass is finished and its result is written: also what other numbers of processes left of it goes."""
    for path in self.folder.glob(f"partial_{self.name}.*.json.gz"):
      path.unlink(missing_ok=True)

  def _path(self, batches: int) -> pathlib.Path:
    return self.folder / f"partial_{self.name}.{self.share}.{batches}.json.gz"

  def _found(self) -> list[int]:
    names = (path.name.split(".") for path in self.folder.glob(f"partial_{self.name}.{self.share}.*.json.gz"))
    return [int(parts[2]) for parts in names if parts[2].isdigit()]

  def _read(self, batches: int) -> Tally | None:
    try:
      saved = from_json(gzip.decompress(self._path(batches).read_bytes()))
      return saved["tally"] if (saved["identity"], saved["batches"]) == (self.identity, batches) else None
    except (OSError, EOFError, KeyError, TypeError, ValueError, zlib.error):
      return None  # damaged: the pass starts again
