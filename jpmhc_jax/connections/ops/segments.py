"""The apply stage for a sub-layer whose vector is m segments, each as wide as one stream.

    read:           u_s = Σ_j A_sj x_j              s < m
    mix_and_write:  x'_i = Σ_j H_ij x_j + Σ_s B_is y_s

Streams are (*tokens, n, d/m), the sub-layer's input and output (*tokens, d): m = n is the fractional connection, which
splits the width instead of widening it, and m < n the virtual-width one. Coefficients are tokens last, or token-free.
Sources: Frac-connections (2503.14125), virtual width (2511.11238).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.connections.ops import xla
from jpmhc_jax.connections.ops.contractions import outer_sums
from jpmhc_jax.core.derivatives import custom_derivative

__all__ = ["join", "mix_and_write", "read", "split"]


@custom_derivative
def _combined(
  added: Float[Array, "*tokens i w"] | None,
  matrices: tuple[Float[Array, "i _ ..."], ...],
  parts: tuple[Float[Array, "*tokens _ w"], ...],
) -> Float[Array, "*tokens i w"]:
  """What is added and Σ_j M_ij x_j of every pair, in float32 or wider; rounded once, as what comes first is."""
  terms = [xla.combine(*pair) for pair in zip(matrices, parts, strict=True)]
  if added is None:
    return sum(terms).astype(parts[0].dtype)  # type: ignore[union-attr]
  return sum(terms, added).astype(added.dtype)


def _combined_backward(saved: tuple[Any, Any, Any], cotangent: Array) -> tuple[Any, ...]:
  added, matrices, parts = saved
  to_matrices = (
    xla.summed_if_static(matrix, 2, outer_sums(cotangent, part, matrix))
    for matrix, part in zip(matrices, parts, strict=True)
  )
  to_parts = (xla.combine(jnp.swapaxes(matrix, 0, 1), cotangent) for matrix in matrices)
  rounded = (g.astype(part.dtype) for g, part in zip(to_parts, parts, strict=True))
  return None if added is None else cotangent, tuple(to_matrices), tuple(rounded)


_combined.defvjp(lambda *arguments: (_combined(*arguments), arguments), _combined_backward)


def read(streams: Float[Array, "*tokens n w"], weights: Float[Array, "m n *per_token"]) -> Float[Array, "*tokens d"]:
  """The sub-layer's input: the m read vectors side by side."""
  parts = _combined(None, (weights,), (streams,))
  return jax.lax.collapse(parts, parts.ndim - 2)


def mix_and_write(
  streams: Float[Array, "*tokens n w"],
  mixer: Float[Array, "n n *per_token_mix"] | None,
  weights: Float[Array, "n m *per_token"],
  output: Float[Array, "*tokens d"],
) -> Float[Array, "*tokens n w"]:
  """x' = H x + B y; the identity mixer (None) is not multiplied."""
  parts = output.reshape(*output.shape[:-1], weights.shape[1], streams.shape[-1])
  if mixer is None:
    return _combined(streams, (weights,), (parts,))
  return _combined(None, (mixer, weights), (streams, parts))


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
