"""Batches ahead of the step: grain reads `dataset.batch(step)` in threads or processes, in order, from any step on; one
more thread places the next batch on the devices while they work on the step before."""

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
import dataclasses
import itertools

from absl import flags
import grain
import jax
import numpy as np

from jpmhc_jax.core.errors import require
from jpmhc_jax.data.dataset import Batch, Dataset, Rows

Stream = Generator[tuple[int, Batch], None, None]


@dataclasses.dataclass(frozen=True)
class _Steps:
  """A random-access source of the steps first, first + 1, …; grain asks for a length, and no run gets that far."""

  dataset: Dataset
  first: int
  rows: Rows

  def __len__(self) -> int:
    return 2**31 - 1 - self.first

  def __getitem__(self, index: int) -> tuple[int, Batch]:
    step = self.first + int(index)
    return step, self.dataset.batch(step, self.rows)


def load(dataset: Dataset, start: int = 0, rows: Rows = slice(None), prefetch: int = 2, workers: int = 0) -> Stream:
  """Yields (step, batch) for step = start, start + 1, … without end; `rows` is this host's share of the global batch.

  prefetch: batches built ahead in as many threads (at most 4); 0 builds each when asked, without threads. workers:
  processes that do so, each every workers-th batch, from a copy of the data set. The stream is the same for every
  prefetch and every number of workers. A reader that stops early should close the iterator, which ends threads and
  processes. Raises ConfigError for a negative number of either.
  """
  require(prefetch >= 0, "data.prefetch", prefetch, "0 or more batches")
  require(workers >= 0, "data.workers", workers, "0 or more processes")
  steps = _Steps(dataset, start, rows)
  return _prefetched(steps, prefetch, workers) if prefetch or workers else (steps[i] for i in itertools.count())


def _prefetched(steps: _Steps, prefetch: int, workers: int) -> Stream:
  ahead = max(prefetch, 1)
  options = grain.ReadOptions(num_threads=min(ahead, 4), prefetch_buffer_size=ahead)
  dataset = grain.MapDataset.source(steps).to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # grain asks for flags of its own
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead))
  iterator = iter(dataset)
  try:
    yield from iterator
  finally:
    iterator.close()


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
