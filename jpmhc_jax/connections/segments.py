"""The apply stage for a sub-layer whose vector is m segments, each as wide as one stream.

    read:           u_s = Σ_j A_sj x_j              s < m
    mix_and_write:  x'_i = Σ_j H_ij x_j + Σ_s B_is y_s

Streams are (*tokens, n, d/m), the sub-layer's input and output (*tokens, d): m = n is the fractional connection, which
splits the width instead of widening it, and m < n the virtual-width one. Coefficients are tokens last, or token-free.
Sources: Frac-connections (2503.14125), virtual width (2511.11238).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.connections import portable


@jax.custom_vjp
def _combine(matrix: Float[Array, "i j *per_token"], parts: Float[Array, "*tokens j w"]) -> Float[Array, "*tokens i w"]:
  """Σ_j M_ij x_j in float32 or wider."""
  return portable.combine(matrix, parts)


def _combine_backward(saved, cotangent):
  matrix, parts = saved
  to_matrix = portable.outer_sums(cotangent, parts)
  to_parts = portable.combine(jnp.swapaxes(matrix, 0, 1), cotangent)
  return portable.summed_if_static(matrix, 2, to_matrix), to_parts.astype(parts.dtype)


_combine.defvjp(lambda matrix, parts: (_combine(matrix, parts), (matrix, parts)), _combine_backward)


def read(streams: Float[Array, "*tokens n w"], weights: Float[Array, "m n *per_token"]) -> Float[Array, "*tokens d"]:
  """The sub-layer's input: the m read vectors side by side."""
  parts = _combine(weights, streams)
  return jax.lax.collapse(parts, parts.ndim - 2).astype(streams.dtype)


def mix_and_write(
  streams: Float[Array, "*tokens n w"],
  mixer: Float[Array, "n n *per_token_mix"] | None,
  weights: Float[Array, "n m *per_token"],
  output: Float[Array, "*tokens d"],
) -> Float[Array, "*tokens n w"]:
  """x' = H x + B y; the identity mixer (None) is not multiplied."""
  parts = output.reshape(*output.shape[:-1], weights.shape[1], streams.shape[-1])
  mixed = streams if mixer is None else _combine(mixer, streams)
  return (mixed + _combine(weights, parts)).astype(streams.dtype)


def split(x: Float[Array, "*tokens d"], n: int, m: int) -> Float[Array, "*tokens n w"]:
  """n streams from m parts of a vector: stream i is a copy of part i mod m."""
  if m == 1:
    return jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], n, x.shape[-1]))
  parts = x.reshape(*x.shape[:-1], m, x.shape[-1] // m)
  return parts if m == n else parts[..., np.arange(n) % m, :]


def join(streams: Float[Array, "*tokens n w"], m: int, how: str) -> Float[Array, "*tokens d"]:
  """The vector whose part s is the mean or sum of the streams i with i mod m = s."""
  combine = jnp.mean if how == "mean" else jnp.sum
  if m == 1:
    return combine(streams, axis=-2)
  n, width = streams.shape[-2:]
  parts = streams if m == n else jnp.stack([combine(streams[..., s::m, :], axis=-2) for s in range(m)], axis=-2)
  return parts.reshape(*streams.shape[:-2], m * width)
