"""A pre-norm transformer with residual streams: what the decoder and the vision transformer have in common.

    h₀ = expand(x);   twice a layer: h ← H h + b ⊗ F(RMS(aᵀ h));   y = RMS(reduce(h))

F is token mixing and SwiGLU in turn, every one wrapped by a hyper-connection of any mixer family. The parameters of the
layers are stacked on a leading axis and `jax.lax.scan` runs over them: the compiled program holds one layer, whatever
the depth. One stream is the plain pre-norm transformer.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.config import schema
from jpmhc_jax.connections import StreamExpansion
from jpmhc_jax.core.sharding import constrain_hidden
from jpmhc_jax.models.connections import stream_expansion_fn
from jpmhc_jax.models.layers import rms_norm
from jpmhc_jax.models.trm import Block, Part, recomputing, Visitor

Hidden = Float[Array, "b l ..."]


class Layer(Block):
  """Two sub-layers in pre-norm form: h ← connect(h, mix tokens ∘ RMS); h ← connect(h, SwiGLU ∘ RMS)."""

  def __call__(self, h: Hidden, visit: Visitor | None = None) -> Hidden:
    for part in self.parts():
      if visit is not None:
        visit(part.name, part.connect, h)
      h = constrain_hidden(part.connect(h, part.sublayer))
    return h

  def parts(self) -> tuple[Part, Part]:
    """The two halves in order, each sub-layer behind its norm; no norm follows a connection."""
    return (
      Part("tokens", self.connect_tokens, self._behind_norm(self.tokens), ()),
      Part("features", self.connect_features, self._behind_norm(self.features), ()),
    )

  def _behind_norm(self, sublayer: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda u: sublayer(rms_norm(u, self.epsilon))


def _collect(records: dict[str, Any], probe: Callable[..., Any], name: str, connection: Any, streams: Array) -> None:
  records[name] = probe(connection, streams)


class Transformer(nnx.Module):
  """The layers and the ends of the streams; subclasses bring the inputs in and read the answer off.

  length: of a sequence, for token mixers that depend on it.
  """

  def __init__(self, model: schema.Model, connection: schema.Connection, *, length: int, causal: bool, rngs: nnx.Rngs):
    self.model = model
    ends = stream_expansion_fn(connection, model.width)
    self.ends = StreamExpansion(ends, rngs=rngs) if connection.streams > 1 else None

    def layer(key: Array, index: Array) -> Layer:
      return Layer(model, connection, length, index, nnx.Rngs(params=key), causal=causal)

    self.layers = jax.vmap(layer)(jax.random.split(rngs.params(), model.layers), jnp.arange(model.layers))
    for variable in jax.tree.leaves(self.layers, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
      variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))

  def expanded(self, x: Float[Array, "b l d"]) -> Hidden:
    """The streams in front of the first layer."""
    return constrain_hidden(self.ends.expand(x) if self.ends else x)

  def run(
    self,
    h: Hidden,
    probe: Callable[[Any, Array], Any] | None = None,
    nudges: Float[Array, "layers b l ..."] | None = None,
  ) -> tuple[Hidden, dict[str, Any]]:
    """Streams behind the last layer, and by sub-layer what `probe(connection, streams)` saw, stacked over the layers.

    `nudges` are added to the streams in front of each layer: the gradient at zero nudges is the one that reaches each
    layer.
    """

    def body(h: Array, piece: tuple[Layer, Array | None]) -> tuple[Array, dict[str, Any]]:
      layer, nudge = piece
      records: dict[str, Any] = {}
      visit = None if probe is None else functools.partial(_collect, records, probe)
      return layer(h if nudge is None else h + nudge, visit), records

    return jax.lax.scan(recomputing(body, self.model.rematerialise), h, (self.layers, nudges))

  def reduced(self, h: Hidden) -> Float[Array, "b l d"]:
    """The normed vector that the streams come to behind the last layer."""
    return rms_norm(self.ends.reduce(h) if self.ends else h, self.model.norm_epsilon)
