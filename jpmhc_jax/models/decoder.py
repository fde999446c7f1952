"""A causal transformer with residual streams: the decoder language model.

    h₀ = expand(√d · embedding(bytes));   twice a layer: h ← H h + b ⊗ F(RMS(aᵀ h));   logits = head(RMS(reduce(h)))

Pre-norm, F causal attention and SwiGLU in turn, every one wrapped by a hyper-connection of any mixer family. The
layers' parameters are stacked on a leading axis and `jax.lax.scan` runs over them: the compiled program holds one
layer, whatever the depth. One stream is the plain pre-norm transformer.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jpmhc_jax.connections import Ends
from jpmhc_jax.core import schema
from jpmhc_jax.core.layout import constrain, constrain_hidden
from jpmhc_jax.models.layers import rms_norm, weight
from jpmhc_jax.models.trm import Block, recomputing, Visitor

Hidden = Float[Array, "b l ..."]


class Layer(Block):
  """Two sub-layers in pre-norm form: h ← connect(h, mix tokens ∘ RMS); h ← connect(h, SwiGLU ∘ RMS)."""

  def __call__(self, h: Hidden, visit: Visitor | None = None) -> Hidden:
    parts = (("tokens", self.connect_tokens, self.tokens), ("features", self.connect_features, self.features))
    for name, connect, sublayer in parts:
      if visit is not None:
        visit(name, connect, h)
      h = constrain_hidden(connect(h, self._behind_norm(sublayer)))
    return h

  def _behind_norm(self, sublayer: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda u: sublayer(rms_norm(u, self.epsilon))


def _collect(found: dict[str, Any], probe: Callable[..., Any], name: str, connection: Any, streams: Array) -> None:
  found[name] = probe(connection, streams)


class Decoder(nnx.Module):
  """Next-token logits of a token sequence. `sequence_length` only matters for learned positions."""

  def __init__(
    self,
    model: schema.Model,
    connection: schema.Connection,
    *,
    vocab_size: int,
    sequence_length: int,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.model, self.dtype = model, jnp.dtype(dtype)
    self.embedding = weight(rngs, (vocab_size, model.width), model.width, ("vocab", "embed"))
    self.lm_head = weight(rngs, (model.width, vocab_size), model.width, ("embed", "vocab"))
    if model.positions == "learned":
      self.position_embedding = weight(rngs, (sequence_length, model.width), model.width, ("positions", "embed"))
    self.ends = Ends(connection, width=model.width, rngs=rngs) if connection.streams > 1 else None

    def layer(key: Array, index: Array) -> Layer:
      return Layer(model, connection, sequence_length, index, nnx.Rngs(params=key), causal=True)

    self.layers = jax.vmap(layer)(jax.random.split(rngs.params(), model.layers), jnp.arange(model.layers))
    for variable in jax.tree.leaves(self.layers, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
      variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))

  def embed(self, inputs: Int[Array, "b l"]) -> Hidden:
    """√d · embedding, expanded into the streams."""
    x = constrain(self.embedding[...].astype(self.dtype), "vocab", "features")[inputs]
    if self.model.positions == "learned":
      x = (x + self.position_embedding[...].astype(self.dtype)[None]) * math.sqrt(0.5)
    x = math.sqrt(self.model.width) * x
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
      found: dict[str, Any] = {}
      visit = None if probe is None else functools.partial(_collect, found, probe)
      return layer(h if nudge is None else h + nudge, visit), found

    return jax.lax.scan(recomputing(body, self.model.rematerialise), h, (self.layers, nudges))

  def head(self, h: Hidden) -> Float[Array, "b l vocab"]:
    """Logits from the reduced, normed streams."""
    x = rms_norm(self.ends.reduce(h) if self.ends else h, self.model.norm_epsilon)
    return jnp.einsum("bld,dv->blv", x, self.lm_head[...].astype(self.dtype))

  def __call__(self, inputs: Int[Array, "b l"]) -> Float[Array, "b l vocab"]:
    """Logits of the token behind each position, from it and the positions before."""
    return self.head(self.run(self.embed(inputs))[0])
