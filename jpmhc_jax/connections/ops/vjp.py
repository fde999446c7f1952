"""The apply stage with its derivatives: read one vector from n streams, mix the streams and write the output back.

    read:           u = Σ_j a_j x_j
    mix_and_write:  x'_i = Σ_j H_ij x_j + b_i y

Streams are (*tokens, n, d) in any float dtype; coefficients are tokens last, (n, n, *tokens), or token-free for static
mixers, always float32 or wider, and so is the arithmetic. Each direction is one operator; the backward pass saves the
inputs only. `ops` is the back end that computes (see `base`). `FusedStreams` in place of the streams collect the terms
of their gradient, which is then made in one piece.

In forward mode all back ends take the derivative of the formulas in plain JAX.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from jpmhc_jax.connections.ops import fused_streams, xla
from jpmhc_jax.connections.ops.base import StreamOps
from jpmhc_jax.connections.ops.fused_streams import FusedStreams
from jpmhc_jax.core.derivatives import custom_derivative

__all__ = ["mix_and_write", "moments", "normed_products", "products", "read", "statistics", "write"]

_Streams = Float[Array, "*tokens n d"]
_Vector = Float[Array, "*tokens d"]
_Arrays = tuple[Array, ...]


def read(
  streams: Float[Array, "*tokens n d"] | FusedStreams, weights: Float[Array, "n *per_token"], ops: StreamOps = xla
) -> _Vector:
  """u = Σ_j a_j x_j, in the streams' dtype."""
  if isinstance(streams, FusedStreams):
    return fused_streams.read(streams, weights, ops)
  return _read(streams, weights, ops)


@functools.partial(custom_derivative, nondiff_argnums=(2,))
def _read(streams: Array, weights: Array, ops: StreamOps) -> Array:
  return ops.read(streams, weights).astype(streams.dtype)


def _read_forward(streams: Array, weights: Array, ops: StreamOps) -> tuple[Array, _Arrays]:
  return _read(streams, weights, ops), (streams, weights)


def _read_backward(ops: StreamOps, saved: _Arrays, cotangent: Array) -> tuple[Any, ...]:
  streams, weights = saved
  to_streams = ops.streams_backward(streams, read=(cotangent, weights))
  return _like((to_streams, ops.weights_backward(streams, weights, cotangent)), saved)


def _read_tangent(ops: StreamOps, saved: _Arrays, *tangents: Array) -> Array:
  result: Array = jax.jvp(xla.read, saved, tangents)[1].astype(saved[0].dtype)
  return result


_read.defvjp(_read_forward, _read_backward, _read_tangent)


def mix_and_write(
  streams: Float[Array, "*tokens n d"] | FusedStreams,
  mixer: Float[Array, "n n *per_token_mix"],
  weights: Float[Array, "n *per_token"],
  output: _Vector,
  ops: StreamOps = xla,
) -> _Streams:
  """x'_i = Σ_j H_ij x_j + b_i y, in the streams' dtype."""
  if isinstance(streams, FusedStreams):
    return fused_streams.mix_and_write(streams, mixer, weights, output, ops)
  return _mix_and_write(streams, mixer, weights, output, ops)


@functools.partial(custom_derivative, nondiff_argnums=(4,))
def _mix_and_write(streams: Array, mixer: Array, weights: Array, output: Array, ops: StreamOps) -> Array:
  return ops.mix(streams, mixer, weights, output).astype(streams.dtype)


def _mix_and_write_forward(
  streams: Array, mixer: Array, weights: Array, output: Array, ops: StreamOps
) -> tuple[Array, _Arrays]:
  return _mix_and_write(streams, mixer, weights, output, ops), (streams, mixer, weights, output)


def _mix_and_write_backward(ops: StreamOps, saved: _Arrays, cotangent: Array) -> tuple[Any, ...]:
  streams, mixer, weights, output = saved
  to_streams = ops.streams_backward(streams, mixed=(cotangent, mixer))
  return _like((to_streams, *ops.coefficients_backward(streams, mixer, weights, output, cotangent)), saved)


def _mix_and_write_tangent(ops: StreamOps, saved: _Arrays, *tangents: Array) -> Array:
  result: Array = jax.jvp(xla.mix, saved, tangents)[1].astype(saved[0].dtype)
  return result


_mix_and_write.defvjp(_mix_and_write_forward, _mix_and_write_backward, _mix_and_write_tangent)


def write(
  streams: Float[Array, "*tokens n d"] | FusedStreams, weights: Float[Array, "n *per_token"], output: _Vector
) -> _Streams:
  """x'_i = x_i + b_i y: the identity mixer, without the product by I; XLA fuses it, so there is no kernel."""
  if isinstance(streams, FusedStreams):
    return fused_streams.write(streams, weights, output)
  return _write(streams, weights, output)


