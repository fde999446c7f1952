"""Pre-norm transformers with residual streams: the decoder language model and the vision transformer.

    h₀ = expand(x);   twice a layer: h ← H h + b ⊗ F(RMS(aᵀ h));   y = RMS(reduce(h))
    decoder   x = √d · embedding(bytes);                 logits = W y
    vision    x_p = E (patch p − ½) + position_p;        logits = W mean_p y_p, or W y_0 of a class token x_0

F is token mixing and SwiGLU in turn, every one wrapped by a hyper-connection of any mixer family. The parameters of the
layers are stacked on a leading axis and `jax.lax.scan` runs over them: the compiled program holds one layer, whatever
the depth. With `model.loops` above 1 the streams pass this stack as many times, a looped transformer; its connections
are those of all loops or of each loop its own (`connection.sharing`; 2604.21254 has one connection a loop, behind the
whole stack). One stream is the plain pre-norm transformer. Patches are squares of `model.patch` pixels scaled to
[0, 1]; every one of them sees every other. With `model.vision.scales` streams begin from squares of several sizes.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from jpmhc_jax.config import schema
from jpmhc_jax.connections import Chain, StreamExpansion, StreamSources, StreamSourcesFn
from jpmhc_jax.connections.chain import Passing
from jpmhc_jax.core.errors import ConfigError, require
from jpmhc_jax.core.examples import ImageFormat
from jpmhc_jax.core.sharding import constrain, constrain_hidden
from jpmhc_jax.models.blocks import Block, call_vectors, one_by_one, Part, PerCall, recomputing, with_vector
from jpmhc_jax.models.connections import chain_of, stream_expansion_fn
from jpmhc_jax.models.layers import kept_paths, per_row, pixels, rms_norm, stacked, weight

Hidden = Float[Array, "b l ..."]


class Layer(Block):
  """Two sub-layers in pre-norm form: h ← connect(h, mix tokens ∘ RMS); h ← connect(h, SwiGLU ∘ RMS)."""

  def parts(self, call: int | Int[Array, ""] = 0) -> tuple[Part, Part]:
    """The two halves in order, each sub-layer behind its norm; no norm follows a connection."""
    tokens, features = super().parts(call)
    return (
      tokens._replace(sublayer=self._behind_norm(tokens.sublayer), axes=()),
      features._replace(sublayer=self._behind_norm(features.sublayer), axes=()),
    )

  def scaled(self, scales: Float[Array, "2 b"] | None) -> tuple[Part, ...]:
    """The two halves, what each sub-layer makes of an example times a number."""
    parts = self.parts()
    if scales is None:
      return parts
    return tuple(
      part._replace(sublayer=functools.partial(_times, part.sublayer, scale))
      for part, scale in zip(parts, scales, strict=True)
    )

  def _behind_norm(self, sublayer: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda u: sublayer(rms_norm(u, self.epsilon))


def _times(sublayer: Callable[[Array], Array], scale: Float[Array, "b"], u: Array) -> Array:
  return per_row(sublayer(u), scale)


def _chained(chain: Chain, layers: Layer, h: Hidden, scales: Float[Array, "layers 2 b"] | None, policy: str) -> Hidden:
  """The streams behind all layers, with one pass over them for each connection.

  The last one prepares a connection too, the first of all, so that the layers stay one scan; nothing comes of it.
  """
  connects = layers.connect_tokens, layers.connect_features
  following = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, axis=0), connects)
  first = jax.tree.map(lambda leaf: leaf[0], connects)

  def body(passing: Passing, piece: tuple[Layer, Any, Any]) -> tuple[Passing, None]:
    layer, behind, scale = piece
    parts = layer.scaled(scale)
    links = [connect.link for connect in (*(part.connect for part in parts), *behind)]  # type: ignore[attr-defined]
    for k, part in enumerate(parts):
      passing = chain.step(passing, links[k], part.sublayer, links[k + 1 : k + 1 + chain.ahead])
    return passing, None

  entered = chain.enter(h, [connect.link for connect in first[: chain.ahead]])  # type: ignore[union-attr]
  passing, _ = jax.lax.scan(recomputing(body, policy), entered, (layers, following, scales))
  return constrain_hidden(passing.streams.streams)


def _collect(records: dict[str, Any], probe: Callable[..., Any], name: str, connection: Any, streams: Array) -> None:
  records[name] = probe(connection, streams)


class Transformer(nnx.Module):
  """The layers and the ends of the streams; subclasses bring the inputs in and read the answer off.

  length: of a sequence, for token mixers that depend on it.
  """

  def __init__(self, model: schema.Model, connection: schema.Connection, *, length: int, causal: bool, rngs: nnx.Rngs):
    self.model, self.chain = model, chain_of(connection)
    ends = stream_expansion_fn(connection, model.width)
    self.ends = StreamExpansion(ends, rngs=rngs) if connection.streams > 1 else None

    def layer(rngs: nnx.Rngs, index: Array) -> Layer:
      return Layer(model, connection, length, index, rngs, causal=causal, calls=model.loops)

    self.layers = stacked(layer, model.layers, rngs)
    if model.recursion.call_embedding:
      self.call_embedding = call_vectors(model.loops, model.width)

  def expanded(self, x: Float[Array, "b l d"]) -> Hidden:
    """The streams in front of the first layer."""
    return constrain_hidden(self.ends.expand(x) if self.ends else x)

  def run(
    self,
    h: Hidden,
    probe: Callable[[Any, Array], Any] | None = None,
    nudges: Float[Array, "depth b l ..."] | None = None,
    scales: Float[Array, "depth 2 b"] | None = None,
  ) -> tuple[Hidden, dict[str, Any]]:
    """Streams behind the last layer, and by sub-layer what `probe(connection, streams)` saw, stacked over the depth.

    The depth is loops · layers: the layers in the order in which the streams pass them. `nudges` are added to the
    streams in front of each layer: the gradient at zero nudges is the one that reaches each layer. `scales` multiply
    what the two sub-layers of a layer make of each example.
    """
    loops = self.model.loops
    own, layers = self._of_loops()

    policy, epsilon, chain = self.model.rematerialise, self.model.norm_epsilon, self.chain

    def body(state: tuple[Array, Array | None], piece: tuple[Layer, Any, Any]) -> tuple[Any, dict[str, Any]]:
      (h, seen), (layer, nudge, scale) = state, piece
      records: dict[str, Any] = {}
      visit = None if probe is None else functools.partial(_collect, records, probe)
      h = h if nudge is None else h + nudge
      return one_by_one(layer.scaled(scale), h, epsilon, visit, seen), records

    def loop(h: Array, turn: tuple[Any, Any, Any, Array]) -> tuple[Array, dict[str, Any]]:
      own, nudges, scales, number = turn
      stack, h = layers(own), self.entering(h, number)
      if chain is not None and probe is None and nudges is None:
        return _chained(chain, stack, h, scales, policy), {}
      start = h, (h if chain is not None and chain.lags else None)
      (h, _), records = jax.lax.scan(recomputing(body, policy), start, (stack, nudges, scales))
      return h, records

    nudges, scales = jax.tree.map(lambda leaf: leaf.reshape(loops, -1, *leaf.shape[1:]), (nudges, scales))
    turns = own, nudges, scales, jnp.arange(loops, dtype=jnp.int32)
    if loops == 1:
      return loop(h, jax.tree.map(lambda leaf: leaf[0], turns))
    whole = jax.checkpoint(loop, prevent_cse=False) if self.model.rematerialise == "call" else loop
    h, records = jax.lax.scan(whole, h, turns)
    return h, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), records)

  def entering(self, h: Hidden, loop: int | Int[Array, ""]) -> Hidden:
    """The streams as a loop's first layer sees them: with the vector of this loop where loops have one."""
    if not self.model.recursion.call_embedding:
      return h
    return with_vector(h, self.call_embedding, loop, self.ends.expand if self.ends else lambda x: x)

  def _of_loops(self) -> tuple[list[Any], Callable[[list[Any]], Layer]]:
    """What each loop has of its own, with the loops in front; and the stacked layers with what one loop has so."""
    leaves, structure = jax.tree.flatten(self.layers, is_leaf=lambda leaf: isinstance(leaf, PerCall))
    stacks = [leaf.calls for leaf in leaves if isinstance(leaf, PerCall)]

    def layers(own: list[Any]) -> Layer:
      each = iter(own)
      complete = [next(each) if isinstance(leaf, PerCall) else leaf for leaf in leaves]
      stack: Layer = jax.tree.unflatten(structure, complete)
      return stack

    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), stacks), layers

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
    length, values = image.height * image.width // model.patch**2, image.channels * model.patch**2
    self.sources = self._sources(model, connection, rngs)
    if self.sources is None:
      self.patch_embedding = weight(rngs, (values, model.width), values, (None, "embed"))
    self.reads_token = model.vision.pooling == "token"
    if self.reads_token:
      length += 1
      self.class_token = weight(rngs, (model.width,), model.width, ("embed",))
    self.class_head = weight(rngs, (model.width, image.classes), model.width, ("embed", None))
    if model.positions == "learned":
      self.position_embedding = weight(rngs, (length, model.width), model.width, ("positions", "embed"))
    super().__init__(model, connection, length=length, causal=False, rngs=rngs)

  def _sources(self, model: schema.Model, connection: schema.Connection, rngs: nnx.Rngs) -> StreamSources | None:
    """Where streams begin, of model.vision.scales. Raises ConfigError for scales that do not fit."""
    scales, image, name = model.vision.scales, self.image, "model.vision.scales"
    if not scales:
      return None
    require(min(scales) > 0, name, scales, "whole numbers above 0")
    whole = all(side % (scale * model.patch) == 0 for scale in scales for side in (image.height, image.width))
    require(whole, name, scales, f"squares of {model.patch} pixels and so many times that tile the image")
    require(len(scales) <= connection.streams, name, scales, f"no more than connection.streams={connection.streams}")
    plain = connection.segments == 1 and connection.expand == "copy" and not connection.stream_embedding
    require(plain, name, scales, "() beside connection.segments, connection.expand and connection.stream_embedding")
    widths = [image.channels * (scale * model.patch) ** 2 for scale in scales]
    return StreamSources(StreamSourcesFn(widths=widths, streams=connection.streams, width=model.width), rngs=rngs)

  def patches(self, inputs: Num[Array, "b pixels"], scale: int = 1) -> Float[Array, "b l p"]:
    """Rows of pixel values cut into patches, row by row, with mean pixel about 0.

    scale: of a position, the pixels of the square of so many times its side that it lies in.
    """
    image, side = self.image, scale * self.model.patch
    grid = (image.height // side, side, image.width // side, side, image.channels)
    cut = pixels(inputs, image, self.dtype).reshape(inputs.shape[0], *grid)
    squares = cut.transpose(0, 1, 3, 2, 4, 5).reshape(inputs.shape[0], grid[0], grid[2], -1)
    for axis in (1, 2):
      squares = jnp.repeat(squares, scale, axis=axis)
    return squares.reshape(inputs.shape[0], -1, squares.shape[-1])

  def embed(self, inputs: Num[Array, "b pixels"]) -> Hidden:
    """Embedded patches with their positions, behind the class token if there is one, as streams."""
    if self.sources is None:
      x = jnp.einsum("blp,pd->bld", self.patches(inputs), self.patch_embedding[...].astype(self.dtype))
    else:
      x = self.sources([self.patches(inputs, scale) for scale in self.model.vision.scales])
    own = (slice(None),) * 2 + (None,) * (x.ndim - 3)  # a token and a position are the same in every stream
    if self.reads_token:
      token = math.sqrt(self.model.width) * self.class_token[...].astype(self.dtype)[None, None][own]
      x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, *x.shape[2:])), x], axis=1)
    if self.model.positions == "learned":
      x = x + math.sqrt(self.model.width) * self.position_embedding[...].astype(self.dtype)[None][own]
    return constrain_hidden(x) if self.sources is not None else self.expanded(x)

  def head(self, h: Hidden) -> Float[Array, "b classes"]:
    """Logits from the reduced, normed streams: of the class token, or their mean over the positions."""
    y = self.reduced(h)
    return jnp.einsum(
      "bd,dc->bc", y[:, 0] if self.reads_token else jnp.mean(y, axis=1), self.class_head[...].astype(self.dtype)
    )

  def __call__(
    self, inputs: Num[Array, "b pixels"], training: bool = False, key: Key[Array, ""] | None = None
  ) -> Float[Array, "b classes"]:
    """Logits of the classes; inputs are the pixel values, channels last, flattened.

    In training, sub-layers are left out as model.vision.drop_path says, drawn from the key.
    """
    rate, depth, scales = self.model.vision.drop_path, self.model.loops * self.model.layers, None
    if training and key is not None and rate:
      scales = kept_paths(key, rate, 2 * depth, len(inputs)).reshape(depth, 2, -1)
    return self.head(self.run(self.embed(inputs), scales=scales)[0])
