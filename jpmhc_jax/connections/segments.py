"""The apply stage for a sub-layer whose vector is m segments, each as wide as one stream.

    read:           u_s = Σ_j A_sj x_j              s < m
    mix_and_write:  x'_i = Σ_j H_ij x_j + Σ_s B_is y_s

Streams are (*tokens, n, d/m), the sub-layer's input and output (*tokens, d): m = n is the fractional connection, which
splits the width instead of widening it, and m < n the virtual-width one. Coefficients are tokens last, or token-free.
Mixing and writing are one product by [H B]. Sources: Frac-connections (2503.14125), virtual width (2511.11238).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.connections.portable import einsum


def _combine(matrix: Float[Array, "i j *per_token"], parts: Float[Array, "*tokens j w"]) -> Float[Array, "*tokens i w"]:
  """Σ_j M_ij x_j in float32 or wider, back in the dtype of x."""
  matrix = jax.lax.optimization_barrier(matrix)
  tokens = "..." if matrix.ndim > 2 else ""
  wide = parts.astype(jnp.promote_types(parts.dtype, matrix.dtype))
  return einsum(f"ij{tokens},...jw->...iw", matrix, wide).astype(parts.dtype)


def read(streams: Float[Array, "*tokens n w"], weights: Float[Array, "m n *per_token"]) -> Float[Array, "*tokens d"]:
  """The sub-layer's input: the m read vectors side by side."""
  parts = _combine(weights, streams)
  return parts.reshape(*parts.shape[:-2], -1)


def mix_and_write(
  streams: Float[Array, "*tokens n w"],
  mixer: Float[Array, "n n *per_token_mix"] | None,
  weights: Float[Array, "n m *per_token"],
  output: Float[Array, "*tokens d"],
) -> Float[Array, "*tokens n w"]:
  """x' = H x + B y; the identity mixer (None) is not multiplied."""
  parts = output.reshape(*output.shape[:-1], weights.shape[1], streams.shape[-1])
  if mixer is None:
    return streams + _combine(weights, parts)
  tokens = max(mixer.shape[2:], weights.shape[2:], key=len)
  both = [jnp.broadcast_to(_spread(c, len(tokens)), (*c.shape[:2], *tokens)) for c in (mixer, weights)]
  return _combine(jnp.concatenate(both, axis=1), jnp.concatenate([streams, parts.astype(streams.dtype)], axis=-2))


def _spread(coefficient: Array, axes: int) -> Array:
  """A token-free coefficient with one singleton axis for each token axis."""
  return coefficient.reshape(coefficient.shape + (1,) * (axes + 2 - coefficient.ndim))


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
