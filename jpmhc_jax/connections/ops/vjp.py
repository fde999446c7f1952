"""The apply stage: read one vector from n streams, mix the streams and write the sub-layer's output back.

    read:           u = Σ_j a_j x_j
    mix_and_write:  x'_i = Σ_j H_ij x_j + b_i y

Streams are (*tokens, n, d) in any float dtype; coefficients are tokens last, (n, n, *tokens), or token-free for static
mixers, always float32 or wider, and so is the arithmetic. Each direction is one operator; the backward pass saves the
inputs only. `operators` says who computes: the portable formulas or kernels (see `base`). What is given
a `FusedStreams` in place of the streams leaves their gradient to it.
"""

import functools
from typing import Any

from jaxtyping import Array, Float

from jpmhc_jax.connections.ops import fused_streams, xla
from jpmhc_jax.connections.ops.fused_streams import FusedStreams, Terms
from jpmhc_jax.core.derivatives import custom_derivative

_Streams = Float[Array, "*tokens n d"]
_Vector = Float[Array, "*tokens d"]


def read(
  streams: Float[Array, "*tokens n d"] | FusedStreams, weights: Float[Array, "n *per_token"], operators: Any = xla
) -> _Vector:
  """u = Σ_j a_j x_j, in the streams' dtype."""
  if operators is xla:
    return _read(streams, weights)
  return fused_streams.read(_entered(streams, Terms(read=True), operators), weights, operators)


@custom_derivative
def _read(streams, weights):
  return xla.read(streams, weights).astype(streams.dtype)


def _read_backward(saved, cotangent):
  streams, weights = saved
  return _like(xla.read_backward(streams, weights, cotangent), saved)


_read.defvjp(lambda *arguments: (_read(*arguments), arguments), _read_backward)


def mix_and_write(
  streams: Float[Array, "*tokens n d"] | FusedStreams,
  mixer: Float[Array, "n n *per_token_mix"],
  weights: Float[Array, "n *per_token"],
  output: _Vector,
  operators: Any = xla,
) -> _Streams:
  """x'_i = Σ_j H_ij x_j + b_i y, in the streams' dtype."""
  if operators is xla:
    return _mix_and_write(streams, mixer, weights, output)
  return fused_streams.mix_and_write(_entered(streams, Terms(mix=True), operators), mixer, weights, output, operators)


@custom_derivative
def _mix_and_write(streams, mixer, weights, output):
  return xla.mix(streams, mixer, weights, output).astype(streams.dtype)


def _mix_and_write_backward(saved, cotangent):
  streams, mixer, weights, output = saved
  return _like(xla.mix_backward(streams, mixer, weights, output, cotangent), saved)


_mix_and_write.defvjp(lambda *arguments: (_mix_and_write(*arguments), arguments), _mix_and_write_backward)


def write(
  streams: Float[Array, "*tokens n d"] | FusedStreams, weights: Float[Array, "n *per_token"], output: _Vector
) -> _Streams:
  """x'_i = x_i + b_i y: the identity mixer, without the product by I; XLA fuses it, so there is no kernel."""
  return (fused_streams.write if isinstance(streams, FusedStreams) else _write)(streams, weights, output)


@custom_derivative
def _write(streams, weights, output):
  return (streams + xla.write(weights, output)).astype(streams.dtype)


def _write_forward(streams, weights, output):
  return _write(streams, weights, output), (weights, output)


def _write_backward(saved, cotangent):
  weights, output = saved
  return cotangent, *_like(xla.write_backward(weights, output, cotangent), saved)


_write.defvjp(_write_forward, _write_backward)


def statistics(
  streams: Float[Array, "*tokens n d"] | FusedStreams, kernel: Float[Array, "m d k"], operators: Any = xla
) -> tuple[Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"]]:
  """Σ x W and Σ x² of every token, in one pass over the streams where a kernel computes them.

  The kernel has m = n streams, or m = 1: then each stream is a token of its own, and per_kernel is (*tokens, n).
  """
  if operators is xla:
    return _statistics(streams, kernel)
  return fused_streams.statistics(_entered(streams, Terms(kernel_shape=kernel.shape), operators), kernel, operators)


@custom_derivative
def _statistics(streams, kernel):
  return xla.statistics(streams, kernel)


def _statistics_backward(saved, cotangents):
  streams, kernel = saved
  return _like(xla.statistics_backward(streams, kernel, *cotangents), saved)


_statistics.defvjp(lambda *arguments: (_statistics(*arguments), arguments), _statistics_backward)


def _entered(streams: Array | FusedStreams, terms: Terms, operators: Any) -> FusedStreams:
  return streams if isinstance(streams, FusedStreams) else fused_streams.enter(streams, terms, operators)


@custom_derivative
def products(streams: _Streams, kernel: Float[Array, "m d k"]) -> Float[Array, "k *per_kernel"]:
  """Σ x W of every token."""
  return xla.products(streams, kernel)


def _products_backward(saved, cotangent):
  streams, kernel = saved
  return _like(xla.products_backward(streams, kernel, cotangent), saved)


products.defvjp(lambda *arguments: (products(*arguments), arguments), _products_backward)


@functools.partial(custom_derivative, nondiff_argnums=(2,))
def normed_products(streams: _Streams, kernel: Float[Array, "n d k"], epsilon: float) -> Float[Array, "k *tokens"]:
  """Σ_s r_s x_s W_s of every token, with r_s = (mean_d x_s² + ε)^(−1/2) of stream s alone."""
  return xla.normed_products(streams, kernel, epsilon)


def _normed_products_forward(streams, kernel, epsilon):
  return normed_products(streams, kernel, epsilon), (streams, kernel)


def _normed_products_backward(epsilon, saved, cotangent):
  streams, kernel = saved
  return _like(xla.normed_products_backward(streams, kernel, epsilon, cotangent), saved)


normed_products.defvjp(_normed_products_forward, _normed_products_backward)


@functools.partial(custom_derivative, nondiff_argnums=(2,))
def moments(
  streams: _Streams, kernel: Float[Array, "m d k"], epsilon: float
) -> tuple[Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"], Float[Array, "*per_kernel"]]:
  """Σ x W, the mean μ over all streams of a token and (mean (x − μ)² + ε)^(−1/2)."""
  return xla.moments(streams, kernel, epsilon)


def _moments_forward(streams, kernel, epsilon):
  found = moments(streams, kernel, epsilon)
  return found, (streams, kernel, *found[1:])


def _moments_backward(epsilon, saved, cotangents):
  streams, kernel, *found = saved
  return _like(xla.moments_backward(streams, kernel, *found, *cotangents), (streams, kernel))


moments.defvjp(_moments_forward, _moments_backward)


def _like(gradients: tuple[Array, ...], primals: tuple[Array, ...]) -> tuple[Array, ...]:
  return tuple(g.astype(primal.dtype).reshape(primal.shape) for g, primal in zip(gradients, primals, strict=True))
