"""Blocks of a network with residual streams: sub-layers with the connections around them, one by one or as a chain."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jpmhc_jax.config import schema
from jpmhc_jax.connections import Chain, HyperConnection
from jpmhc_jax.core.sharding import constrain_hidden
from jpmhc_jax.models.connections import hyper_connection_fn, sublayer_width
from jpmhc_jax.models.layers import Attention, ConvSwiGLU, rms_norm, stacked, SwiGLU, swiglu_width, TokenMLP
from jpmhc_jax.models.products import SAVED

Latent = Float[Array, "b l ..."]
Connect = Callable[[Array, Callable[[Array], Array]], Array]
Visitor = Callable[[str, Any, Array], None]  # (name, connection, the streams that enter it)


class Part(NamedTuple):
  """One connection with its sub-layer; the streams pass through `normed(connect(h, sublayer), epsilon)`.

  No axes, (): no norm follows. activation: what acts on every number of the streams then, if anything does.
  """

  name: str
  connect: Connect
  sublayer: Callable[[Array], Array]
  axes: int | tuple[int, ...]
  activation: Callable[[Array], Array] | None = None

  @property
  def ends_a_chain(self) -> bool:
    """Whether the norm takes more than a stream's features: it needs what other positions have."""
    return self.axes not in ((), -1)

  def normed(self, streams: Array, epsilon: float) -> Array:
    """The streams behind the norm and the activation, given those behind the connection."""
    streams = streams if self.axes == () else rms_norm(streams, epsilon, axis=self.axes)
    return streams if self.activation is None else self.activation(streams)


def one_by_one(
  parts: Sequence[Part], h: Latent, epsilon: float, visit: Visitor | None = None, seen: Latent | None = None
) -> tuple[Latent, Latent | None]:
  """The streams behind all parts, and those in front of the last one.

  seen: the streams that the coefficients of the first are made of; those of the others are then made of the streams in
  front of the part before, as in a chain. None: every connection makes its own of the streams that enter it.
  """
  for part in parts:
    connect = part.connect if seen is None else part.connect.seeing(seen)  # type: ignore[attr-defined]
    if visit is not None:
      visit(part.name, connect, h)
    seen = None if seen is None else h
    h = constrain_hidden(part.normed(connect(h, part.sublayer), epsilon))
    seen = h if seen is not None and part.ends_a_chain else seen
  return h, seen


def in_one_pass(chain: Chain, parts: Sequence[Part], h: Latent, epsilon: float) -> Latent:
  """The streams behind all parts, with one pass over them for each; the norm behind a part is the chain's.

  A norm over anything but a stream's features ends a chain.
  """
  ends = [k + 1 for k, part in enumerate(parts) if part.ends_a_chain]
  for begin, end in itertools.pairwise((0, *ends, len(parts))):
    some = parts[begin:end]
    if some:
      links = [part.connect.link for part in some]  # type: ignore[attr-defined]
      last = some[-1]
      h = chain(h, links, [part.sublayer for part in some], norms_last=not last.ends_a_chain)
      h = constrain_hidden(last.normed(h, epsilon) if last.ends_a_chain else h)
  return h


class PerCall(nnx.Module):
  """Modules of one form with parameters of their own for each call of a cycle, stacked in front."""

  def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], calls: int, rngs: nnx.Rngs):
    self.calls = stacked(lambda rngs, call: make(rngs), calls, rngs, name="calls")

  def at(self, call: int | Int[Array, ""]) -> Any:
    """The module of one call."""
    return jax.tree.map(lambda leaf: leaf[call], self.calls)


