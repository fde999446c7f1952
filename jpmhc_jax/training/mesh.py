"""The device mesh and the rules that turn logical axis names into shardings.

Mesh axes: `data` splits the batch, `fsdp` splits the batch and the parameters, `tensor` splits heads and feed-forward
columns. The streams axis is never split: the mixers work inside one device and add no collective.
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jpmhc_jax.core import schema
from jpmhc_jax.core.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))

RULES: dict[str | None, str | None] = {
  "embed": "fsdp",
  "heads": "tensor",
  "mlp": "tensor",
  "puzzles": "fsdp",
  "positions": None,
  "streams": None,
  "vocab": None,  # a dozen tokens: nothing to split
  None: None,
}


def make_mesh(config: schema.Mesh, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A (data, fsdp, tensor) mesh over all devices. data=-1 takes what the other axes leave."""
  devices = list(jax.devices() if devices is None else devices)
  inner = config.fsdp * config.tensor
  data = len(devices) // inner if config.data == -1 else config.data
  if data < 1 or data * inner != len(devices):
    raise ConfigError(
      f"mesh.data={config.data}, mesh.fsdp={config.fsdp}, mesh.tensor={config.tensor}: the product must equal the "
      f"{len(devices)} devices; set mesh.data=-1 and choose fsdp*tensor as a divisor of {len(devices)}"
    )
  return jax.make_mesh((data, config.fsdp, config.tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
  """Every device gets the same number of rows in every micro-batch, or ConfigError says what would."""
  ways = mesh.shape["data"] * mesh.shape["fsdp"] * accumulation
  if batch_size % ways:
    raise ConfigError(
      f"batch_size={batch_size}: expected a multiple of mesh.data*mesh.fsdp*accumulation = {ways}; "
      f"use {math.ceil(batch_size / ways) * ways}"
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over data and fsdp; everything behind the first axis whole."""
  return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def shardings(mesh: Mesh, shapes: Any, axes: Any) -> Any:
  """A NamedSharding per leaf from its logical axes. `axes` has the structure of `shapes` with tuples as leaves.

  Raises ConfigError for an axis name without a rule, or a dimension that its mesh axis does not divide.
  """

  def one(path: tuple, leaf: Any, names: tuple[str | None, ...]) -> NamedSharding:
    spec = []
    for size, name in zip(leaf.shape, names, strict=True):
      where = jax.tree_util.keystr(path)
      if name not in RULES:
        raise ConfigError(
          f"parameter {where}: logical axis {name!r} has no sharding rule; add it to training.mesh.RULES"
        )
      axis = RULES[name]
      if axis and size % mesh.shape[axis]:
        raise ConfigError(
          f"mesh.{axis}={mesh.shape[axis]} does not divide axis {name!r} of size {size} (parameter {where}); "
          f"use a divisor of {size}"
        )
      spec.append(axis if axis and mesh.shape[axis] > 1 else None)
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(one, shapes, axes, is_leaf=lambda x: isinstance(x, tuple))
