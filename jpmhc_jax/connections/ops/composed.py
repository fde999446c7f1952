"""One pass over the streams, made of the operators of a back end: the formulas that its kernels for one pass equal.

    z = H x + b ⊗ y,   x' = r z with r_i = (mean_d z_i² + ε)^(−1/2), or x' = z;   Σ x' W,  Σ x'²,  u = Σ_j a_j x'_j

and backward, with all that flows into x' in one sum:

    g = x̄' + a ū + W s̄ + 2 x' q̄,   ḡ = r (g − x' mean_d(g x')), or g
    x̄ = Hᵀ ḡ,  H̄ = Σ_d ḡ_i x_j,  b̄ = Σ_d ḡ y,  ȳ = Σ_i b_i ḡ_i,  W̄ = Σ_tokens x' s̄,  ā = Σ_d ū x'
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.core.sharding import constrain_rows
from jpmhc_jax.core.xla import fusion_barrier

__all__ = ["Advanced", "Composed", "Flowing", "Operands"]


class Advanced(NamedTuple):
  """What one pass makes; None for what was not asked for. The streams and the vector are in the dtype of x."""

  streams: Float[Array, "*tokens n d"]
  scale: Float[Array, "n *tokens"] | None = None  # r, of streams that are normed
  products: Float[Array, "k *tokens"] | None = None
  square: Float[Array, "*tokens"] | None = None
  vector: Float[Array, "*tokens d"] | None = None


class Operands(NamedTuple):
  """What one pass takes, or the gradients by it: x, H, b, y, W and a; None for what is not there.

  H=None is the identity, W=None asks for no statistics, a=None for no read.
  """

  streams: Float[Array, "*tokens n d"]
  mixer: Float[Array, "n n *per_token_mix"] | None
  weights: Float[Array, "n *per_token"]
  output: Float[Array, "*tokens d"]
  kernel: Float[Array, "n d k"] | None = None
  read: Float[Array, "n *per_token_read"] | None = None


class Flowing(NamedTuple):
  """What flows back into x' and its statistics and read; `weights` are a of the read. None where there is none."""

  streams: Float[Array, "*tokens n d"]  # x̄'
  products: Float[Array, "k *tokens"] | None = None  # s̄
  square: Float[Array, "*tokens"] | None = None  # q̄
  vector: Float[Array, "*tokens d"] | None = None  # ū
  weights: Float[Array, "n *per_token"] | None = None


@dataclasses.dataclass(frozen=True)
class Composed:
  """`StreamOps.advance` and its backward pass from these operators of a back end."""

  mix: Callable[..., Array]
  write: Callable[..., Array]
  read: Callable[..., Array]
  statistics: Callable[..., tuple[Array, Array]]
  coefficients_backward: Callable[..., tuple[Array, Array, Array]]
  write_backward: Callable[..., tuple[Array, Array]]
  kernel_backward: Callable[..., Array]
  weights_backward: Callable[..., Array]
  streams_backward: Callable[..., Array]

  def advance(self, operands: Operands, epsilon: float | None) -> Advanced:
    """See `StreamOps.advance`."""
    x, mixer, weights, y, kernel, read = operands
    mixed = x + self.write(weights, y) if mixer is None else self.mix(x, mixer, weights, y)
    scale = None
    if epsilon is not None:
      wide = fusion_barrier(mixed.astype(jnp.promote_types(x.dtype, jnp.float32)))
      scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
      mixed, scale = wide * scale, jnp.moveaxis(scale[..., 0], -1, 0)
    result = Advanced(constrain_rows(mixed.astype(x.dtype)), scale)  # whole features in front of the kernel's
    if kernel is not None:
      products, square = self.statistics(result.streams, kernel)
      result = result._replace(products=products, square=square)
    if read is not None:
      result = result._replace(vector=self.read(result.streams, read).astype(x.dtype))
    return result

  def advance_backward(
    self, operands: Operands, epsilon: float | None, advanced: Advanced, flowing: Flowing
  ) -> Operands:
    """See `StreamOps.advance_backward`."""
    (x, mixer, weights, y, kernel, read), (after, scale, *_) = operands, advanced
    cotangent: Any = flowing.streams
    if flowing.vector is not None or kernel is not None:
      cotangent = self.streams_backward(
        after,
        mixed=(cotangent, None),
        read=None if flowing.vector is None else (flowing.vector, flowing.weights),
        projected=None if kernel is None else (kernel, flowing.products, flowing.square),
      )
    if scale is not None:
      # As in a norm by itself: without the barrier XLA on the CPU computes the sum twice, once for each of its uses.
      cotangent = jax.lax.optimization_barrier(cotangent.astype(scale.dtype))
      normed = after.astype(scale.dtype)
      along = jnp.mean(cotangent * normed, axis=-1, keepdims=True)
      cotangent = jnp.moveaxis(scale, 0, -1)[..., None] * (cotangent - along * normed)
    cotangent = cotangent.astype(x.dtype)
    if mixer is None:
      to_mixer, to_streams = None, cotangent
      to_weights, to_output = self.write_backward(weights, y, cotangent)
    else:
      to_mixer, to_weights, to_output = self.coefficients_backward(x, mixer, weights, y, cotangent)
      to_streams = self.streams_backward(x, mixed=(cotangent, mixer))
    to_kernel = None if kernel is None else self.kernel_backward(after, kernel, flowing.products)
    to_read = None if read is None else self.weights_backward(after, read, flowing.vector)
    return Operands(to_streams, to_mixer, to_weights, to_output, to_kernel, to_read)
