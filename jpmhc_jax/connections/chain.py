"""Connections one after the other, with one pass over the streams from each to the next.

A connection by itself goes over its streams three times: for the statistics of its coefficients, Σ x W and Σ x², for
the read, and for mix and write; a norm behind it is a fourth. In a chain, the pass that writes x' takes the statistics
of the next connection, and the norm, along. Of n streams of d features a token that is

    (4n + 2) d numbers moved by connections alone, (7n + 2) d with a norm behind each,
    (3n + 2) d in a chain, and
    (2n + 2) d where the next coefficients are known before x' is there, so that the read joins the same pass.

The last is the published variant: connection k takes the coefficients that its projection makes of the streams in front
of connection k − 1, one connection old. It is another network, with the same parameters; the first connection of a
chain has its own. The chain with own coefficients computes what the connections alone compute.
Source: Single-Pass mHC of DeepSeek-V4.1 (as counted in its report: (3n + 2) C to (2n + 2) C a layer).
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.connections import generator
from jpmhc_jax.connections.block import Coefficients, HyperConnectionFn, Parameters, saveable, SubLayer
from jpmhc_jax.connections.ops import base, fused_streams, single_pass, vjp
from jpmhc_jax.connections.ops.base import StreamOps
from jpmhc_jax.connections.ops.fused_streams import FusedStreams, Terms
from jpmhc_jax.core.errors import check_choice, ConfigError
from jpmhc_jax.core.fields import check_number

__all__ = ["COEFFICIENTS_FROM", "Link", "Passing", "Chain", "check_link"]

COEFFICIENTS_FROM = ("own", "previous")


class Link(NamedTuple):
  """One connection of a `Chain`: its rule and its parameters, a dict of float32 arrays as `rule.init` makes them.

  >>> rule = jp.HyperConnectionFn(jp.Cayley(), streams=4, width=8)
  >>> sorted(jp.Link(rule, rule.init(jax.random.key(0))).parameters)
  ['bias', 'projection']
  """

  rule: HyperConnectionFn
  parameters: Parameters


class Passing(NamedTuple):
  """What a chain holds in front of a connection: the streams, what it reads of them, and its coefficients.

  products, square: the statistics of these streams for the connection behind it, where its coefficients come from the
  previous one's streams.
  """

  streams: Float[Array, "*tokens n d"]
  vector: Float[Array, "*tokens d"]
  coefficients: Coefficients
  products: Float[Array, "k *tokens"] | None = None
  square: Float[Array, "*tokens"] | None = None


@dataclasses.dataclass(frozen=True)
class Chain:
  """A chain of connections, x' = Norm(H x + b ⊗ F(aᵀ x)) again and again, with one pass over the streams for each.

  coefficients: 'own', of the streams that enter a connection: the same numbers as the connections one by one; or
  'previous', of those that entered the connection before. norm_epsilon: every stream is normed behind a connection,
  x_i / √(mean x_i² + ε); None: it is not.

  Streams are (*tokens, n, d) of any float dtype, and so is the result. Raises ConfigError for a field out of range, and
  for connections that differ in streams or width or that a chain has no operator for: segments, a projection of each
  stream alone, another norm in front of the projection than 'rmsnorm'.

  >>> rule = jp.HyperConnectionFn(jp.Cayley(), streams=4, width=8)
  >>> links = [jp.Link(rule, rule.init(jax.random.key(k))) for k in range(3)]
  >>> streams = jp.expand(jnp.ones((2, 8)), 4)
  >>> jp.Chain(norm_epsilon=1e-6)(streams, links, [jnp.tanh] * 3).shape
  (2, 4, 8)
  """

  coefficients: str = "own"
  norm_epsilon: float | None = None

  def __post_init__(self) -> None:
    check_choice("coefficients", self.coefficients, COEFFICIENTS_FROM)
    if self.norm_epsilon is not None:
      check_number("norm_epsilon", self.norm_epsilon, ge=0)

  @property
  def lags(self) -> bool:
    """Whether coefficients are one connection old."""
    return self.coefficients == "previous"

  @property
  def ahead(self) -> int:
    """How many connections behind the present one a step must know."""
    return 1 + self.lags

  def __call__(
    self, streams: Float[Array, "*tokens n d"], links: Sequence[Link], sublayers: Sequence[SubLayer]
  ) -> Float[Array, "*tokens n d"]:
    """The streams behind all connections; each sub-layer runs once and returns one vector."""
    if not links or len(links) != len(sublayers):
      counts = f"{len(links)} connections and {len(sublayers)} sub-layers"
      raise ValueError(f"{counts}: expected one or more, and as many of both")
    passing = self.enter(streams, links[: self.ahead])
    for k, (link, sublayer) in enumerate(zip(links[:-1], sublayers[:-1], strict=True)):
      passing = self.step(passing, link, sublayer, links[k + 1 : k + 1 + self.ahead])
    return self.leave(passing, links[-1], sublayers[-1])

  def enter(self, streams: Float[Array, "*tokens n d"], links: Sequence[Link]) -> Passing:
    """In front of the first connection; `links`: it and, with coefficients='previous', the one behind it."""
    first, ops = links[0], _ops(links[0])
    for link in links:
      check_link(link.rule)
    first.rule.check_streams(streams)
    kernels = [kernel for link in links if (kernel := _kernel(link, streams)) is not None]
    entered: Array | FusedStreams = streams
    if ops.fuses:
      columns = sum(kernel.shape[-1] for kernel in kernels)
      shape = (*kernels[0].shape[:2], columns) if kernels else None
      entered = fused_streams.enter(streams, Terms(read=True, kernel_shape=shape), ops)
    products, square = vjp.statistics(entered, jnp.concatenate(kernels, axis=-1), ops) if kernels else (None, None)
    own = _kernel(first, streams)
    columns = 0 if own is None else own.shape[-1]
    coefficients = _coefficients(first, *_columns(products, square, slice(0, columns)))
    vector = vjp.read(entered, coefficients.read, ops)
    rest = _columns(products, square, slice(columns, None)) if len(links) > 1 else (None, None)
    return Passing(entered.streams if isinstance(entered, FusedStreams) else entered, vector, coefficients, *rest)

  def step(self, passing: Passing, link: Link, sublayer: SubLayer, following: Sequence[Link]) -> Passing:
    """Through one connection to the front of the next. `following`: the next ones, as many as `ahead` or what is left.

    `link.parameters` are not used for what is known already, its coefficients.
    """
    check_link(following[0].rule, link.rule)
    behind, ops = following[0], _ops(link)
    known = self.lags or behind.rule.generator == "static"  # so that the read joins the pass
    coefficients = _coefficients(behind, passing.products, passing.square) if known else None
    projected = (following[1] if len(following) > 1 else None) if self.lags else behind
    passed = single_pass.advance(
      passing.streams, passing.coefficients.mix, passing.coefficients.write, _output(passing.vector, sublayer), ops,
      kernel=None if projected is None else _kernel(projected, passing.streams),
      read=None if coefficients is None else coefficients.read, epsilon=self.norm_epsilon,
    )  # fmt: skip
    if coefficients is not None and passed.vector is not None:
      return Passing(
        passed.streams.streams, passed.vector, coefficients, *((passed.products, passed.square) if self.lags else ())
      )
    coefficients = _coefficients(behind, passed.products, passed.square)
    return Passing(passed.streams.streams, vjp.read(passed.streams, coefficients.read, ops), coefficients)

  def leave(self, passing: Passing, link: Link, sublayer: SubLayer) -> Float[Array, "*tokens n d"]:
    """The streams behind the last connection."""
    output = _output(passing.vector, sublayer)
    coefficients = passing.coefficients
    return single_pass.advance(
      passing.streams, coefficients.mix, coefficients.write, output, _ops(link), epsilon=self.norm_epsilon
    ).streams.streams


def check_link(
  rule: HyperConnectionFn, before: HyperConnectionFn | None = None, remedy: str = "or connections one by one"
) -> None:
  """Raises ConfigError for a connection that a chain has no operator for, or that does not fit the one before it."""
  if rule.routing.segments > 1:
    raise ConfigError(f"segments={rule.routing.segments}: expected 1 in a single pass, {remedy}")
  if rule.generator != "static":
    if rule.projection != "joint":
      raise ConfigError(f"projection={rule.projection!r}: expected 'joint' in a single pass, {remedy}")
    if rule.norm != "rmsnorm":
      raise ConfigError(f"norm={rule.norm!r}: expected 'rmsnorm' in a single pass, {remedy}")
  if before is not None and (rule.streams, rule.width) != (before.streams, before.width):
    raise ConfigError(
      f"streams={rule.streams}, width={rule.width}: expected those of the connection before it in the chain, "
      f"streams={before.streams}, width={before.width}"
    )


def _ops(link: Link) -> StreamOps:
  return base.stream_ops(link.rule.implementation, link.rule.streams)


def _kernel(link: Link, streams: Array) -> Array | None:
  if link.rule.generator == "static":
    return None
  return link.parameters["projection"].astype(jnp.promote_types(streams.dtype, jnp.float32))


def _columns(products: Array | None, square: Array | None, columns: slice) -> tuple[Array | None, Array | None]:
  """The statistics of one connection from those of several."""
  return (None if products is None else products[columns]), square


def _coefficients(link: Link, products: Array | None, square: Array | None) -> Coefficients:
  """Of a connection, from the statistics of its projection; None for a static one."""
  rule, parameters = link
  with jax.named_scope("coefficients"):
    if products is None or square is None or rule.generator == "static":
      return saveable(rule.coefficients_of(parameters, rule.bias_of(parameters)))
    normed = generator.rms_normed(products, square, rule.streams * rule.stream_width, rule.norm_epsilon)
    return saveable(rule.coefficients_of(parameters, rule.logits_of(parameters, normed)))


def _output(vector: Array, sublayer: Callable[[Array], Any]) -> Array:
  output: Array = sublayer(vector)
  shape = getattr(output, "shape", type(output).__name__)
  if shape != vector.shape:
    raise ValueError(f"the sub-layer made {shape} of {vector.shape}: expected one vector of the shape it was given")
  return output
