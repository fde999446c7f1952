"""The device mesh and the rules that turn logical axis names into shardings.

The rules are in `core.sharding`. Every leaf of the state gets its place on the mesh, or an error says why not.
`HostRows` are the rows of a global batch that one process reads.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int
import numpy as np

from jpmhc_jax.config import schema
from jpmhc_jax.core import sharding
from jpmhc_jax.core.errors import ConfigError


def make_mesh(config: schema.Mesh, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A (data, fsdp, tensor) mesh over all devices. data=-1 takes what the other axes leave.

  With several slices, which a slower network joins, only the data axis crosses from one to the next: its outer part
  counts the slices, so that parameters are gathered and activations exchanged inside a slice. Raises ConfigError.
  """
  devices = list(jax.devices() if devices is None else devices)
  inner = config.fsdp * config.tensor
  data = len(devices) // inner if config.data == -1 else config.data
  if data < 1 or data * inner != len(devices):
    raise ConfigError(
      f"mesh.data={config.data}, mesh.fsdp={config.fsdp}, mesh.tensor={config.tensor}: the product must equal the "
      f"{len(devices)} devices; set mesh.data=-1 and choose fsdp*tensor as a divisor of {len(devices)}"
    )
  if data % config.slices:
    raise ConfigError(f"mesh.slices={config.slices}: expected a divisor of the {data} devices along mesh.data")
  shape = (data, config.fsdp, config.tensor)
  if config.slices == 1:
    return jax.make_mesh(shape, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
  parts = [
    mesh_utils.create_device_mesh((data // config.slices, *shape[1:]), [devices[k] for k in group])
    for group in deal(_places(devices), config.slices)
  ]
  return Mesh(np.concatenate(parts), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def fitted(config: schema.Mesh, devices: Sequence[jax.Device]) -> schema.Mesh:
  """The mesh of a run on other devices: parameters stay split as far as these allow, and data takes the rest.

  fsdp, tensor and slices become divisors of what they were, so that they divide what they divided.
  """
  fsdp = math.gcd(config.fsdp, len(devices))
  tensor = math.gcd(config.tensor, len(devices) // fsdp)
  slices = math.gcd(config.slices, len(set(_places(devices))), len(devices) // (fsdp * tensor))
  return schema.Mesh(data=-1, fsdp=fsdp, tensor=tensor, slices=slices)


def _places(devices: Sequence[jax.Device]) -> list[int]:
  """The TPU slice, or else the process, of each device."""
  return [getattr(device, "slice_index", device.process_index) for device in devices]


def deal(where: Sequence[int], groups: int) -> list[list[int]]:
  """Indices of the devices in groups of one size that lie together. `where` is the TPU slice, or host, of each.

  Devices of a single host are dealt in order. Raises ConfigError when the places cannot be dealt evenly.
  """
  places = sorted(set(where))
  if len(places) == 1:
    places, where = list(range(groups)), [k * groups // len(where) for k in range(len(where))]
  together = max(len(places) // groups, 1)
  dealt = [[k for k, at in enumerate(where) if places.index(at) // together == group] for group in range(groups)]
  if len(places) % groups or len({len(group) for group in dealt}) > 1:
    raise ConfigError(
      f"mesh.slices={groups}: the devices lie on {len(places)} slices or hosts, which do not make {groups} groups "
      f"of one size; use a divisor of {len(places)}"
    )
  return dealt


def ways(mesh: Mesh) -> int:
  """Into how many parts the rows of a batch are split."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
  """Raises ConfigError, with a batch size that works, unless every device gets as many rows of every micro-batch."""
  parts = ways(mesh) * accumulation
  if batch_size % parts:
    raise ConfigError(
      f"batch_size={batch_size}: expected a multiple of mesh.data*mesh.fsdp*accumulation = {parts}; "
      f"use {math.ceil(batch_size / parts) * parts}"
    )


def on_mesh(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
  """The function, traced with the mesh around it, so that the activations inside are laid out by `core.sharding`."""

  @functools.wraps(function)
  def traced(*arguments: Any) -> Any:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*arguments)

  return traced


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over data and fsdp; everything behind the first axis whole."""
  return NamedSharding(mesh, PartitionSpec(sharding.BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def shardings(mesh: Mesh, shapes: Any, axes: Any) -> Any:
  """A NamedSharding per leaf from its logical axes. `axes` has the structure of `shapes` with tuples as leaves.

  Raises ConfigError for an axis name without a rule, or a dimension that its mesh axis does not divide.
  """

  def one(path: tuple, leaf: Any, names: tuple[str | None, ...] | None) -> NamedSharding:
    where = f"parameter {jax.tree_util.keystr(path)}"
    if names is None or len(names) != leaf.ndim:
      raise ConfigError(
        f"{where} of shape {leaf.shape}: logical axes {names}; give its nnx.Param one name (or None) an axis in `axes=`"
      )
    return NamedSharding(
      mesh, PartitionSpec(*(_split(mesh, where, *axis) for axis in zip(leaf.shape, names, strict=True)))
    )

  return jax.tree_util.tree_map_with_path(one, shapes, axes, is_leaf=lambda x: isinstance(x, tuple))


def _split(mesh: Mesh, where: str, size: int, name: str | None) -> str | None:
  """The mesh axis that splits one axis of a parameter; None where it has one device."""
  if name not in sharding.PARAMETERS:
    raise ConfigError(f"{where}: logical axis {name!r} has no rule; add it to PARAMETERS in core/sharding.py")
  axis = sharding.PARAMETERS[name]
  if axis and size % mesh.shape[axis]:
    raise ConfigError(
      f"mesh.{axis}={mesh.shape[axis]} does not divide axis {name!r} of size {size} ({where}); use a divisor of {size}"
    )
  return axis if axis and mesh.shape[axis] > 1 else None


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
