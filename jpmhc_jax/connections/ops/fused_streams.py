"""The streams of one connection, with a gradient to them that is a single operator.

Three operators of a connection use the streams x, and each has a term in their gradient x̄:

    x̄ = Hᵀ x̄' + a ū + (W s̄ + 2 x q̄)

Automatic differentiation adds the terms up: kernels would write three arrays as large as the streams for their sum to
read. `FusedStreams` carry a placeholder for the factors of every term. The backward pass of an operator returns its
factors as the placeholders' cotangents, in place of their product, and the backward pass of `enter`, which runs last,
makes x̄ of them in one pass (`StreamOps.streams_backward`). The placeholders are zeros that nothing reads, so that
nothing is left of them after compilation. XLA fuses the sum of formulas in plain JAX on its own (`StreamOps.fuses`).

The operators are those of `vjp`, which calls these for fused streams. They take the operators that they were made for
(ValueError for others), and each at most once: factors of two applications would be added up before their product.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.connections.ops import xla
from jpmhc_jax.connections.ops.base import StreamOps
from jpmhc_jax.core.derivatives import custom_derivative

__all__ = ["FusedStreams", "Terms", "enter", "mix_and_write", "read", "statistics", "write"]

_Arrays = tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class Terms:
  """The operators that fused streams go through, each adding a term to x̄: a mixer or, for the identity, a write."""

  read: bool = False
  mix: bool = False
  write: bool = False
  kernel_shape: tuple[int, ...] | None = None  # (m, d, k) of a projection


class FusedStreams(NamedTuple):
  """The streams, and placeholders for the factors of the terms of x̄; other uses of `streams` add to x̄ as usual."""

  streams: Float[Array, "*tokens n d"]
  cotangent: Float[Array, "*tokens n d"] | None = None
  weights: Float[Array, "n *tokens"] | None = None
  vector: Float[Array, "*tokens d"] | None = None
  mixer: Float[Array, "n n *tokens"] | None = None
  kernel: Float[Array, "m d k"] | None = None
  products: Float[Array, "k *per_kernel"] | None = None
  square: Float[Array, "*per_kernel"] | None = None

  @property
  def dtype(self) -> jnp.dtype:
    """Of the streams."""
    return self.streams.dtype


@functools.partial(custom_derivative, nondiff_argnums=(1, 2))
def enter(streams: Float[Array, "*tokens n d"], terms: Terms, ops: StreamOps) -> FusedStreams:
  """Fused streams for these operators; they take no others."""
  return _with_placeholders(streams, terms)


def _with_placeholders(streams: Float[Array, "*tokens n d"], terms: Terms) -> FusedStreams:
  *tokens, n, d = streams.shape
  zeros = functools.partial(jnp.zeros, dtype=jnp.promote_types(streams.dtype, jnp.float32))
  fused = FusedStreams(streams)
  if terms.read:
    fused = fused._replace(weights=zeros((n, *tokens)), vector=jnp.zeros((*tokens, d), streams.dtype))
  if terms.mix or terms.write:
    fused = fused._replace(cotangent=jnp.zeros_like(streams))
  if terms.mix:
    fused = fused._replace(mixer=zeros((n, n, *tokens)))
  if terms.kernel_shape is not None:
    per_kernel = tuple(tokens) if terms.kernel_shape[0] == n else (*tokens, n)
    fused = fused._replace(
      kernel=zeros(terms.kernel_shape),
      products=zeros((terms.kernel_shape[-1], *per_kernel)),
      square=zeros(per_kernel),
    )
  return fused


def _enter_forward(streams: Array, terms: Terms, ops: StreamOps) -> tuple[FusedStreams, Array]:
  return enter(streams, terms, ops), streams


def _enter_backward(terms: Terms, ops: StreamOps, streams: Array, factors: Any) -> tuple[Array]:
  to_streams = ops.streams_backward(
    streams,
    mixed=(factors.cotangent, factors.mixer) if terms.mix or terms.write else None,
    read=(factors.vector, factors.weights) if terms.read else None,
    projected=(factors.kernel, factors.products, factors.square) if terms.kernel_shape else None,
  )
  return (to_streams.astype(streams.dtype) + factors.streams,)


enter.defvjp(_enter_forward, _enter_backward, lambda terms, ops, _, tangent: _with_placeholders(tangent, terms))
_NOTHING = FusedStreams(None)  # type: ignore[arg-type]


@functools.partial(custom_derivative, nondiff_argnums=(2,))
def statistics(
  fused: FusedStreams, kernel: Float[Array, "m d k"], ops: StreamOps
) -> tuple[Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"]]:
  """`vjp.statistics` of the streams."""
  _expect("statistics", fused.kernel)
  return ops.statistics(fused.streams, kernel)


def _statistics_forward(fused: FusedStreams, kernel: Array, ops: StreamOps) -> tuple[tuple[Array, Array], _Arrays]:
  return statistics(fused, kernel, ops), (fused.streams, kernel)


def _statistics_backward(ops: StreamOps, saved: _Arrays, cotangents: tuple[Array, Array]) -> tuple[Any, ...]:
  streams, kernel = saved
  products, square = cotangents
  factors = _NOTHING._replace(kernel=kernel, products=products, square=square)
  return factors, ops.kernel_backward(streams, kernel, products).astype(kernel.dtype)


# The backward rules return factors, no cotangents: they have no transpose, and the forward rules are derivatives of the
# formulas in plain JAX.
def _statistics_tangent(ops: StreamOps, saved: _Arrays, fused: FusedStreams, kernel: Array) -> tuple[Array, Array]:
  result: tuple[Array, Array] = jax.jvp(xla.statistics, saved, (fused.streams, kernel))[1]
  return result


statistics.defvjp(_statistics_forward, _statistics_backward, _statistics_tangent)


@functools.partial(custom_derivative, nondiff_argnums=(2,))
def read(fused: FusedStreams, weights: Float[Array, "n *per_token"], ops: StreamOps) -> Float[Array, "*tokens d"]:
  """`vjp.read` of the streams."""
  _expect("read", fused.weights)
  return ops.read(fused.streams, weights).astype(fused.streams.dtype)


def _read_forward(fused: FusedStreams, weights: Array, ops: StreamOps) -> tuple[Array, _Arrays]:
  return read(fused, weights, ops), (fused.streams, weights)


def _read_backward(ops: StreamOps, saved: _Arrays, cotangent: Array) -> tuple[Any, ...]:
  streams, weights = saved
  factors = _NOTHING._replace(weights=_per_token(weights, 1, streams), vector=cotangent)
  return factors, ops.weights_backward(streams, weights, cotangent).astype(weights.dtype)


def _read_tangent(ops: StreamOps, saved: _Arrays, fused: FusedStreams, weights: Array) -> Array:
  result: Array = jax.jvp(xla.read, saved, (fused.streams, weights))[1].astype(saved[0].dtype)
  return result


read.defvjp(_read_forward, _read_backward, _read_tangent)


@functools.partial(custom_derivative, nondiff_argnums=(4,))
def mix_and_write(
  fused: FusedStreams,
  mixer: Float[Array, "n n *per_token_mix"],
  weights: Float[Array, "n *per_token"],
  output: Float[Array, "*tokens d"],
  ops: StreamOps,
) -> Float[Array, "*tokens n d"]:
  """`vjp.mix_and_write` of the streams."""
  _expect("mix_and_write", fused.mixer)
  return ops.mix(fused.streams, mixer, weights, output).astype(fused.streams.dtype)


def _mix_and_write_forward(
  fused: FusedStreams, mixer: Array, weights: Array, output: Array, ops: StreamOps
) -> tuple[Array, _Arrays]:
  return mix_and_write(fused, mixer, weights, output, ops), (fused.streams, mixer, weights, output)


def _mix_and_write_backward(ops: StreamOps, saved: _Arrays, cotangent: Array) -> tuple[Any, ...]:
  streams, mixer, weights, output = saved
  factors = _NOTHING._replace(cotangent=cotangent, mixer=_per_token(mixer, 2, streams))
  gradients = ops.coefficients_backward(streams, mixer, weights, output, cotangent)
  return factors, *(g.astype(primal.dtype) for g, primal in zip(gradients, saved[1:], strict=True))


def _mix_and_write_tangent(ops: StreamOps, saved: _Arrays, fused: FusedStreams, *tangents: Array) -> Array:
  result: Array = jax.jvp(xla.mix, saved, (fused.streams, *tangents))[1].astype(saved[0].dtype)
  return result


mix_and_write.defvjp(_mix_and_write_forward, _mix_and_write_backward, _mix_and_write_tangent)


@custom_derivative
def write(
  fused: FusedStreams, weights: Float[Array, "n *per_token"], output: Float[Array, "*tokens d"]
) -> Float[Array, "*tokens n d"]:
  """`vjp.write` of the streams: the identity mixer, for streams that were fused without one."""
  _expect("write", fused.cotangent, none=fused.mixer)
  return (fused.streams + xla.write(weights, output)).astype(fused.streams.dtype)


def _write_forward(fused: FusedStreams, weights: Array, output: Array) -> tuple[Array, _Arrays]:
  return write(fused, weights, output), (weights, output)


def _write_tangent(saved: _Arrays, fused: FusedStreams, *tangents: Array) -> Array:
  result: Array = (fused.streams + jax.jvp(xla.write, saved, tangents)[1]).astype(fused.streams.dtype)
  return result


def _write_backward(saved: _Arrays, cotangent: Array) -> tuple[Any, ...]:
  weights, output = saved
  to_weights, to_output = xla.write_backward(weights, output, cotangent)
  return _NOTHING._replace(cotangent=cotangent), to_weights.astype(weights.dtype), to_output.astype(output.dtype)


write.defvjp(_write_forward, _write_backward, _write_tangent)


def _expect(operator: str, placeholder: Array | None, none: Array | None = None) -> None:
  """Raises ValueError unless the streams have this placeholder, and none of another operator's (`none`)."""
  if placeholder is None or none is not None:
    raise ValueError(
      f"{operator}: the streams were fused for other operators, so their gradient would be lost; "
      "name this one in the Terms that `enter` takes"
    )


def _per_token(
  coefficient: Float[Array, "..."], axes: int, streams: Float[Array, "*tokens n d"]
) -> Float[Array, "..."]:
  """A coefficient as its placeholder has it: repeated for every token where it is static."""
  tokens = streams.shape[:-2]
  missing = (1,) * (axes + len(tokens) - coefficient.ndim)
  full = coefficient.reshape(coefficient.shape + missing)
  return jnp.broadcast_to(full, coefficient.shape[:axes] + tokens)