@custom_derivative
def _write(streams: Array, weights: Array, output: Array) -> Array:
  return (streams + xla.write(weights, output)).astype(streams.dtype)


def _write_forward(streams: Array, weights: Array, output: Array) -> tuple[Array, _Arrays]:
  return _write(streams, weights, output), (weights, output)


def _write_backward(saved: _Arrays, cotangent: Array) -> tuple[Any, ...]:
  weights, output = saved
  return cotangent, *_like(xla.write_backward(weights, output, cotangent), saved)


_write.defvjp(_write_forward, _write_backward)


def statistics(
  streams: Float[Array, "*tokens n d"] | FusedStreams, kernel: Float[Array, "m d k"], ops: StreamOps = xla
) -> tuple[Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"]]:
  """Σ x W and Σ x² of every token, in one pass over the streams where a kernel computes them.

  The kernel has m = n streams, or m = 1: then each stream is a token of its own, and per_kernel is (*tokens, n).
  """
  if isinstance(streams, FusedStreams):
    return fused_streams.statistics(streams, kernel, ops)
  return _statistics(streams, kernel, ops)


@functools.partial(custom_derivative, nondiff_argnums=(2,))
def _statistics(streams: Array, kernel: Array, ops: StreamOps) -> tuple[Array, Array]:
  return ops.statistics(streams, kernel)


def _statistics_forward(streams: Array, kernel: Array, ops: StreamOps) -> tuple[tuple[Array, Array], _Arrays]:
  return _statistics(streams, kernel, ops), (streams, kernel)


def _statistics_backward(ops: StreamOps, saved: _Arrays, cotangents: tuple[Array, Array]) -> tuple[Any, ...]:
  streams, kernel = saved
  of_products, of_square = cotangents
  to_streams = ops.streams_backward(streams, projected=(kernel, of_products, of_square))
  return _like((to_streams, ops.kernel_backward(streams, kernel, of_products)), saved)


def _statistics_tangent(ops: StreamOps, saved: _Arrays, *tangents: Array) -> tuple[Array, Array]:
  result: tuple[Array, Array] = jax.jvp(xla.statistics, saved, tangents)[1]
  return result


_statistics.defvjp(_statistics_forward, _statistics_backward, _statistics_tangent)


@custom_derivative
def products(streams: _Streams, kernel: Float[Array, "m d k"]) -> Float[Array, "k *per_kernel"]:
  """Σ x W of every token."""
  return xla.products(streams, kernel)


def _products_backward(saved: _Arrays, cotangent: Array) -> tuple[Any, ...]:
  streams, kernel = saved
  return _like(xla.products_backward(streams, kernel, cotangent), saved)


products.defvjp(lambda *arguments: (products(*arguments), arguments), _products_backward)


@functools.partial(custom_derivative, nondiff_argnums=(2,))
def normed_products(streams: _Streams, kernel: Float[Array, "n d k"], epsilon: float) -> Float[Array, "k *tokens"]:
  """Σ_s r_s x_s W_s of every token, with r_s = (mean_d x_s² + ε)^(−1/2) of stream s alone."""
  return xla.normed_products(streams, kernel, epsilon)


def _normed_products_forward(streams: Array, kernel: Array, epsilon: float) -> tuple[Array, _Arrays]:
  return normed_products(streams, kernel, epsilon), (streams, kernel)


def _normed_products_backward(epsilon: float, saved: _Arrays, cotangent: Array) -> _Arrays:
  streams, kernel = saved
  return _like(xla.normed_products_backward(streams, kernel, epsilon, cotangent), saved)


normed_products.defvjp(_normed_products_forward, _normed_products_backward)


@functools.partial(custom_derivative, nondiff_argnums=(2,))
def moments(
  streams: _Streams, kernel: Float[Array, "m d k"], epsilon: float
) -> tuple[Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"], Float[Array, "*per_kernel"]]:
  """Σ x W, the mean μ over all streams of a token and (mean (x − μ)² + ε)^(−1/2)."""
  return xla.moments(streams, kernel, epsilon)


def _moments_forward(streams: Array, kernel: Array, epsilon: float) -> tuple[tuple[Array, Array, Array], _Arrays]:
  result = moments(streams, kernel, epsilon)
  return result, (streams, kernel, *result[1:])


def _moments_backward(epsilon: float, saved: _Arrays, cotangents: _Arrays) -> _Arrays:
  streams, kernel, mean, scale = saved
  return _like(xla.moments_backward(streams, kernel, mean, scale, *cotangents), (streams, kernel))


moments.defvjp(_moments_forward, _moments_backward)


def _like(gradients: _Arrays, primals: _Arrays) -> _Arrays:
  return tuple(g.astype(primal.dtype).reshape(primal.shape) for g, primal in zip(gradients, primals, strict=True))
