"""`StreamOps` in plain JAX, and the generator's other products: the formulas that all back ends equal.

Arrays may have any float dtype. Arithmetic and results are in the coefficients' float32 or wider, but for W s̄ of bf16
streams, which is rounded to bf16 as everything is that flows into their gradient.

Sums over the n streams are elementwise sums of broadcast products: XLA fuses them with what produces or consumes the
streams. Sums over the d features are in `contractions`. Coefficients are transposed to tokens first behind an
optimisation barrier: without it the compiler recomputes a sigmoid, or strides over the tokens, for each of the d
features.

Measured per operation on 2 CPU cores (1,856 tokens, n = 4, d = 128; a copy of the streams takes 0.1 ms): mix 0.17 ms
(0.28 as a batched product), its transpose 0.16 ms (0.40), H̄ 0.26 ms in lanes (0.39 as a batched product, 1.3 without
one), the generator's products 0.45 ms (1.1–1.9 without the barrier).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.connections.ops.composed import Composed
from jpmhc_jax.connections.ops.contractions import (
  einsum,
  outer_sums,
  product,
  rows_times,
  square_sums,
  times_rows,
  wide,
)
from jpmhc_jax.core import sharding
from jpmhc_jax.core.xla import fusion_barrier

__all__ = [
  "advance", "advance_backward", "coefficients_backward", "combine", "fuses", "implementation", "kernel_backward",
  "mix", "moments", "moments_backward", "normed_products", "normed_products_backward", "products", "products_backward",
  "read", "statistics", "streams_backward", "summed_if_static", "weights_backward", "write", "write_backward",
]  # fmt: skip

fuses = False  # XLA itself fuses the terms of the streams' gradient
implementation = "xla"

_Streams = Float[Array, "*tokens n d"]
_Vector = Float[Array, "*tokens d"]


def _rows(coefficient: Array, axes: int, tokens: int) -> Array:
  """Tokens first, each with `axes` coefficient axes, and a singleton for d; singleton tokens for a static one."""
  if coefficient.ndim == axes:
    rows = coefficient.reshape((1,) * tokens + coefficient.shape)
  else:
    rows = jax.lax.optimization_barrier(jnp.moveaxis(coefficient, range(axes), range(-axes, 0)))
  return rows[..., None]


def summed_if_static(coefficient: Array, axes: int, gradients: Float[Array, "..."]) -> Array:
  """Gradients of every token, summed over the tokens for a static coefficient.

  In one contraction over tokens and features with the streams between them, XLA would transpose the streams first.
  """
  return gradients if coefficient.ndim > axes else jnp.sum(gradients, axis=range(axes, gradients.ndim))


def combine(matrix: Float[Array, "i j *per_token"], x: Float[Array, "*tokens j d"]) -> Float[Array, "*tokens i d"]:
  """Σ_j M_ij x_j."""
  rows = _rows(matrix, 2, x.ndim - 2)
  return sum(rows[..., j, :] * wide(x[..., j, None, :], matrix) for j in range(x.shape[-2]))  # type: ignore[return-value]


def read(x: _Streams, weights: Float[Array, "n *per_token"]) -> _Vector:
  """Σ_j a_j x_j: a matrix product where it needs no copy of the streams, so that users of u do not compute it again.

  On a GPU the product would copy the streams (8 streams, a layer and its gradient: 45 copies instead of 29).
  """
  if sharding.platform() != "gpu" and weights.ndim > 1 and x.dtype == weights.dtype:
    return einsum("j...,...jd->...d", jax.lax.optimization_barrier(weights), x)
  rows = _rows(weights, 1, x.ndim - 2)
  return sum(rows[..., j, :] * wide(x[..., j, :], weights) for j in range(x.shape[-2]))  # type: ignore[return-value]


def weights_backward(
  x: _Streams, weights: Float[Array, "n *per_token"], cotangent: _Vector
) -> Float[Array, "n *per_token"]:
  """ā_j = Σ_d ū x_j."""
  return summed_if_static(weights, 1, outer_sums(x, cotangent[..., None, :], weights)[:, 0])


def mix(
  x: _Streams, mixer: Float[Array, "n n *per_token_mix"], weights: Float[Array, "n *per_token"], y: _Vector
) -> _Streams:
  """Σ_j H_ij x_j + b_i y."""
  return combine(mixer, x) + write(weights, y)


def coefficients_backward(
  x: _Streams,
  mixer: Float[Array, "n n *per_token_mix"],
  weights: Float[Array, "n *per_token"],
  y: _Vector,
  cotangent: _Streams,
) -> tuple[Array, Array, Array]:
  """H̄_ij = Σ_d x̄'_i x_j,  b̄_i = Σ_d x̄'_i y,  ȳ = Σ_i b_i x̄'_i."""
  to_mixer = summed_if_static(mixer, 2, outer_sums(cotangent, x, mixer))
  return to_mixer, *write_backward(weights, y, cotangent)


