"""Batching by group: which examples step s trains on, as a pure function of (seed, step).

An epoch visits every group once, in random order, and takes one of its puzzles with all its examples; so every task
weighs the same however many augmented copies it has. Examples fill batches in that order; a puzzle that overflows a
batch is cut there and its rest is dropped. Epochs are planned E at a time (an interval), whose last partial batch is
dropped too. Group order and puzzle choice of interval k come from Generator(Philox(seed + k)), k = 1, 2, …, draw for
draw as in TRM's puzzle_dataset.py, so step counts agree with it; the order inside a batch comes from (seed, step).
"""

from collections.abc import Callable
import dataclasses
import functools
import threading
from typing import Any

from jaxtyping import Int
import numpy as np

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.scalars import check_seed

_ORDER_STREAM = 0x0DE5  # keeps the draws inside a batch apart from every other use of (seed, step)


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples in puzzles in groups; `encode` makes any of them on demand.

  group_starts: first puzzle of each group, then the number of puzzles.
  puzzle_starts: first example of each puzzle, then the number of examples.
  identifiers: of each puzzle. encode: example numbers (b,) -> what the data set's `read` makes arrays of.
  """

  group_starts: Int[np.ndarray, "groups_and_1"]
  puzzle_starts: Int[np.ndarray, "puzzles_and_1"]
  identifiers: Int[np.ndarray, "puzzles"]
  encode: Callable[[np.ndarray], Any]

  @classmethod
  def of_singles(cls, examples: int, encode: Callable[[np.ndarray], Any]) -> "Split":
    """Every example is a puzzle and a group of its own, without a name."""
    starts = np.arange(examples + 1)
    return cls(starts, starts, np.zeros(examples, np.int32), encode)

  @property
  def groups(self) -> int:
    """Number of groups."""
    return self.group_starts.size - 1

  @property
  def puzzles(self) -> int:
    """Number of puzzles over all groups."""
    return self.puzzle_starts.size - 1

  @property
  def examples(self) -> int:
    """Number of examples over all puzzles."""
    return int(self.puzzle_starts[-1])

  def puzzle_of(self, examples: Int[np.ndarray, "b"]) -> Int[np.ndarray, "b"]:
    """The puzzle that each example belongs to."""
    return np.searchsorted(self.puzzle_starts, examples, side="right") - 1


@dataclasses.dataclass(frozen=True)
class _Interval:
  first_step: int
  puzzles: Int[np.ndarray, "visits"]  # chosen puzzle of each visit to a group
  starts: Int[np.ndarray, "batches_and_1"]  # first visit of each batch

  @property
  def steps(self) -> int:
    """Number of batches of the interval."""
    return self.starts.size - 1


class BatchPlan:
  """Example numbers of every step, at random access. Thread-safe; keeps the last two intervals in memory."""

  def __init__(self, split: Split, *, batch_size: int, seed: int, epochs: int):
    self._split, self._batch_size, self._seed, self._epochs = split, batch_size, seed, epochs
    self._sizes = np.diff(split.puzzle_starts)
    self._check()
    self._first_steps = [0]  # of every interval planned so far, and of the next one
    self._recent: dict[int, _Interval] = {}
    self._lock = threading.Lock()

  def __reduce__(self) -> tuple[Any, ...]:
    """What another process needs to make the same plan."""
    make = functools.partial(BatchPlan, batch_size=self._batch_size, seed=self._seed, epochs=self._epochs)
    return make, (self._split,)

  def _check(self) -> None:
    check_seed("seed", self._seed)
    if self._batch_size < 1 or self._epochs < 1:
      raise ConfigError(
        f"batch_size={self._batch_size}, data.epochs_per_interval={self._epochs}: expected both to be at least 1."
      )
    smallest = np.minimum.reduceat(self._sizes, self._split.group_starts[:-1]).sum()
    if smallest * self._epochs < self._batch_size:
      raise ConfigError(
        f"data.epochs_per_interval={self._epochs}: one plan holds {smallest * self._epochs} examples, fewer than "
        f"batch_size={self._batch_size}; raise it to at least {-(-self._batch_size // smallest)} or lower batch_size."
      )

  def examples(self, step: int) -> Int[np.ndarray, "batch"]:
    """Example numbers of step's global batch; the rows of one puzzle are contiguous, in random order.

    Raises ValueError for a negative step.
    """
    if step < 0:
      raise ValueError(f"step={step}: expected 0 or more.")
    interval = self._interval_of(step)
    batch = step - interval.first_step
    puzzles = interval.puzzles[interval.starts[batch] : interval.starts[batch + 1]]
    sizes = self._sizes[puzzles]
    visit = np.repeat(np.arange(puzzles.size), sizes)
    within = np.arange(visit.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, step, _ORDER_STREAM))))
    shuffled = np.lexsort((rng.random(visit.size), visit))[: self._batch_size]
    return (self._split.puzzle_starts[puzzles[visit]] + within)[shuffled]

  def interval_steps(self, k: int) -> int:
    """Number of batches of interval k = 1, 2, …"""
    with self._lock:
      self._plan_up_to(k)
      return self._first_steps[k] - self._first_steps[k - 1]

  def _interval_of(self, step: int) -> _Interval:
    with self._lock:
      while self._first_steps[-1] <= step:
        self._plan_up_to(len(self._first_steps))
      k = int(np.searchsorted(self._first_steps, step, side="right"))
      if k not in self._recent:
        self._remember(k)
      return self._recent[k]

  def _plan_up_to(self, k: int) -> None:
    while len(self._first_steps) <= k:
      interval = self._remember(len(self._first_steps))
      self._first_steps.append(interval.first_step + interval.steps)

  def _remember(self, k: int) -> _Interval:
    self._recent[k] = interval = self._plan(k)
    if len(self._recent) > 2:
      del self._recent[next(iter(self._recent))]
    return interval

  def _plan(self, k: int) -> _Interval:
    rng = np.random.Generator(np.random.Philox(seed=self._seed + k))
    groups = self._split.group_starts
    order = np.concatenate([rng.permutation(self._split.groups) for _ in range(self._epochs)])
    puzzles = rng.integers(groups[order], groups[order + 1])  # the same draws as one call a visit
    ends = np.cumsum(self._sizes[puzzles])
    starts, taken = [0], 0
    while ends[-1] - taken >= self._batch_size:
      last = int(np.searchsorted(ends, taken + self._batch_size))
      starts.append(last + 1)
      taken = int(ends[last])
    return _Interval(self._first_steps[k - 1], puzzles.astype(np.int32), np.array(starts))
