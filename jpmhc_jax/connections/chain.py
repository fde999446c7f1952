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
from jpmhc_jax.connections.ops.composed import Operands
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
  """What a chain holds in front of a connection: the streams and their statistics.

  The statistics are for the connection, or, where coefficients are one connection old, for the one behind it; None for
  a static one. vector, coefficients: what the connection reads and its coefficients, where they are known already.
  """

  streams: FusedStreams
  products: Float[Array, "k *tokens"] | None
  square: Float[Array, "*tokens"] | None
  vector: Float[Array, "*tokens d"] | None = None
  coefficients: Coefficients | None = None


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
    self,
    streams: Float[Array, "*tokens n d"],
    links: Sequence[Link],
    sublayers: Sequence[SubLayer],
    norms_last: bool = True,
  ) -> Float[Array, "*tokens n d"]:
    """The streams behind all connections; each sub-layer runs once and returns one vector.

    norms_last: whether the chain's norm, if it has one, is behind the last connection too.
    """
    if not links or len(links) != len(sublayers):
      counts = f"{len(links)} connections and {len(sublayers)} sub-layers"
      raise ValueError(f"{counts}: expected one or more, and as many of both")
    passing = self.enter(streams, links[: self.ahead])
    for k, (link, sublayer) in enumerate(zip(links[:-1], sublayers[:-1], strict=True)):
      passing = self.step(passing, link, sublayer, links[k + 1 : k + 1 + self.ahead])
    last = self if norms_last else dataclasses.replace(self, norm_epsilon=None)
    return last.leave(passing, links[-1], sublayers[-1])

  def enter(self, streams: Float[Array, "*tokens n d"], links: Sequence[Link]) -> Passing:
    """In front of the first connection; `links`: it and, with coefficients='previous', the one behind it."""
    first, ops = links[0], _ops(links[0])
    for link in links:
      check_link(link.rule)
    first.rule.check_streams(streams)
    if not self.lags:
      return Passing(fused_streams.enter(streams, Terms(read=True), ops), *_statistics(first, streams))
    coefficients = first.rule.coefficients(first.parameters, streams)
    later = _statistics(links[1], streams) if len(links) > 1 else (None, None)
    return Passing(FusedStreams(streams), *later, vjp.read(streams, coefficients.read, ops), coefficients)

  def step(self, passing: Passing, link: Link, sublayer: SubLayer, following: Sequence[Link]) -> Passing:
    """Through one connection to the front of the next. `following`: as many of the next as `ahead`, or what is left."""
    check_link(following[0].rule, link.rule)
    if self.lags:
      coefficients = _coefficients(following[0], passing)
      behind = following[1] if len(following) > 1 else None
      passed = self._advance(passing, link, sublayer, behind, coefficients.read)
      return Passing(passed.streams, passed.products, passed.square, passed.vector, coefficients)
    passed = self._advance(passing, link, sublayer, following[0], None)
    return Passing(passed.streams, passed.products, passed.square)

  def leave(self, passing: Passing, link: Link, sublayer: SubLayer) -> Float[Array, "*tokens n d"]:
    """The streams behind the last connection."""
    return self._advance(passing, link, sublayer, None, None).streams.streams

  def _advance(
    self, passing: Passing, link: Link, sublayer: SubLayer, behind: Link | None, read: Array | None
  ) -> single_pass.Passed:
    """Mix and write, with the statistics for the connection `behind`."""
    ops, (vector, coefficients) = _ops(link), (passing.vector, passing.coefficients)
    if vector is None or coefficients is None:
      coefficients = _coefficients(link, passing)
      vector = vjp.read(passing.streams, coefficients.read, ops)
    kernel = None if behind is None else _kernel(behind, passing.streams)
    following = None if kernel is None else jax.lax.stop_gradient(kernel)
    output = _output(vector, sublayer)
    operands = Operands(passing.streams.streams, coefficients.mix, coefficients.write, output, following, read)
    return single_pass.advance(operands, self.norm_epsilon, ops)


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


def _kernel(link: Link, streams: Array | FusedStreams) -> Array | None:
  if link.rule.generator == "static":
    return None
  return link.parameters["projection"].astype(jnp.promote_types(streams.dtype, jnp.float32))


def _statistics(link: Link, streams: Array) -> tuple[Array | None, Array | None]:
  """Of the first streams; their gradient goes through `single_pass.given` as that of all others does."""
  kernel = _kernel(link, streams)
  return (None, None) if kernel is None else vjp.statistics(streams, jax.lax.stop_gradient(kernel), _ops(link))


def _coefficients(link: Link, passing: Passing) -> Coefficients:
  """Of a connection, from the statistics at hand, which are those of its projection."""
  (rule, parameters), kernel = link, _kernel(link, passing.streams)
  with jax.named_scope("coefficients"):
    if kernel is None or passing.products is None or passing.square is None:
      return saveable(rule.coefficients_of(parameters, rule.bias_of(parameters)))
    statistics = single_pass.given(passing.streams.streams, kernel, passing.products, passing.square, _ops(link))
    normed = generator.rms_normed(*statistics, rule.streams * rule.stream_width, rule.norm_epsilon)
    return saveable(rule.coefficients_of(parameters, rule.logits_of(parameters, normed)))


def _output(vector: Array, sublayer: Callable[[Array], Any]) -> Array:
  output: Array = sublayer(vector)
  shape = getattr(output, "shape", type(output).__name__)
  if shape != vector.shape:
    raise ValueError(f"the sub-layer made {shape} of {vector.shape}: expected one vector of the shape it was given")
  return output
