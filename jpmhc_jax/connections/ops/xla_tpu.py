"""`StreamOps` in plain JAX stream by stream: the formulas in the form that XLA fuses on a TPU.

There an array's last two axes are tiled, and what slices or contracts the n streams makes it lay them out anew; a
stream by itself, (*tokens, d), is whole tiles. Every stream's result is one elementwise expression, and every sum over
the d features one reduction, which XLA computes side by side in one pass. `experiments.benchmarks.traffic` counts what
the compiler makes of it beside the other forms.

Arrays of any float dtype come in; the arithmetic is in the coefficients' float32, or wider. What has the streams' shape
comes out in their dtype.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.connections.ops.composed import Composed
from jpmhc_jax.connections.ops.contractions import einsum, seen, wide
from jpmhc_jax.connections.ops.xla import summed_if_static, write, write_backward

__all__ = [
  "advance", "advance_backward", "coefficients_backward", "fuses", "implementation", "kernel_backward", "mix", "read",
  "statistics", "streams_backward", "weights_backward",
]  # fmt: skip

fuses = True
implementation = "xla"

_Streams = Float[Array, "*tokens n d"]
_Vector = Float[Array, "*tokens d"]


def read(x: _Streams, weights: Float[Array, "n *per_token"]) -> _Vector:
  """Σ_j a_j x_j."""
  return _sum([_of(weights[j]) * stream for j, stream in enumerate(_streams(x, weights))])


def weights_backward(
  x: _Streams, weights: Float[Array, "n *per_token"], cotangent: _Vector
) -> Float[Array, "n *per_token"]:
  """ā_j = Σ_d ū x_j."""
  cotangent = wide(cotangent, weights)
  sums = jnp.stack([jnp.sum(cotangent * stream, axis=-1) for stream in _streams(x, weights)])
  return summed_if_static(weights, 1, sums)


def mix(
  x: _Streams, mixer: Float[Array, "n n *per_token_mix"], weights: Float[Array, "n *per_token"], y: _Vector
) -> _Streams:
  """Σ_j H_ij x_j + b_i y."""
  streams, y = _streams(x, mixer), wide(y, weights)
  return _stacked(
    [
      _sum([*(_of(mixer[i, j]) * stream for j, stream in enumerate(streams)), _of(weights[i]) * y])
      for i in range(len(streams))
    ],
    x,
  )


def coefficients_backward(
  x: _Streams,
  mixer: Float[Array, "n n *per_token_mix"],
  weights: Float[Array, "n *per_token"],
  y: _Vector,
  cotangent: _Streams,
) -> tuple[Array, Array, Array]:
  """H̄_ij = Σ_d x̄'_i x_j,  b̄_i = Σ_d x̄'_i y,  ȳ = Σ_i b_i x̄'_i."""
  streams, cotangents = _streams(x, mixer), _streams(cotangent, weights)
  to_mixer = jnp.stack([jnp.stack([jnp.sum(g * stream, axis=-1) for stream in streams]) for g in cotangents])
  to_weights = jnp.stack([jnp.sum(g * wide(y, weights), axis=-1) for g in cotangents])
  return (
    summed_if_static(mixer, 2, to_mixer),
    summed_if_static(weights, 1, to_weights),
    _sum([_of(weights[i]) * g for i, g in enumerate(cotangents)]),
  )


def statistics(
  x: _Streams, kernel: Float[Array, "m d k"]
) -> tuple[Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"]]:
  """Σ x W and Σ x²."""
  x = seen(x, kernel)
  squares = [jnp.sum(jnp.square(stream), axis=-1) for stream in _streams(x, kernel)]
  return einsum("...nd,ndk->k...", wide(x, kernel), kernel), _sum(squares)


def kernel_backward(
  x: _Streams, kernel: Float[Array, "m d k"], of_products: Float[Array, "k *per_kernel"]
) -> Float[Array, "m d k"]:
  """W̄ = Σ_tokens x s̄."""
  return einsum("k...,...nd->ndk", of_products, wide(seen(x, kernel), of_products))


def streams_backward(
  x: _Streams,
  mixed: tuple[_Streams, Float[Array, "n n *per_token_mix"] | None] | None = None,
  read: tuple[_Vector, Float[Array, "n *per_token"]] | None = None,
  projected: tuple[Float[Array, "m d k"], Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"]] | None = None,
) -> _Streams:
  """x̄ = Hᵀ x̄' + a ū + (W s̄ + 2 x q̄)."""
  precise = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
  n = x.shape[-2]
  terms: list[list[Array]] = [[] for _ in range(n)]
  if mixed is not None:
    cotangents, mixer = _streams(mixed[0], precise), mixed[1]
    for j in range(n):
      terms[j] += [cotangents[j]] if mixer is None else [_of(mixer[i, j]) * g for i, g in enumerate(cotangents)]
  if read is not None:
    vector, weights = wide(read[0], precise), read[1]
    for j in range(n):
      terms[j].append(_of(weights[j]) * vector)
  if projected is not None:
    kernel, of_products, of_square = projected
    for j, stream in enumerate(_streams(x, precise)):
      alone = (..., j) if len(kernel) < n else ...
      rows = kernel[j if len(kernel) == n else 0]
      terms[j].append(einsum("k...,dk->...d", of_products[alone], rows) + 2.0 * _of(of_square[alone]) * stream)
  return _stacked([_sum(own) for own in terms], x)


_pass = Composed(
  mix, write, read, statistics, coefficients_backward, write_backward, kernel_backward, weights_backward,
  streams_backward,
)  # fmt: skip
advance, advance_backward = _pass.advance, _pass.advance_backward


def _streams(x: _Streams, coefficient: Array) -> list[_Vector]:
  return [wide(x[..., j, :], coefficient) for j in range(x.shape[-2])]


def _of(coefficient: Float[Array, "*per_token"]) -> Float[Array, "..."]:
  """One coefficient beside the features; a static one is a number."""
  return coefficient[..., None] if coefficient.ndim else coefficient


def _sum(terms: Sequence[Array]) -> Array:
  return sum(terms[1:], terms[0])


def _stacked(streams: Sequence[_Vector], like: _Streams) -> _Streams:
  return jnp.stack([stream.astype(like.dtype) for stream in streams], axis=-2)
