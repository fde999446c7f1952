"""Pre-norm transformers with residual streams: the decoder language model and the vision transformer.

    h₀ = expand(x);   twice a layer: h ← H h + b ⊗ F(RMS(aᵀ h));   y = RMS(reduce(h))
    decoder   x = √d · embedding(bytes);                 logits = W y
    vision    x_p = E (patch p − ½) + position_p;        logits = W mean_p y_p

F is token mixing and SwiGLU in turn, every one wrapped by a hyper-connection of any mixer family. The parameters of the
layers are stacked on a leading axis and `jax.lax.scan` runs over them: the compiled program holds one layer, whatever
the depth. One stream is the plain pre-norm transformer. Patches are squares of `model.patch` pixels scaled to [0, 1];
every one of them sees every other.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jpmhc_jax.config import schema
from jpmhc_jax.connections import StreamExpansion
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.examples import ImageFormat
from jpmhc_jax.core.sharding import constrain, constrain_hidden
from jpmhc_jax.models.connections import stream_expansion_fn
from jpmhc_jax.models.layers import rms_norm, weight
from jpmhc_jax.models.trm import Block, Part, recomputing, Visitor

Hidden = Float[Array, "b l ..."]


class Layer(Block):
  """Two sub-layers in pre-norm form: h ← connect(h, mix tokens ∘ RMS); h ← connect(h, SwiGLU ∘ RMS)."""

  def __call__(self, h: Hidden, visit: Visitor | None = None, call: int | Int[Array, ""] = 0) -> Hidden:
    for part in self.parts(call):
      if visit is not None:
        visit(part.name, part.connect, h)
      h = constrain_hidden(part.connect(h, part.sublayer))
    return h

  def parts(self, call: int | Int[Array, ""] = 0) -> tuple[Part, Part]:
    """The two halves in order, each sub-layer behind its norm; no norm follows a connection."""
    tokens, features = super().parts(call)
    return (
      tokens._replace(sublayer=self._behind_norm(tokens.sublayer), axes=()),
      features._replace(sublayer=self._behind_norm(features.sublayer), axes=()),
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


class Decoder(Transformer):
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
    self.dtype = jnp.dtype(dtype)
    self.embedding = weight(rngs, (vocab_size, model.width), model.width, ("vocab", "embed"))
    self.lm_head = weight(rngs, (model.width, vocab_size), model.width, ("embed", "vocab"))
    if model.positions == "learned":
      self.position_embedding = weight(rngs, (sequence_length, model.width), model.width, ("positions", "embed"))
    super().__init__(model, connection, length=sequence_length, causal=True, rngs=rngs)

  def embed(self, inputs: Int[Array, "b l"]) -> Hidden:
    """√d · embedding, expanded into the streams."""
    x = constrain(self.embedding[...].astype(self.dtype), "vocab", "features")[inputs]
    if self.model.positions == "learned":
      x = (x + self.position_embedding[...].astype(self.dtype)[None]) * math.sqrt(0.5)
    return self.expanded(math.sqrt(self.model.width) * x)

  def head(self, h: Hidden) -> Float[Array, "b l vocab"]:
    """Logits from the reduced, normed streams."""
    return jnp.einsum("bld,dv->blv", self.reduced(h), self.lm_head[...].astype(self.dtype))

  def __call__(self, inputs: Int[Array, "b l"]) -> Float[Array, "b l vocab"]:
    """Logits of the token behind each position, from it and the positions before."""
    return self.head(self.run(self.embed(inputs))[0])


class VisionTransformer(Transformer):
  """Class logits of an image. Raises ConfigError where patches do not tile the image."""

  def __init__(
    self,
    model: schema.Model,
    connection: schema.Connection,
    *,
    image: ImageFormat,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if image.height % model.patch or image.width % model.patch:
      raise ConfigError(
        f"model.patch={model.patch}: expected a divisor of both sides of the {image.height}×{image.width} images"
      )
    self.image, self.dtype = image, jnp.dtype(dtype)
    length, pixels = image.height * image.width // model.patch**2, image.channels * model.patch**2
    self.patch_embedding = weight(rngs, (pixels, model.width), pixels, (None, "embed"))
    self.class_head = weight(rngs, (model.width, image.classes), model.width, ("embed", None))
    if model.positions == "learned":
      self.position_embedding = weight(rngs, (length, model.width), model.width, ("positions", "embed"))
    super().__init__(model, connection, length=length, causal=False, rngs=rngs)

  def patches(self, inputs: Int[Array, "b pixels"]) -> Float[Array, "b l p"]:
    """Rows of pixel values cut into patches, row by row, with mean pixel about 0."""
    image, side = self.image, self.model.patch
    grid = (image.height // side, side, image.width // side, side, image.channels)
    pixels = inputs.astype(self.dtype).reshape(inputs.shape[0], *grid) / image.top - 0.5
    return pixels.transpose(0, 1, 3, 2, 4, 5).reshape(inputs.shape[0], grid[0] * grid[2], -1)

  def embed(self, inputs: Int[Array, "b pixels"]) -> Hidden:
    """Embedded patches with their positions, expanded into the streams."""
    x = jnp.einsum("blp,pd->bld", self.patches(inputs), self.patch_embedding[...].astype(self.dtype))
    if self.model.positions == "learned":
      x = x + math.sqrt(self.model.width) * self.position_embedding[...].astype(self.dtype)[None]
    return self.expanded(x)

  def head(self, h: Hidden) -> Float[Array, "b classes"]:
    """Logits from the mean over positions of the reduced, normed streams."""
    pooled = jnp.mean(self.reduced(h), axis=1)
    return jnp.einsum("bd,dc->bc", pooled, self.class_head[...].astype(self.dtype))

  def __call__(self, inputs: Int[Array, "b pixels"]) -> Float[Array, "b classes"]:
    """Logits of the classes; inputs are the pixel values, channels last, flattened."""
    return self.head(self.run(self.embed(inputs))[0])