class Block(nnx.Module):
  """Two sub-layers in post-norm form: h ← RMS(connect(h, mix tokens)); h ← RMS(connect(h, SwiGLU))."""

  def __init__(
    self,
    model: schema.Model,
    connection: schema.Connection,
    length: int,
    layer: int | Int[Array, ""],
    rngs: nnx.Rngs,
    causal: bool = False,
    calls: int = 1,
  ):
    def one(make: Callable[[nnx.Rngs], Any], shared: bool) -> Any:
      return make(rngs) if shared else PerCall(make, calls, rngs)

    sublayers, hidden = connection.sharing != "none", model.width
    model = dataclasses.replace(model, width=sublayer_width(connection, hidden))
    self.tokens = one(lambda rngs: _token_mixer(model, length, causal, rngs), sublayers)
    self.features = one(functools.partial(_feed_forward, model), sublayers)
    repeated = connection.sharing == "all" or connection.streams == 1
    self.connect_tokens, self.connect_features = (
      one(functools.partial(connection_of, connection, hidden, index), repeated) for index in (2 * layer, 2 * layer + 1)
    )
    self.epsilon = model.norm_epsilon
    self.feature_axes = -1 if connection.segments == 1 else (-2, -1)
    self.token_axes = 1 if model.token_mixer == "mlp" else self.feature_axes

  def __call__(self, h: Latent, call: int | Int[Array, ""] = 0) -> Latent:
    return one_by_one(self.parts(call), h, self.epsilon)[0]

  def parts(self, call: int | Int[Array, ""] = 0) -> tuple[Part, ...]:
    """The two halves in order, as a call of the cycle has them."""

    def of(module: Any) -> Any:
      return module.at(call) if isinstance(module, PerCall) else module

    return (
      Part("tokens", of(self.connect_tokens), of(self.tokens), self.token_axes),
      Part("features", of(self.connect_features), of(self.features), self.feature_axes),
    )


def call_vectors(calls: int, width: int) -> nnx.Param:
  """A learned vector for each call, which starts at zero."""
  return nnx.Param(jnp.zeros((calls, width), jnp.float32), axes=("calls", "embed"), role="trunk")


def with_vector(
  h: Latent, vectors: nnx.Param, call: int | Int[Array, ""], widen: Callable[[Float[Array, "b l d"]], Latent]
) -> Latent:
  """h, and the vector of this call in every stream, as `widen` makes streams of a vector."""
  vector = widen(vectors[...].astype(h.dtype)[call][None, None])
  return h + vector.reshape((1,) * (h.ndim - vector.ndim) + vector.shape)


def connection_of(connection: schema.Connection, width: int, index: int | Int[Array, ""], rngs: nnx.Rngs) -> Connect:
  """The connection of a sub-layer, the `index`-th of its network; of one stream the plain residual."""
  if connection.streams == 1:
    return plain_residual
  return HyperConnection(hyper_connection_fn(connection, width, layer_index=0), layer_index=index, rngs=rngs)


def _token_mixer(model: schema.Model, length: int, causal: bool, rngs: nnx.Rngs) -> Attention | TokenMLP:
  if model.token_mixer == "mlp":
    return TokenMLP(length, swiglu_width(length, model.expansion, model.mlp_multiple), rngs=rngs)
  theta = model.rope_theta if model.positions == "rope" else None
  return Attention(model.width, model.heads, rope_theta=theta, rngs=rngs, causal=causal, implementation=model.attention)


def _feed_forward(model: schema.Model, rngs: nnx.Rngs) -> SwiGLU:
  hidden = swiglu_width(model.width, model.expansion, model.mlp_multiple)
  if model.convolution:
    return ConvSwiGLU(model.width, hidden, model.convolution, rngs=rngs)
  return SwiGLU(model.width, hidden, rngs=rngs)


def plain_residual(h: Array, sublayer: Callable[[Array], Array]) -> Array:
  """h + F(h): what a connection is with one stream."""
  return h + sublayer(h)


def recomputing(block: Callable[..., Any], policy: str) -> Callable[..., Any]:
  """A block with what its backward pass recomputes. In a scan nothing merges with the forward pass: no barriers."""
  return jax.checkpoint(block, policy=SAVED[policy], prevent_cse=False) if policy in SAVED else block
