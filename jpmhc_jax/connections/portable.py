"""The apply stage and the generator's products in plain JAX: what runs where no kernel does, and what kernels equal.

Arrays of any float dtype come in; the arithmetic and the results are in the coefficients' float32, or wider.

Sums over the n streams are elementwise sums of broadcast products, which XLA fuses with whatever produces or consumes
the streams; sums over the d features are batched matrix products, because XLA vectorises its own reductions badly,
but for the n² sums of a mixer's gradient on the CPU (see `outer_sums`).
Coefficients are turned tokens first behind an optimisation barrier, so that no compiler recomputes a sigmoid or strides
over tokens for each of the d features. Measured per operation on 2 CPU cores (1,856 tokens, n = 4, d = 128, a copy of
the streams takes 0.1 ms): mix 0.17 ms, and 0.28 as a batched product; its transpose 0.16 and 0.40; H̄ 0.26 in lanes,
0.39 as a batched product and 1.3 without one; the generator's products 0.45, and 1.1–1.9 without the barrier.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.core import layout
from jpmhc_jax.core.fusion import finished

_Streams = Float[Array, "*tokens n d"]
_Vector = Float[Array, "*tokens d"]
# Accelerators else round what goes into a float32 product to bf16 or TF32, streams that only pass through it included.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
_LARGE = 8  # above this many streams n² broadcast products cost more than a batched matrix product
_LANES = (8, 16, 32)  # features that a sum over all of them keeps apart until its last step: its steps are vectors
_STEPS = 64  # of such a sum at most: they are written out in the program


def wide(x: Array, coefficient: Array) -> Array:
  """x in the coefficient's dtype where that is wider."""
  return x.astype(jnp.promote_types(x.dtype, coefficient.dtype))


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
  x = wide(x, matrix)
  if x.shape[-2] > _LARGE:
    matrix = jax.lax.optimization_barrier(matrix)
    return einsum("ij...,...jd->...id" if matrix.ndim > 2 else "ij,...jd->...id", matrix, x)
  rows = _rows(matrix, 2, x.ndim - 2)
  return sum(rows[..., j, :] * x[..., j, None, :] for j in range(x.shape[-2]))  # type: ignore[return-value]


def read(x: _Streams, weights: Float[Array, "n *per_token"]) -> _Vector:
  """Σ_j a_j x_j."""
  if weights.ndim == 1:
    rows = _rows(weights, 1, x.ndim - 2)
    return sum(rows[..., j, :] * wide(x[..., j, :], weights) for j in range(x.shape[-2]))  # type: ignore[return-value]
  weights = jax.lax.optimization_barrier(weights)
  return einsum("j...,...jd->...d", weights, wide(x, weights))


def read_backward(x: _Streams, weights: Float[Array, "n *per_token"], cotangent: _Vector) -> tuple[Array, Array]:
  """x̄_j = a_j ū,  ā_j = Σ_d ū x_j (summed over the tokens too when a is static)."""
  x, cotangent = wide(x, weights), wide(cotangent, weights)
  to_streams = _rows(weights, 1, x.ndim - 2) * cotangent[..., None, :]
  return to_streams, summed_if_static(weights, 1, einsum("...d,...jd->j...", cotangent, x))


def mix(
  x: _Streams, mixer: Float[Array, "n n *per_token_mix"], weights: Float[Array, "n *per_token"], y: _Vector
) -> _Streams:
  """Σ_j H_ij x_j + b_i y."""
  return combine(mixer, x) + write(weights, y)


