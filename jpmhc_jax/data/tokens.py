"""Data sets whose rows are tokens: inputs and labels of int32, PAD = 0, labels of −100 not counted."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from jaxtyping import Int
import numpy as np

from jpmhc_jax.core.examples import IGNORED, PAD
from jpmhc_jax.data.batches import Split
from jpmhc_jax.data.dataset import Batch, ElementSpec, ExampleDataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenDataset(ExampleDataset):
  """Rows of tokens; a split's `encode` gives (inputs, labels) (b, s) with PAD where there is none.

  Batches are int32: inputs (b, s), labels (b, s) with −100 for PAD, puzzle_identifiers (b,).
  side: of the square token canvas, 0 where the tokens are no grid. length: of a row; 0 takes side².
  test_puzzles: scored ARC tasks by name in the public JSON layout with answers; empty for other kinds.
  drawn_as: how the report draws the grids; '' shows none. symbols: the characters of tokens 1, 2, … that a person
  writes such a grid with; '' for none.
  """

  side: int
  vocab_size: int
  length: int = 0
  test_puzzles: Mapping[str, Mapping[str, list]] = dataclasses.field(default_factory=dict)
  drawn_as: str = ""
  symbols: str = ""

  @property
  def sequence_length(self) -> int:
    """Tokens of a row."""
    return self.length or self.side**2

  @property
  def label_length(self) -> int:
    """Labels of a row: one for each token."""
    return self.sequence_length

  @functools.cached_property
  def element_spec(self) -> Mapping[str, ElementSpec]:
    """int32 `inputs` and `labels`, one of each per position, and the number of the puzzle."""
    shapes = {"inputs": (self.sequence_length,), "labels": (self.label_length,), "puzzle_identifiers": ()}
    return {name: ElementSpec(shape, np.dtype(np.int32)) for name, shape in shapes.items()}

  @property
  def num_identifiers(self) -> int:
    """Rows of the puzzle table: puzzles with their copies, and the blank."""
    return len(self.identifiers)

  @property
  def padding(self) -> Mapping[str, int]:
    """Padding tokens, and labels that count nowhere."""
    return {"inputs": PAD, "labels": IGNORED}

  def read(self, split: Split, examples: Int[np.ndarray, "b"]) -> Batch:
    """inputs (b, s), labels (b, s or 1) with −100 where none counts, puzzle_identifiers (b,); all int32."""
    inputs, labels = split.encode(examples)
    labels = labels.astype(np.int32)
    labels[labels == PAD] = IGNORED
    identifiers = split.identifiers[split.puzzle_of(examples)].astype(np.int32)
    return {"inputs": inputs.astype(np.int32), "labels": labels, "puzzle_identifiers": identifiers}

  def example(self, batch: Batch, result: Mapping[str, np.ndarray], row: int) -> dict[str, Any] | None:
    """The row as square grids of tokens, beside the likeliest tokens."""
    if not self.drawn_as:
      return None
    given, truth, answer = (
      values[row].reshape(self.side, self.side).tolist()
      for values in (batch["inputs"], batch["labels"], result["predictions"])
    )
    return {
      "kind": self.drawn_as,
      "task": f"{self.kind} {int(batch['index'][row])}",
      "test": 0,
      "input": given,
      "truth": truth,
      "predictions": [{"grid": answer, "votes": 1, "q": float(1 / (1 + np.exp(-result["q_halt"][row])))}],
      "solved_at": 1 if result["exact_accuracy"][row] else None,
    }

  def sizes(self) -> dict[str, Any]:
    """Vocabulary, tokens of a row and rows of the puzzle table, for `describe`."""
    return {
      "vocab_size": self.vocab_size,
      "sequence_length": self.sequence_length,
      "identifiers": self.num_identifiers,
    }
