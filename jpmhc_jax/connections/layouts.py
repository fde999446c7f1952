"""Where the streams stand in an array: our layout and those of others.

| layout  | shape       | used by                                            |
| streams | (…, n, d)   | here, mHC-lite, MaxText, TileKernels, vLLM         |
| first   | (n, …, d)   | stacks of whole states                             |
| packed  | (…, n·d)    | Megatron-LM; stream-major                          |
| last    | (…, d, n)   | TransformerEngine                                  |
| folded  | (b·n, …, d) | lucidrains hyper-connections; index b·n + stream   |
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.core.errors import check_choice

__all__ = ["LAYOUTS", "from_layout", "to_layout"]

LAYOUTS = ("streams", "first", "packed", "last", "folded")


def to_layout(streams: Float[Array, "*tokens n d"], layout: str) -> Float[Array, "..."]:
  """Our streams (…, n, d) in the named layout; `folded` needs a batch axis in front.

  Raises ConfigError for another layout, ValueError for too few axes.
  """
  check_choice("layout", layout, LAYOUTS)
  if layout == "first":
    return jnp.moveaxis(streams, -2, 0)
  if layout == "packed":
    return streams.reshape(*streams.shape[:-2], -1)
  if layout == "last":
    return jnp.swapaxes(streams, -1, -2)
  if layout == "folded":
    _check_rank(streams.ndim, 3, "(b, …, n, d)")
    second = jnp.moveaxis(streams, -2, 1)
    return second.reshape(-1, *second.shape[2:])
  return streams


def from_layout(x: Float[Array, "..."], layout: str, n: int) -> Float[Array, "*tokens n d"]:
  """The inverse of `to_layout`. Raises ValueError where n streams do not fit the array."""
  check_choice("layout", layout, LAYOUTS)
  axis = {"streams": -2, "first": 0, "packed": -1, "last": -1, "folded": 0}[layout]
  _check_rank(x.ndim, 1 if layout == "packed" else 2, f"the layout {layout!r}")
  size = x.shape[axis]
  if size % n if layout in ("packed", "folded") else size != n:
    expected = "a multiple of " if layout in ("packed", "folded") else ""
    raise ValueError(f"layout={layout!r}: axis {axis} of {x.shape} is {size}, expected {expected}n={n}")
  if layout == "first":
    return jnp.moveaxis(x, 0, -2)
  if layout == "packed":
    return x.reshape(*x.shape[:-1], n, size // n)
  if layout == "last":
    return jnp.swapaxes(x, -1, -2)
  if layout == "folded":
    return jnp.moveaxis(x.reshape(size // n, n, *x.shape[1:]), 1, -2)
  return x


def _check_rank(rank: int, least: int, what: str) -> None:
  if rank < least:
    raise ValueError(f"an array of {rank} axes: expected at least {least} for {what}")
