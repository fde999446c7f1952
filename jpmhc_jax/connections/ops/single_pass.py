"""One pass over the streams from one connection to the next, with its derivatives.

    x' = H x + b ⊗ y, each stream normed or not;   Σ x' W and Σ x'² for the next connection;   u = Σ_j a_j x'_j

`advance` is one operator for all of it: the streams are read once and written once. What the next connection reads may
wait for its coefficients, which may be those of x' itself. Its streams are then `FusedStreams`, and the read's term of
their gradient is added up in the backward pass of `advance`, together with all others.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.connections.ops import xla
from jpmhc_jax.connections.ops.base import StreamOps
from jpmhc_jax.connections.ops.composed import Advanced, Flowing, Operands
from jpmhc_jax.connections.ops.fused_streams import FusedStreams
from jpmhc_jax.core.derivatives import custom_derivative

__all__ = ["Passed", "advance", "given"]


class Passed(NamedTuple):
  """What one pass hands over: the streams and what was asked for of them, else None."""

  streams: FusedStreams
  products: Float[Array, "k *tokens"] | None
  square: Float[Array, "*tokens"] | None
  vector: Float[Array, "*tokens d"] | None


@functools.partial(custom_derivative, nondiff_argnums=(1, 2))
def advance(operands: Operands, epsilon: float | None, ops: StreamOps) -> Passed:
  """The streams behind a connection, with what the next one needs of them; see `StreamOps.advance`.

  Without weights of a read among the operands the streams can be read once, by `vjp.read`.
  """
  return _forward(operands, epsilon, ops)[0]


def _forward(operands: Operands, epsilon: float | None, ops: StreamOps) -> tuple[Passed, tuple[Operands, Advanced]]:
  made = ops.advance(operands, epsilon)
  passed = Passed(_placeholders(made.streams, operands.read is None), made.products, made.square, made.vector)
  return passed, (operands, Advanced(made.streams, made.scale))


def _placeholders(streams: Array, later: bool) -> FusedStreams:
  if not later:
    return FusedStreams(streams)
  *tokens, n, d = streams.shape
  weights = jnp.zeros((n, *tokens), jnp.promote_types(streams.dtype, jnp.float32))
  return FusedStreams(streams, weights=weights, vector=jnp.zeros((*tokens, d), streams.dtype))


def _backward(epsilon: float | None, ops: StreamOps, saved: Any, cotangents: Any) -> tuple[Operands]:
  operands, advanced = saved
  placeholders, products, square, read = cotangents
  reading = (placeholders.vector, placeholders.weights) if operands.read is None else (read, operands.read)
  flowing = Flowing(placeholders.streams, products, square, *reading)
  return (jax.tree.map(_like, ops.advance_backward(operands, epsilon, advanced, flowing), operands),)


def _like(gradient: Array, primal: Array) -> Array:
  return gradient.astype(primal.dtype).reshape(primal.shape)


def _tangent(epsilon: float | None, ops: StreamOps, saved: Any, tangents: Operands) -> Passed:
  """Of the formulas in plain JAX, for every back end."""
  moved: Passed = jax.jvp(lambda operands: _forward(operands, epsilon, xla)[0], saved[:1], (tangents,))[1]
  return moved


advance.defvjp(_forward, _backward, _tangent)


@functools.partial(custom_derivative, nondiff_argnums=(4,))
def given(
  streams: Float[Array, "*tokens n d"],
  kernel: Float[Array, "n d k"],
  products: Float[Array, "k *tokens"],
  square: Float[Array, "*tokens"],
  ops: StreamOps,
) -> tuple[Float[Array, "k *tokens"], Float[Array, "*tokens"]]:
  """The statistics of the streams as the pass that wrote them gave them, with the gradient W̄ = Σ_tokens x s̄ taken here.

  The streams are saved here in any case, where the pass that wrote them would have to make them again. It gets no
  gradient to its kernel (`jax.lax.stop_gradient`), and the one to the streams is left to it.
  """
  return products, square


def _given_forward(streams: Array, kernel: Array, products: Array, square: Array, ops: StreamOps) -> Any:
  return (products, square), (streams, kernel)


def _given_backward(ops: StreamOps, saved: Any, cotangents: tuple[Array, Array]) -> tuple[Any, ...]:
  streams, kernel = saved
  return None, _like(ops.kernel_backward(streams, kernel, cotangents[0]), kernel), *cotangents


def _given_tangent(
  ops: StreamOps, saved: Any, streams: Array, kernel: Array, *statistics: Array
) -> tuple[Array, Array]:
  products, square = statistics
  return products + xla.statistics(saved[0], kernel)[0].astype(products.dtype), square


given.defvjp(_given_forward, _given_backward, _given_tangent)
