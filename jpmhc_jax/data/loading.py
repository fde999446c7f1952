"""Batches ahead of the step: grain reads `dataset.batch(step)` in threads, in order, from any step on."""

from collections.abc import Generator
import contextlib
import dataclasses
import itertools

import grain

from jpmhc_jax.core.errors import ConfigError, DataError
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
  """
  if prefetch < 0:
    raise ConfigError(f"data.prefetch={prefetch}: expected 0 or more batches.")
  return _checked(_Steps(dataset, start, rows), prefetch)


def _checked(steps: _Steps, prefetch: int) -> Stream:
  """A data file that is gone, or a disk that fails, while the run reads it."""
  stream = _prefetched(steps, prefetch) if prefetch else (steps[i] for i in itertools.count())
  try:
    with contextlib.closing(stream):
      yield from stream
  except OSError as error:
    raise DataError(
      f"{error.filename or 'data'}: cannot be read any more ({error.strerror or error}); bring it back and run the "
      "same command to resume from the last checkpoint"
    ) from error


def _prefetched(steps: _Steps, prefetch: int) -> Stream:
  options = grain.ReadOptions(num_threads=min(prefetch, 4), prefetch_buffer_size=prefetch)
  iterator = iter(grain.MapDataset.source(steps).to_iter_dataset(options))
  try:
    yield from iterator
  finally:
    iterator.close()
