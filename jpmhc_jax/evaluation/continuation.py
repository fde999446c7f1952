"""What a language model writes on from held-out windows, byte by byte, for the report; the metrics do not use it."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Int
import numpy as np

from jpmhc_jax.data.dataset import IGNORED_LABEL, PAD

LONGEST, SHOWN = 32, 12  # bytes written on, which is as many forward passes; windows kept

Answer = Callable[[Mapping[str, np.ndarray]], Int[np.ndarray, "b s"]]


def continuations(batch: Mapping[str, np.ndarray], answer: Answer) -> list[dict[str, Any]]:
  """Prompt, true continuation and the model's of the batch's first windows, as `evaluation/step_N.json` keeps them.

  The model sees all of a window but its last bytes (32, at most half) and always takes the likeliest next byte.
  answer: (batch with inputs) -> the likeliest byte behind each of its bytes. Every process must call it alike.
  """
  inputs, length = batch["inputs"].copy(), batch["inputs"].shape[1]
  count = min(LONGEST, length // 2)
  start = length - count
  written = np.zeros((len(inputs), count), np.int32)
  for i in range(count):
    written[:, i] = answer({**batch, "inputs": inputs})[:, start - 1 + i]
    inputs[:, start + i] = written[:, i]
  truth = batch["labels"][:, start - 1 : -1]
  rows = np.flatnonzero(batch["valid"] & (truth[:, 0] != IGNORED_LABEL))[:SHOWN]
  return [_example(int(batch["index"][row]), batch["inputs"][row, :start], truth[row], written[row]) for row in rows]


def _example(index: int, prompt: np.ndarray, truth: np.ndarray, written: np.ndarray) -> dict[str, Any]:
  truth = truth[truth != IGNORED_LABEL]  # a file may end before its window
  written = written[: len(truth)]
  return {
    "kind": "text",
    "task": f"text {index}",
    "test": 0,
    "input": _text(prompt),
    "truth": _text(truth),
    "predictions": [{"text": _text(written)}],
    "solved_at": 1 if np.array_equal(written, truth) else None,
  }


def _text(tokens: Int[np.ndarray, " s"]) -> str:
  """Bytes as text; the byte in front of a file is left out, halves of characters become U+FFFD."""
  return bytes(tokens[tokens != PAD].astype(np.uint8)).decode("utf-8", "replace")