def mix_backward(
  x: _Streams,
  mixer: Float[Array, "n n *per_token_mix"],
  weights: Float[Array, "n *per_token"],
  y: _Vector,
  cotangent: _Streams,
) -> tuple[Array, Array, Array, Array]:
  """x̄_j = Σ_i H_ij x̄'_i,  H̄_ij = Σ_d x̄'_i x_j,  b̄_i = Σ_d x̄'_i y,  ȳ = Σ_i b_i x̄'_i."""
  x, cotangent = wide(x, mixer), wide(cotangent, mixer)
  to_streams = combine(jnp.swapaxes(mixer, 0, 1), cotangent)
  to_mixer = summed_if_static(mixer, 2, outer_sums(cotangent, x))
  return to_streams, to_mixer, *write_backward(weights, y, cotangent)


def outer_sums(y: Float[Array, "*tokens i d"], x: Float[Array, "*tokens j d"]) -> Float[Array, "i j *tokens"]:
  """Σ_d y_i x_j.

  XLA's batched product on the CPU packs one factor anew for every token, and reaches a quarter of the bandwidth. There
  the features are summed elementwise but for some lanes, and these by one product with ones.
  """
  n, d = max(y.shape[-2], x.shape[-2]), x.shape[-1]
  lanes = next((size for size in _LANES if d % size == 0 and d // size <= _STEPS), d)
  if layout.platform() != "cpu" or n > _LARGE or 2 * n * lanes > d:
    return einsum("...id,...jd->ij...", y, x)
  y, x = (a.reshape(*a.shape[:-1], d // lanes, lanes) for a in (y, x))
  first, *others = (y[..., :, None, step, :] * x[..., None, :, step, :] for step in range(d // lanes))
  sums = _matmul(sum(others, first), jnp.ones(lanes, y.dtype))
  return jnp.moveaxis(jax.lax.optimization_barrier(sums), (-2, -1), (0, 1))


def write(weights: Float[Array, "n *per_token"], y: _Vector) -> _Streams:
  """b_i y."""
  return _rows(weights, 1, y.ndim - 1) * wide(y, weights)[..., None, :]


def write_backward(weights: Float[Array, "n *per_token"], y: _Vector, cotangent: _Streams) -> tuple[Array, Array]:
  """b̄_i = Σ_d x̄'_i y,  ȳ = Σ_i b_i x̄'_i."""
  y, cotangent = wide(y, weights), wide(cotangent, weights)
  return summed_if_static(weights, 1, einsum("...id,...d->i...", cotangent, y)), read(cotangent, weights)


def products(x: _Streams, kernel: Float[Array, "n d k"]) -> Float[Array, "k *tokens"]:
  """Σ x W, tokens last; the transposition of the result stays out of the product, which would transpose x for it."""
  return jnp.moveaxis(jax.lax.optimization_barrier(_matmul(_flat(wide(x, kernel)), _flat_rows(kernel))), -1, 0)


def products_backward(
  x: _Streams, kernel: Float[Array, "n d k"], cotangent: Float[Array, "k *tokens"]
) -> tuple[Array, Array]:
  """x̄ = W s̄,  W̄ = Σ_tokens x s̄.

  s̄ is finished, and so is every factor of x that is added to this x̄, so that XLA on the CPU leaves the sum of all that
  flows into x̄ to its own loops. Its library else takes the sum in by way of them, from 4,096 tokens on, with a copy of
  every stream that a mixer is applied to.
  """
  cotangent = finished(cotangent)
  to_kernel = einsum("k...,...f->kf", cotangent, _flat(wide(x, cotangent)))
  rows, columns = jax.lax.optimization_barrier((jnp.moveaxis(cotangent, 0, -1), _flat_rows(kernel).T))
  to_kernel = jnp.swapaxes(jax.lax.optimization_barrier(to_kernel), 0, 1)
  return _matmul(rows, columns).reshape(x.shape), to_kernel.reshape(kernel.shape)


def normed_products(x: _Streams, kernel: Float[Array, "n d k"], epsilon: float) -> Float[Array, "k *tokens"]:
  """Σ_s r_s x_s W_s with r_s = (mean_d x_s² + ε)^(−1/2) of stream s alone."""
  x = wide(x, kernel)
  return products(_stream_scales(x, epsilon) * x, kernel)


def normed_products_backward(
  x: _Streams, kernel: Float[Array, "n d k"], epsilon: float, cotangent: Float[Array, "k *tokens"]
) -> tuple[Array, Array]:
  """x̄_s = r_s ȳ_s − r_s³ mean_d(ȳ_s x_s) x_s with ȳ = W s̄,  W̄ = Σ_tokens r x s̄."""
  x = wide(x, kernel)
  scales = _stream_scales(x, epsilon)
  to_normed, to_kernel = products_backward(scales * x, kernel, cotangent)
  along = jnp.mean(to_normed * x, axis=-1, keepdims=True)
  return scales * to_normed - finished(scales**3 * along) * x, to_kernel


def moments(
  x: _Streams, kernel: Float[Array, "n d k"], epsilon: float
) -> tuple[Float[Array, "k *tokens"], Float[Array, "*tokens"], Float[Array, "*tokens"]]:
  """Σ x W, μ = mean x and r = (mean (x − μ)² + ε)^(−1/2) over all streams: what a layer norm in front of W needs."""
  x = wide(x, kernel)
  mean = jnp.mean(x, axis=(-2, -1))
  variance = jnp.mean(jnp.square(x - mean[..., None, None]), axis=(-2, -1))
  return products(x, kernel), mean, jax.lax.rsqrt(variance + epsilon)


def moments_backward(
  x: _Streams,
  kernel: Float[Array, "n d k"],
  mean: Float[Array, "*tokens"],
  scale: Float[Array, "*tokens"],
  of_products: Float[Array, "k *tokens"],
  of_mean: Float[Array, "*tokens"],
  of_scale: Float[Array, "*tokens"],
) -> tuple[Array, Array]:
  """x̄ = W s̄ + μ̄/N − (x − μ) r³ r̄/N with N = n·d,  W̄ = Σ_tokens x s̄."""
  size = x.shape[-2] * x.shape[-1]
  slope = -(scale**3) * of_scale / size
  slope, offset = finished(slope), finished(of_mean / size - slope * mean)
  to_x, to_kernel = products_backward(x, kernel, of_products)
  return to_x + offset[..., None, None] + slope[..., None, None] * wide(x, kernel), to_kernel


def seen(x: _Streams, kernel: Float[Array, "m d k"]) -> Float[Array, "*per_kernel m d"]:
  """What one product with the kernel sees: all streams of a token, or each of them."""
  return x if kernel.shape[0] == x.shape[-2] else x[..., None, :]


def _stream_scales(x: _Streams, epsilon: float) -> Float[Array, "*tokens n 1"]:
  return jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


def _flat(x: _Streams) -> Float[Array, "*tokens f"]:
  """The streams side by side: a contraction over two axes takes them in an order that copies the streams."""
  return jax.lax.collapse(x, x.ndim - 2)


def _flat_rows(kernel: Float[Array, "n d k"]) -> Float[Array, "f k"]:
  return kernel.reshape(-1, kernel.shape[-1])


def statistics(x: _Streams, kernel: Float[Array, "n d k"]) -> tuple[Float[Array, "k *tokens"], Float[Array, "*tokens"]]:
  """Σ x W and Σ x²: all that an RMS norm in front of W needs of the streams."""
  return products(x, kernel), jnp.sum(jnp.square(wide(x, kernel)), axis=(-2, -1))


def statistics_backward(
  x: _Streams, kernel: Float[Array, "n d k"], of_products: Float[Array, "k *tokens"], of_square: Float[Array, "*tokens"]
) -> tuple[Array, Array]:
  """x̄ = W s̄ + 2 x q̄,  W̄ = Σ_tokens x s̄."""
  to_x, to_kernel = products_backward(x, kernel, of_products)
  of_square = jax.lax.optimization_barrier(finished(of_square))
  return to_x + 2.0 * of_square[..., None, None] * wide(x, kernel), to_kernel
