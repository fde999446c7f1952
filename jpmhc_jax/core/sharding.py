"""Logical axis names of parameters and activations, and the mesh axes that split them.

Models name the axes of what they hold and compute; nothing else of them knows of devices. The mesh has the axes `data`,
`fsdp` and `tensor`. Rows of the batch are split over data and fsdp; parameters over fsdp (gathered where they are used)
and, heads and feed-forward columns, over tensor. The streams axis is never split: the mixers work inside one device and
add no collective.
"""

import math

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

MESH_AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

PARAMETERS: dict[str | None, str | None] = {
  "embed": "fsdp",
  "heads": "tensor",
  "mlp": "tensor",
  "puzzles": "fsdp",
  "positions": None,
  "streams": None,
  "calls": None,  # of a recursion
  "layers": None,  # the axis that a scan over layers walks along
  "vocab": None,  # a dozen to some hundred tokens: nothing to split
  None: None,
}

ACTIVATIONS: dict[str | None, str | tuple[str, ...] | None] = {
  "batch": BATCH,
  "heads": "tensor",
  "mlp": "tensor",
  "positions": None,
  "streams": None,
  "features": None,
  "vocab": None,
  None: None,
}


def constrain(x: Float[Array, "..."], *names: str | None) -> Float[Array, "..."]:
  """x, laid out over the ambient mesh as its logical axes say; x itself where there is no mesh or one device.

  Without it the partitioner follows the parameters and splits the features of an activation over fsdp, so that every
  product needs an all-reduce or all-to-all of activations instead of one gather of a parameter (temporaries of a tiny
  step on fsdp=8: 1.05 MB without, 0.28 MB with). `names` are keys of ACTIVATIONS, one an axis, None for one without a
  name. Raises KeyError for an unknown name.
  """
  rules = [ACTIVATIONS[name] for name in names]
  if len(rules) != x.ndim:
    raise ValueError(f"constrain: {len(rules)} names {names} for an array of {x.ndim} axes {x.shape}")
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*rules))


def platform() -> str:
  """'cpu', 'gpu' or 'tpu': what is traced for. That of the ambient mesh, whose devices may be elsewhere (see
  `training.plan.devices_of`); without a mesh that of JAX's default device.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device or jax.default_device.value
  return getattr(device, "platform", device) or jax.default_backend()


def device_kind() -> str:
  """As 'NVIDIA H100 80GB HBM3': of what is traced for, like `platform`."""
  device = jax.sharding.get_abstract_mesh().abstract_device or jax.default_device.value
  return getattr(device, "device_kind", None) or jax.devices(device)[0].device_kind


def split_over(name: str, size: int) -> tuple[str, ...]:
  """The axes of the ambient mesh that an axis of an activation, 'batch' or 'heads', is split over by `jax.shard_map`.

  (): there is no mesh, it has one device, it is manual already, or it does not divide the size.
  """
  mesh, rule = jax.sharding.get_abstract_mesh(), ACTIVATIONS[name]
  several = (rule,) if isinstance(rule, str) else rule or ()
  axes = tuple(axis for axis in several if axis in mesh.axis_names and axis not in mesh.manual_axes)
  devices = math.prod(mesh.shape[axis] for axis in axes)
  return axes if devices > 1 and size % devices == 0 else ()


def constrain_rows(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
  """x with its leading axis split as a batch is and all others whole, where the ambient mesh divides it."""
  split = split_over("batch", x.shape[0]) if x.ndim else ()
  return jax.lax.with_sharding_constraint(x, PartitionSpec(split)) if split else x


def constrain_hidden(h: Float[Array, "b l ..."]) -> Float[Array, "b l ..."]:
  """A residual state: (batch, positions, features), with streams, or symbols and streams, in front of the features."""
  return constrain(h, "batch", "positions", *(None,) * (h.ndim - 3), "features")
