"""Prefetching: a thread fetches the next batch and places it on the devices while they work on the step before."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from jpmhc_jax.data.loading import Stream

Placed = tuple[int, dict[str, jax.Array]]


class DevicePrefetcher:
  """An iterator of (step, placed batch) in the order of the stream.

  `begin` starts on the next one; the loop calls it behind a dispatch. A thread that went on by itself would hold the
  interpreter just when the loop dispatches the step whose batch it has taken, which makes a dispatch of 1 ms one of 2.
  An error of the stream is raised where its batch is taken, not before. Without `threads` nothing is done ahead.
  """

  def __init__(self, batches: Stream, place: Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]], threads: bool):
    self._batches, self._place = batches, place
    self._pool = ThreadPoolExecutor(1, "ahead") if threads else None
    self._next: Future[Placed] | None = None

  def begin(self) -> None:
    """Starts on the next batch, unless that has happened already."""
    if self._pool and self._next is None:
      self._next = self._pool.submit(self._take)

  def __iter__(self) -> "DevicePrefetcher":
    return self

  def __next__(self) -> Placed:
    taken, self._next = self._next, None
    return taken.result() if taken else self._take()

  def close(self) -> None:
    """Waits for a batch that is on its way, and closes the stream."""
    if self._pool:
      self._pool.shutdown(cancel_futures=True)
    self._batches.close()

  def _take(self) -> Placed:
    step, batch = next(self._batches)
    return step, self._place(batch)
