"""Batches ahead of the step: grain reads `dataset.batch(step)` in threads, in order, from any step on."""

from collections.abc import Generator
import dataclasses
import itertools

import grain

from jpmhc_jax.core.errors import ConfigError
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


def load(dataset: Dataset, start: int = 0, rows: Rows = slice(None), prefetch: int = 2) -> Stream:
  """Yields (step, batch) for step = start, start + 1, … without end; `rows` is this host's share of the global batch.

  prefetch: batches built ahead in as many threads (at most 4); 0 builds each when asked, without threads. The
  stream is the same for every prefetch. A reader that stops early should close the iterator, which ends the threads.
  Raises ConfigError for a negative prefetch.
  """
  if prefetch < 0:
    raise ConfigError(f"data.prefetch={prefetch}: expected 0 or more batches.")
  steps = _Steps(dataset, start, rows)
  return _prefetched(steps, prefetch) if prefetch else (steps[i] for i in itertools.count())


def _prefetched(steps: _Steps, prefetch: int) -> Stream:
  options = grain.ReadOptions(num_threads=min(prefetch, 4), prefetch_buffer_size=prefetch)
  iterator = iter(grain.MapDataset.source(steps).to_iter_dataset(options))
  try:
    yield from iterator
  finally:
    iterator.close()