def write(weights: Float[Array, "n *per_token"], y: _Vector) -> _Streams:
  """b_i y."""
  return _rows(weights, 1, y.ndim - 1) * wide(y, weights)[..., None, :]


def write_backward(weights: Float[Array, "n *per_token"], y: _Vector, cotangent: _Streams) -> tuple[Array, Array]:
  """b̄_i = Σ_d x̄'_i y,  ȳ = Σ_i b_i x̄'_i."""
  to_weights = summed_if_static(weights, 1, outer_sums(cotangent, y[..., None, :], weights)[:, 0])
  return to_weights, read(cotangent, weights)


def products(x: _Streams, kernel: Float[Array, "m d k"]) -> Float[Array, "k *per_kernel"]:
  """Σ x W, tokens last. The barrier keeps the transposition out of the product, which would transpose x instead."""
  return jnp.moveaxis(jax.lax.optimization_barrier(rows_times(_side_by_side(x, kernel), _flat_rows(kernel))), -1, 0)


def products_backward(
  x: _Streams, kernel: Float[Array, "m d k"], cotangent: Float[Array, "k *per_kernel"]
) -> tuple[Array, Array]:
  """x̄ = W s̄,  W̄ = Σ_tokens x s̄.

  `finished` surrounds s̄ and every factor of x that is added to this x̄. Without it XLA on the CPU, from 4,096 tokens on,
  gives the sum of all terms of x̄ to a library call, which copies every stream that a mixer is applied to. The barrier
  around W s̄ lets XLA write that sum over it; a GPU's compiler does so without.
  """
  cotangent = fusion_barrier(cotangent)
  return _to_streams(x, kernel, cotangent), _to_kernel(x, kernel, cotangent)


def _to_streams(x: _Streams, kernel: Float[Array, "m d k"], cotangent: Float[Array, "k *per_kernel"]) -> _Streams:
  to_x = product(jnp.moveaxis(cotangent, 0, -1), _flat_rows(kernel).T, x.dtype).reshape(x.shape)
  return jax.lax.optimization_barrier(to_x) if sharding.platform() == "cpu" else to_x


def _to_kernel(
  x: _Streams, kernel: Float[Array, "m d k"], cotangent: Float[Array, "k *per_kernel"]
) -> Float[Array, "m d k"]:
  sums = jax.lax.optimization_barrier(times_rows(cotangent, _side_by_side(x, kernel)))
  return jnp.swapaxes(sums, 0, 1).reshape(kernel.shape)


def normed_products(x: _Streams, kernel: Float[Array, "n d k"], epsilon: float) -> Float[Array, "k *tokens"]:
  """Σ_s r_s x_s W_s with r_s = (mean_d x_s² + ε)^(−1/2) of stream s alone."""
  scaled = zip(_stream_scales(x, kernel, epsilon), _stream_products(x, kernel), strict=True)
  result: Array = sum(scale[None] * own for scale, own in scaled)
  return result


def normed_products_backward(
  x: _Streams, kernel: Float[Array, "n d k"], epsilon: float, cotangent: Float[Array, "k *tokens"]
) -> tuple[Array, Array]:
  """x̄_s = r_s W_s s̄ − r_s³ (Σ_k s̄ x_s W_s) x_s / d,  W̄_s = Σ_tokens x_s r_s s̄."""
  scales = _stream_scales(x, kernel, epsilon)
  along = jnp.stack([jnp.sum(cotangent * own, axis=0) for own in _stream_products(x, kernel)])
  slopes = _rows(fusion_barrier(scales**3 * along / x.shape[-1]), 1, x.ndim - 2)
  to_x = _rows(fusion_barrier(scales), 1, x.ndim - 2) * _to_streams(
    x, kernel, fusion_barrier(cotangent)
  ) - slopes * wide(x, kernel)
  to_kernel = [
    _to_kernel(stream, own, fusion_barrier(scale[None] * cotangent))
    for stream, own, scale in zip(*_streams_alone(x, kernel), scales, strict=True)
  ]
  return to_x, jnp.concatenate(to_kernel)


def _streams_alone(x: _Streams, kernel: Float[Array, "n d k"]) -> tuple[list[Array], list[Array]]:
  return jnp.split(x, len(kernel), axis=-2), jnp.split(kernel, len(kernel))


def _stream_products(x: _Streams, kernel: Float[Array, "n d k"]) -> list[Float[Array, "k *tokens"]]:
  return [products(*alone) for alone in zip(*_streams_alone(x, kernel), strict=True)]


