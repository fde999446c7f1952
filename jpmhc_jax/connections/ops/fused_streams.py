"""The streams of one connection, with a gradient to them that is a single operator.

The streams enter three operators of a connection, and automatic differentiation adds up what each gives back,

    x̄ = Hᵀ x̄' + a ū + (W s̄ + 2 x q̄)

so that kernels write three arrays as large as the streams for their sum to read. `FusedStreams` have room for the
factors of these terms instead: the backward pass of an operator leaves its factors there, in place of their product,
and the backward pass of `enter`, which runs last, makes x̄ of them in one. XLA fuses the sums of the portable formulas
itself, but not kernels. The room is zeros that nothing reads, and so nothing after compilation.

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
from jpmhc_jax.core.derivatives import custom_derivative


@dataclasses.dataclass(frozen=True)
class Terms:
  """The operators that fused streams go through, each adding a term to x̄: a mixer or, for the identity, a write."""

  read: bool = False
  mix: bool = False
  write: bool = False
  kernel_shape: tuple[int, ...] | None = None  # (m, d, k) of a projection


class FusedStreams(NamedTuple):
  """The streams, and room for the factors of the terms of x̄; what else uses `streams` adds to x̄ as usual."""

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
def enter(streams: Float[Array, "*tokens n d"], terms: Terms, operators: Any) -> FusedStreams:
  """Fused streams for these operators; they take no others."""
  return _with_room(streams, terms)


def _with_room(streams: Float[Array, "*tokens n d"], terms: Terms) -> FusedStreams:
  *tokens, n, d = streams.shape
  room = functools.partial(jnp.zeros, dtype=jnp.promote_types(streams.dtype, jnp.float32))
  fused = FusedStreams(streams)
  if terms.read:
    fused = fused._replace(weights=room((n, *tokens)), vector=jnp.zeros((*tokens, d), streams.dtype))
  if terms.mix or terms.write:
    fused = fused._replace(cotangent=jnp.zeros_like(streams))
  if terms.mix:
    fused = fused._replace(mixer=room((n, n, *tokens)))
  if terms.kernel_shape is not None:
    per_kernel = tuple(tokens) if terms.kernel_shape[0] == n else (*tokens, n)
    fused = fused._replace(
      kernel=room(terms.kernel_shape), products=room((terms.kernel_shape[-1], *per_kernel)), square=room(per_kernel)
    )
  return fused


def _enter_forward(streams, terms, operators):
  return enter(streams, terms, operators), streams


def _enter_backward(terms, operators, streams, left):
  found = operators.streams_backward(
    streams,
    mixed=(left.cotangent, left.mixer) if terms.mix or terms.write else None,
    read=(left.vector, left.weights) if terms.read else None,
    projected=(left.kernel, left.products, left.square) if terms.kernel_shape else None,
  )
  return (found.astype(streams.dtype) + left.streams,)


enter.defvjp(_enter_forward, _enter_backward, lambda terms, operators, _, moved: _with_room(moved, terms))
_NOTHING = FusedStreams(None)  # type: ignore[arg-type]


@functools.partial(custom_derivative, nondiff_argnums=(2,))
def statistics(
  fused: FusedStreams, kernel: Float[Array, "m d k"], operators: Any
) -> tuple[Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"]]:
  """`vjp.statistics` of the streams."""
  _expect("statistics", fused.kernel)
  return operators.statistics(_seen(fused.streams, kernel), kernel)


def _statistics_forward(fused, kernel, operators):
  return statistics(fused, kernel, operators), (fused.streams, kernel)


def _statistics_backward(operators, saved, cotangents):
  streams, kernel = saved
  products, square = cotangents
  left = _NOTHING._replace(kernel=kernel, products=products, square=square)
  to_kernel = operators.kernel_backward(_seen(streams, kernel), products)
  return left, to_kernel.astype(kernel.dtype)


# The backward pass leaves factors in the rooms, no cotangents: the backward rules here have no transpose, and the
# forward rules are derivatives of the portable formulas.
def _statistics_tangent(operators, saved, fused, kernel):
  def formula(streams, kernel):
    return xla.statistics(_seen(streams, kernel), kernel)

  return jax.jvp(formula, saved, (fused.streams, kernel))[1]


statistics.defvjp(_statistics_forward, _statistics_backward, _statistics_tangent)


@functools.partial(custom_derivative, nondiff_argnums=(2,))
def read(fused: FusedStreams, weights: Float[Array, "n *per_token"], operators: Any) -> Float[Array, "*tokens d"]:
  """`vjp.read` of the streams."""
  _expect("read", fused.weights)
  return operators.read(fused.streams, weights).astype(fused.streams.dtype)


def _read_forward(fused, weights, operators):
  return read(fused, weights, operators), (fused.streams, weights)


def _read_backward(operators, saved, cotangent):
  streams, weights = saved
  left = _NOTHING._replace(weights=_per_token(weights, 1, streams), vector=cotangent)
  return left, operators.weights_backward(streams, weights, cotangent).astype(weights.dtype)


def _read_tangent(operators, saved, fused, weights):
  return jax.jvp(xla.read, saved, (fused.streams, weights))[1].astype(saved[0].dtype)


read.defvjp(_read_forward, _read_backward, _read_tangent)


@functools.partial(custom_derivative, nondiff_argnums=(4,))
def mix_and_write(
  fused: FusedStreams,
  mixer: Float[Array, "n n *per_token_mix"],
  weights: Float[Array, "n *per_token"],
  output: Float[Array, "*tokens d"],
  operators: Any,
) -> Float[Array, "*tokens n d"]:
  """`vjp.mix_and_write` of the streams."""
  _expect("mix_and_write", fused.mixer)
  return operators.mix(fused.streams, mixer, weights, output).astype(fused.streams.dtype)


def _mix_and_write_forward(fused, mixer, weights, output, operators):
  return mix_and_write(fused, mixer, weights, output, operators), (fused.streams, mixer, weights, output)


def _mix_and_write_backward(operators, saved, cotangent):
  streams, mixer, weights, output = saved
  left = _NOTHING._replace(cotangent=cotangent, mixer=_per_token(mixer, 2, streams))
  found = operators.coefficients_backward(streams, mixer, weights, output, cotangent)
  return left, *(g.astype(primal.dtype) for g, primal in zip(found, saved[1:], strict=True))


def _mix_and_write_tangent(operators, saved, fused, *moved):
  return jax.jvp(xla.mix, saved, (fused.streams, *moved))[1].astype(saved[0].dtype)


mix_and_write.defvjp(_mix_and_write_forward, _mix_and_write_backward, _mix_and_write_tangent)


@custom_derivative
def write(
  fused: FusedStreams, weights: Float[Array, "n *per_token"], output: Float[Array, "*tokens d"]
) -> Float[Array, "*tokens n d"]:
  """`vjp.write` of the streams: the identity mixer, for streams that were fused without one."""
  _expect("write", fused.cotangent, none=fused.mixer)
  return (fused.streams + xla.write(weights, output)).astype(fused.streams.dtype)


def _write_forward(fused, weights, output):
  return write(fused, weights, output), (weights, output)


def _write_tangent(saved, fused, *moved):
  return (fused.streams + jax.jvp(xla.write, saved, moved)[1]).astype(fused.streams.dtype)


def _write_backward(saved, cotangent):
  weights, output = saved
  to_weights, to_output = xla.write_backward(weights, output, cotangent)
  return _NOTHING._replace(cotangent=cotangent), to_weights.astype(weights.dtype), to_output.astype(output.dtype)


write.defvjp(_write_forward, _write_backward, _write_tangent)


def _expect(operator: str, room: Array | None, none: Array | None = None) -> None:
  """Raises ValueError unless the streams have this room, and none where another operator would leave its factors."""
  if room is None or none is not None:
    raise ValueError(
      f"{operator}: the streams were fused for other operators, so their gradient would be lost; "
      "name this one in the Terms that `enter` takes"
    )


def _seen(streams: Float[Array, "*tokens n d"], kernel: Float[Array, "m d k"]) -> Float[Array, "*per_kernel m d"]:
  """What one product with the kernel sees: all streams of a token, or each of them as a token of its own."""
  return streams if kernel.shape[0] == streams.shape[-2] else streams[..., None, :]


def _per_token(
  coefficient: Float[Array, "..."], axes: int, streams: Float[Array, "*tokens n d"]
) -> Float[Array, "..."]:
  """A coefficient as the room for it has it: repeated for every token where it is static."""
  tokens = streams.shape[:-2]
  missing = (1,) * (axes + len(tokens) - coefficient.ndim)
  full = coefficient.reshape(coefficient.shape + missing)
  return jnp.broadcast_to(full, coefficient.shape[:axes] + tokens)
