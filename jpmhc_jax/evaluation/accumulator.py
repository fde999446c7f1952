"""What one pass over held-out examples counts: sums for the means, examples to show, and ARC votes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jpmhc_jax.core.images import ImageFormat
from jpmhc_jax.data import Dataset
from jpmhc_jax.evaluation.arc import ArcVotes

EXAMPLES = 60  # shown in the report


class EvalAccumulator:
  """Sums over valid examples. Tallies of consecutive ranges of examples merge into that of the whole range.

  names: the per-example arrays that are summed. voting: count ARC votes instead of keeping grids to show.
  """

  def __init__(self, dataset: Dataset, names: Sequence[str], voting: bool):
    self._dataset = dataset
    self.sums = dict.fromkeys(names, 0.0)
    self.count = 0
    self.examples: list[dict[str, Any]] = []
    self.votes = ArcVotes(dataset.identifiers, dataset.side) if voting else None

  def add(self, batch: dict[str, np.ndarray], result: dict[str, np.ndarray]) -> None:
    """Counts one batch; rows that are not `valid` are padding."""
    valid = batch["valid"]
    self.count += int(valid.sum())
    for name in self.sums:
      self.sums[name] += float(result[name][valid].astype(np.float64).sum())
    if self.votes is not None:
      q = result["q_halt"].astype(np.float32)
      self.votes.add(batch["puzzle_identifiers"], batch["inputs"], result["predictions"], q, valid)
    elif len(self.examples) < EXAMPLES and (self._dataset.side or self._dataset.image):
      shown = (
        _pictures(batch, result, self._dataset.image) if self._dataset.image else _grids(batch, result, self._dataset)
      )
      self.examples = (self.examples + shown)[:EXAMPLES]

  def merge(self, other: "EvalAccumulator") -> None:
    """Adds a tally of later examples."""
    self.sums = {name: total + other.sums[name] for name, total in self.sums.items()}
    self.count += other.count
    self.examples = (self.examples + other.examples)[:EXAMPLES]
    if self.votes is not None and other.votes is not None:
      self.votes.merge(other.votes)

  def to_state(self) -> dict[str, Any]:
    """Plain JSON values; `from_state` restores them bit for bit."""
    votes = None if self.votes is None else self.votes.to_state()
    return {"sums": self.sums, "count": self.count, "examples": self.examples, "votes": votes}

  @classmethod
  def from_state(cls, dataset: Dataset, state: dict[str, Any]) -> "EvalAccumulator":
    """The tally that `to_state` described."""
    tally = cls(dataset, list(state["sums"]), voting=False)
    tally.sums, tally.count, tally.examples = state["sums"], state["count"], state["examples"]
    if state["votes"] is not None:
      tally.votes = ArcVotes.from_state(dataset.identifiers, state["votes"])
    return tally


def _grids(batch: dict[str, np.ndarray], result: dict[str, np.ndarray], dataset: Dataset) -> list[dict[str, Any]]:
  """Sudoku and maze rows as square grids of tokens."""
  shown = []
  for row in np.flatnonzero(batch["valid"]):
    square = [
      values[row].reshape(dataset.side, dataset.side).tolist()
      for values in (batch["inputs"], batch["labels"], result["predictions"])
    ]
    exact = bool(result["exact_accuracy"][row])
    shown.append(
      {
        "kind": dataset.kind,
        "task": f"{dataset.kind} {int(batch['index'][row])}",
        "test": 0,
        "input": square[0],
        "truth": square[1],
        "predictions": [{"grid": square[2], "votes": 1, "q": float(1 / (1 + np.exp(-result["q_halt"][row])))}],
        "solved_at": 1 if exact else None,
      }
    )
  return shown


def _pictures(batch: dict[str, np.ndarray], result: dict[str, np.ndarray], image: ImageFormat) -> list[dict[str, Any]]:
  """Images with their class and the likeliest one."""
  return [
    {
      "kind": "images",
      "task": f"image {int(batch['index'][row])}",
      "test": 0,
      "input": batch["inputs"][row].reshape(image.height, image.width, image.channels).tolist(),
      "top": image.top,
      "truth": int(batch["labels"][row, 0]) - 1,
      "predictions": [{"class": int(result["predictions"][row, 0])}],
      "solved_at": 1 if result["accuracy"][row] else None,
    }
    for row in np.flatnonzero(batch["valid"])
  ]
