"""The apply stage: read one vector from n streams, mix the streams and write the sub-layer's output back.

    read:           u = Σ_j a_j x_j
    mix_and_write:  x'_i = Σ_j H_ij x_j + b_i y

Streams are (*tokens, n, d) in any float dtype; coefficients are tokens last, (n, n, *tokens), or token-free for static
mixers, always float32 or wider, and so is the arithmetic. Each direction is one operator; the backward pass saves the
inputs only. `operators` says who computes: the portable formulas or kernels (see `implementation`).
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from jpmhc_jax.connections import portable

_Streams = Float[Array, "*tokens n d"]
_Vector = Float[Array, "*tokens d"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def read(streams: _Streams, weights: Float[Array, "n *per_token"], operators: Any = portable) -> _Vector:
  """u = Σ_j a_j x_j, in the streams' dtype."""
  return operators.read(streams, weights).astype(streams.dtype)


def _read_forward(streams, weights, operators):
  return read(streams, weights, operators), (streams, weights)


def _read_backward(operators, saved, cotangent):
  return _like(operators.read_backward(*saved, cotangent), saved)


read.defvjp(_read_forward, _read_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def mix_and_write(
  streams: _Streams,
  mixer: Float[Array, "n n *per_token_mix"],
  weights: Float[Array, "n *per_token"],
  output: _Vector,
  operators: Any = portable,
) -> _Streams:
  """x'_i = Σ_j H_ij x_j + b_i y, in the streams' dtype."""
  return operators.mix(streams, mixer, weights, output).astype(streams.dtype)


def _mix_and_write_forward(streams, mixer, weights, output, operators):
  return mix_and_write(streams, mixer, weights, output, operators), (streams, mixer, weights, output)


def _mix_and_write_backward(operators, saved, cotangent):
  return _like(operators.mix_backward(*saved, cotangent), saved)


mix_and_write.defvjp(_mix_and_write_forward, _mix_and_write_backward)


@jax.custom_vjp
def write(streams: _Streams, weights: Float[Array, "n *per_token"], output: _Vector) -> _Streams:
  """x'_i = x_i + b_i y: the identity mixer, without the product by I; XLA fuses it, so there is no kernel."""
  return (streams + portable.write(weights, output)).astype(streams.dtype)


def _write_forward(streams, weights, output):
  return write(streams, weights, output), (weights, output)


def _write_backward(saved, cotangent):
  weights, output = saved
  return cotangent, *_like(portable.write_backward(weights, output, cotangent), saved)


write.defvjp(_write_forward, _write_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def statistics(
  streams: _Streams, kernel: Float[Array, "m d k"], operators: Any = portable
) -> tuple[Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"]]:
  """Σ x W and Σ x² of every token, in one pass over the streams where a kernel computes them.

  The kernel has m = n streams, or m = 1: then each stream is a token of its own, and per_kernel is (*tokens, n).
  """
  return operators.statistics(_seen(streams, kernel), kernel)


def _statistics_forward(streams, kernel, operators):
  return statistics(streams, kernel, operators), (streams, kernel)


def _statistics_backward(operators, saved, cotangents):
  streams, kernel = saved
  return _like(operators.statistics_backward(_seen(streams, kernel), kernel, *cotangents), saved)


statistics.defvjp(_statistics_forward, _statistics_backward)


@jax.custom_vjp
def products(streams: _Streams, kernel: Float[Array, "m d k"]) -> Float[Array, "k *per_kernel"]:
  """Σ x W of every token."""
  return portable.products(_seen(streams, kernel), kernel)


def _products_backward(saved, cotangent):
  streams, kernel = saved
  return _like(portable.products_backward(_seen(streams, kernel), kernel, cotangent), saved)


products.defvjp(lambda *arguments: (products(*arguments), arguments), _products_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def normed_products(streams: _Streams, kernel: Float[Array, "n d k"], epsilon: float) -> Float[Array, "k *tokens"]:
  """Σ_s r_s x_s W_s of every token, with r_s = (mean_d x_s² + ε)^(−1/2) of stream s alone."""
  return portable.normed_products(streams, kernel, epsilon)


def _normed_products_forward(streams, kernel, epsilon):
  return normed_products(streams, kernel, epsilon), (streams, kernel)


def _normed_products_backward(epsilon, saved, cotangent):
  streams, kernel = saved
  return _like(portable.normed_products_backward(streams, kernel, epsilon, cotangent), saved)


normed_products.defvjp(_normed_products_forward, _normed_products_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def moments(
  streams: _Streams, kernel: Float[Array, "m d k"], epsilon: float
) -> tuple[Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"], Float[Array, "*per_kernel"]]:
  """Σ x W, the mean μ over all streams of a token and (mean (x − μ)² + ε)^(−1/2)."""
  return portable.moments(_seen(streams, kernel), kernel, epsilon)


def _moments_forward(streams, kernel, epsilon):
  found = moments(streams, kernel, epsilon)
  return found, (streams, kernel, *found[1:])


def _moments_backward(epsilon, saved, cotangents):
  streams, kernel, *found = saved
  return _like(portable.moments_backward(_seen(streams, kernel), kernel, *found, *cotangents), (streams, kernel))


moments.defvjp(_moments_forward, _moments_backward)


def _seen(streams: _Streams, kernel: Float[Array, "m d k"]) -> Float[Array, "*per_kernel m d"]:
  """What one product with the kernel sees: all streams of a token, or each of them."""
  return streams if kernel.shape[0] == streams.shape[-2] else streams[..., None, :]


def _like(gradients: tuple[Array, ...], primals: tuple[Array, ...]) -> tuple[Array, ...]:
  return tuple(g.astype(primal.dtype).reshape(primal.shape) for g, primal in zip(gradients, primals, strict=True))