def _stream_scales(x: _Streams, kernel: Float[Array, "n d k"], epsilon: float) -> Float[Array, "n *tokens"]:
  return jnp.moveaxis(jax.lax.rsqrt(square_sums(x, kernel) / x.shape[-1] + epsilon), -1, 0)


def moments(
  x: _Streams, kernel: Float[Array, "m d k"], epsilon: float
) -> tuple[Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"], Float[Array, "*per_kernel"]]:
  """Σ x W, and over all that W sees μ = mean x and r = (mean (x − μ)² + ε)^(−1/2): what a layer norm needs."""
  size = math.prod(kernel.shape[:2])
  sums = products(x, jnp.concatenate([kernel, jnp.ones_like(kernel[..., :1])], axis=-1))
  mean = sums[-1] / size
  squares = square_sums(x, kernel, mean if mean.ndim == x.ndim - 1 else mean[..., None])
  return sums[:-1], mean, jax.lax.rsqrt(_over_seen(squares, kernel) / size + epsilon)


def moments_backward(
  x: _Streams,
  kernel: Float[Array, "m d k"],
  mean: Float[Array, "*per_kernel"],
  scale: Float[Array, "*per_kernel"],
  of_products: Float[Array, "k *per_kernel"],
  of_mean: Float[Array, "*per_kernel"],
  of_scale: Float[Array, "*per_kernel"],
) -> tuple[Array, Array]:
  """x̄ = W s̄ + μ̄/N − (x − μ) r³ r̄/N with N = m·d,  W̄ = Σ_tokens x s̄."""
  size = math.prod(kernel.shape[:2])
  slope = -(scale**3) * of_scale / size
  slope, offset = fusion_barrier(slope), fusion_barrier(of_mean / size - slope * mean)
  to_x, to_kernel = products_backward(x, kernel, of_products)
  return to_x + _beside(offset, x) + _beside(slope, x) * wide(x, kernel), to_kernel


def statistics(
  x: _Streams, kernel: Float[Array, "m d k"]
) -> tuple[Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"]]:
  """Σ x W and Σ x²: all that an RMS norm in front of W needs of the streams."""
  return products(x, kernel), _over_seen(square_sums(x, kernel), kernel)


def kernel_backward(
  x: _Streams, kernel: Float[Array, "m d k"], of_products: Float[Array, "k *per_kernel"]
) -> Float[Array, "m d k"]:
  """W̄ = Σ_tokens x s̄."""
  return _to_kernel(x, kernel, fusion_barrier(of_products))


def streams_backward(
  x: _Streams,
  mixed: tuple[_Streams, Float[Array, "n n *per_token_mix"] | None] | None = None,
  read: tuple[_Vector, Float[Array, "n *per_token"]] | None = None,
  projected: tuple[Float[Array, "m d k"], Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"]] | None = None,
) -> _Streams:
  """x̄ = Hᵀ x̄' + a ū + (W s̄ + 2 x q̄)."""
  terms: list[Array] = []
  if mixed is not None:
    cotangent, mixer = mixed
    terms.append(cotangent if mixer is None else combine(jnp.swapaxes(mixer, 0, 1), cotangent))
  if read is not None:
    vector, weights = read
    terms.append(_rows(weights, 1, x.ndim - 2) * wide(vector, weights)[..., None, :])
  if projected is not None:
    kernel, of_products, of_square = projected
    of_square = jax.lax.optimization_barrier(fusion_barrier(of_square))
    to_x = _to_streams(x, kernel, fusion_barrier(of_products))
    terms.append(to_x + 2.0 * _beside(of_square, x) * wide(x, kernel))
  return sum(terms[1:], terms[0])


_pass = Composed(
  mix, write, read, statistics, coefficients_backward, write_backward, kernel_backward, weights_backward,
  streams_backward,
)  # fmt: skip
advance, advance_backward = _pass.advance, _pass.advance_backward


def _side_by_side(x: _Streams, kernel: Float[Array, "m d k"]) -> Float[Array, "*per_kernel f"]:
  """What one product sees, all streams of a token or each: over two axes a contraction would copy the streams."""
  return jax.lax.collapse(x, x.ndim - 2) if kernel.shape[0] == x.shape[-2] else x


def _over_seen(sums: Float[Array, "*tokens n"], kernel: Float[Array, "m d k"]) -> Float[Array, "*per_kernel"]:
  return jnp.sum(sums, axis=-1) if kernel.shape[0] == sums.shape[-1] else sums


def _beside(scalars: Float[Array, "*per_kernel"], x: _Streams) -> Float[Array, "..."]:
  return scalars.reshape(scalars.shape + (1,) * (x.ndim - scalars.ndim))


def _flat_rows(kernel: Float[Array, "m d k"]) -> Float[Array, "f k"]:
  return kernel.reshape(-1, kernel.shape[-1])
