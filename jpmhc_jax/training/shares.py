"""A process's share of the rows of a global batch: what it reads, and how the shares become one array."""

from collections.abc import Mapping
import dataclasses
import functools

import jax
from jax.sharding import NamedSharding
from jaxtyping import Array, Int
import numpy as np


@dataclasses.dataclass(frozen=True)
class HostRows:
  """The rows whose devices belong to this process.

  numbers: those rows of the global batch, ascending. size: rows of the global batch. index, count: this share among the
  distinct shares; processes that split the tensor axis between them hold the same rows, and so the same share.
  """

  sharding: NamedSharding
  numbers: Int[np.ndarray, "local"]
  size: int
  index: int
  count: int

  @functools.cached_property
  def rows(self) -> slice | Int[np.ndarray, "local"]:
    """What to ask `Dataset.batch` for."""
    first, last = int(self.numbers[0]), int(self.numbers[-1])
    return slice(first, last + 1) if last - first + 1 == len(self.numbers) else self.numbers

  def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """The local rows of every process, as global arrays over all devices."""
    if jax.process_count() == 1:
      return jax.device_put(dict(batch), self.sharding)
    return {name: self._global(value) for name, value in batch.items()}

  def _global(self, local: np.ndarray) -> Array:
    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
      wanted = np.arange(self.size)[index[0] if index else slice(None)]
      return local[np.searchsorted(self.numbers, wanted)]

    return jax.make_array_from_callback((self.size, *local.shape[1:]), self.sharding, shard)

  def collect(self, result: Mapping[str, Array | np.ndarray]) -> dict[str, np.ndarray]:
    """The local rows of arrays that are split by row, on the host."""
    return {name: _local(value) for name, value in result.items()}


def _local(array: Array | np.ndarray) -> np.ndarray:
  if not isinstance(array, jax.Array) or array.is_fully_addressable:
    return np.asarray(array)
  pieces = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


def share_of(sharding: NamedSharding, size: int) -> HostRows:
  """This process's share of `size` rows that are laid out by `sharding`."""
  by_process: dict[int, set[int]] = {}
  device: jax.Device
  for device, index in sharding.devices_indices_map((size,)).items():  # type: ignore[assignment]
    by_process.setdefault(device.process_index, set()).update(np.arange(size)[index[0]].tolist())
  distinct = sorted({tuple(sorted(numbers)) for numbers in by_process.values()})
  mine = tuple(sorted(by_process[jax.process_index()]))
  return HostRows(sharding, np.array(mine), size, distinct.index(mine), len(distinct))
