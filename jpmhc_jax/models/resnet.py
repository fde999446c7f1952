"""Residual networks over images, with residual streams.

    h = expand(stem(x));   a block: h ← σ(H h + b ⊗ F(aᵀ h));   logits = W mean_positions reduce(h) + c

| form     | stem                             | width of the stages | blocks of a stage      | depth        |
| cifar    | 3×3                              | d, 2d, 4d           | k                      | 6k + 2       |
| imagenet | 7×7 by 2, then max pool 3×3 by 2 | d, 2d, 4d, 8d       | 2,2,2,2 or 3,4,6,3     | 18, 34       |
|          |                                  | 4d, 8d, 16d, 32d    | 3,4,6,3; 3,4,23,3; …   | 50, 101, 152 |

A position is a token: streams are (batch, height, width, n, d), and a connection reads (batch, height, width, d), an
image as convolutions take it. No axis moves. F is two convolutions 3×3, or from depth 50 on 1×1, 3×3, 1×1. With
order=post each has a norm behind it and all but the last a ReLU, and σ is the ReLU; with order=pre norm and ReLU stand
in front of each, and σ is the identity. A stage that changes width or resolution begins with a block without a mixer:

    shared   h_i ← σ(S h_i + F(mean_j h_j))           S: 1×1 at the stride; for order=post with a norm behind it
    reduce   h_i ← σ(S mean_j h_j + F(mean_j h_j))

S is the same for all streams. Where the next stage has another number of them (model.vision.streams), Σ_j R_ij S h_j
stands for S h_i, with a rectangular mixer R (`connections.transition`). Position p behind a change continues position
p·stride before it, so the mixers of one path multiply along these positions. The other blocks of a stage are stacked,
and `jax.lax.scan` runs over them. One stream is the published network (He et al. 2015, 1512.03385; pre: 1603.05027),
with GroupNorm (1803.08494) by default.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from jpmhc_jax.config import schema
from jpmhc_jax.connections import (
  expand,
  reduce,
  StreamExpansion,
  StreamTransition,
  StreamTransitionFn,
)
from jpmhc_jax.core.errors import require
from jpmhc_jax.core.examples import ImageFormat
from jpmhc_jax.core.sharding import constrain
from jpmhc_jax.models.blocks import connection_of, recomputing
from jpmhc_jax.models.connections import stream_expansion_fn
from jpmhc_jax.models.convolutions import Convolution, Convolutions, Hidden, NORMS
from jpmhc_jax.models.layers import kept_paths, per_row, pixels, stacked, truncated_normal, weight
from jpmhc_jax.models.products import dense, kept

_IMAGENET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BOTTLENECK = 50  # the depth from which on a block of form=imagenet has three convolutions, and four times its width


@dataclasses.dataclass(frozen=True)
class Plan:
  """Stages of the network: blocks of each, their inner widths, and how much wider their streams are."""

  blocks: tuple[int, ...]
  widths: tuple[int, ...]
  wider: int

  @classmethod
  def of(cls, model: schema.Model) -> "Plan":
    """The stages that the config asks for. Raises ConfigError for a depth that its form does not have."""
    depth, name = model.vision.depth, "model.vision.depth"
    if model.vision.form == "cifar":
      require(depth % 6 == 2, name, depth, "6k + 2, such as 20, 32, 44, 56 or 110, for model.vision.form='cifar'")
      blocks: tuple[int, ...] = ((depth - 2) // 6,) * 3
    else:
      listed = ", ".join(map(str, _IMAGENET))
      require(depth in _IMAGENET, name, depth, f"one of {listed} for model.vision.form='imagenet'")
      blocks = _IMAGENET[depth]
    wider = 4 if model.vision.form == "imagenet" and depth >= _BOTTLENECK else 1
    return cls(blocks, tuple(model.width * 2**stage for stage in range(len(blocks))), wider)

  def stride(self, stage: int) -> int:
    """Of the first block of a stage."""
    return 2 if stage else 1

  @property
  def outputs(self) -> tuple[int, ...]:
    """Features of a stream in each stage."""
    return tuple(self.wider * width for width in self.widths)

  def inputs(self, stage: int) -> int:
    """Features of a stream that enters a stage."""
    return self.outputs[stage - 1] if stage else self.widths[0]

  def changes(self, stage: int) -> bool:
    """Does a stage begin with a block that changes width or resolution?"""
    return self.stride(stage) > 1 or self.inputs(stage) != self.outputs[stage]


def stage_connections(model: schema.Model, connection: schema.Connection) -> tuple[schema.Connection, ...]:
  """The connection of each stage. Raises ConfigError for more or fewer stages than there are, and for a plain one."""
  later, count = model.vision.streams, len(Plan.of(model).blocks)
  if not later:
    return (connection,) * count
  name = "model.vision.streams"
  require(len(later) == count - 1, name, later, f"{count - 1} numbers, of the stages behind the first")
  require(min(connection.streams, *later) > 1, name, later, "2 or more in every stage, connection.streams in the first")
  return tuple(dataclasses.replace(connection, streams=streams) for streams in (connection.streams, *later))


class Block(nnx.Module):
  """h ← σ(H h + b ⊗ F(aᵀ h)) at one width and resolution; one stream: h ← σ(h + F(h))."""

  def __init__(
    self,
    model: schema.Model,
    connection: schema.Connection,
    width: int,
    outputs: int,
    index: int | Int[Array, ""],
    rngs: nnx.Rngs,
  ):
    self.convolutions = Convolutions(model, outputs, width, outputs, 1, rngs)
    self.connect = connection_of(connection, outputs, index, rngs)
    self.pre = model.vision.order == "pre"

  def __call__(self, h: Hidden, training: bool, scales: Float[Array, "b"] | None = None) -> Hidden:
    out = self.connect(h, lambda u: per_row(self.convolutions(u, training), scales))
    return _laid_out(out if self.pre else jax.nn.relu(out))


class Change(nnx.Module):
  """The first block of a stage that changes width or resolution; see the module's docstring."""

  def __init__(
    self,
    model: schema.Model,
    streams: tuple[int, int],
    inputs: int,
    width: int,
    outputs: int,
    stride: int,
    rngs: nnx.Rngs,
  ):
    self.convolutions = Convolutions(model, inputs, width, outputs, stride, rngs)
    std = math.sqrt(2 / outputs)
    kernel = truncated_normal(rngs.params(), (inputs, outputs), std)
    self.shortcut = nnx.Param(kernel, axes=(None, "embed"), role="trunk")
    self.pre, self.stride, self.streams = model.vision.order == "pre", stride, streams[1]
    self.restarts = model.vision.change == "reduce"
    self.transition = StreamTransition(StreamTransitionFn(inputs=streams[0], outputs=streams[1]))
    if not self.pre:
      self.norm = NORMS[model.vision.norm](outputs, model)

  def __call__(self, h: Hidden, training: bool, scales: Float[Array, "b"] | None = None) -> Hidden:
    mean = reduce(h) if self.streams > 1 else h
    made = per_row(self.convolutions(mean, training), scales)
    if self.streams > 1 and not self.restarts:
      out = self.transition(self._short(h, training)) + made[..., None, :]
    else:
      out = self._short(mean, training) + made
    out = out if self.pre else jax.nn.relu(out)
    return _laid_out(expand(out, self.streams) if self.streams > 1 and self.restarts else out)

  def _short(self, h: Hidden, training: bool) -> Hidden:
    short = kept(dense(h[:, :: self.stride, :: self.stride], self.shortcut[...].astype(h.dtype)))
    return short if self.pre else self.norm(short, training)


class Stage(nnx.Module):
  """Blocks of one width and resolution, after the one that leads to them.

  before: number of streams that enter. first: number of its first block.
  """

  def __init__(
    self,
    model: schema.Model,
    connection: schema.Connection,
    plan: Plan,
    stage: int,
    before: int,
    first: int,
    rngs: nnx.Rngs,
  ):
    width, outputs, stride = plan.widths[stage], plan.outputs[stage], plan.stride(stage)
    inputs, changes = plan.inputs(stage), plan.changes(stage)
    streams = (before, connection.streams)
    self.change = Change(model, streams, inputs, width, outputs, stride, rngs) if changes else None
    self.count, self.policy = plan.blocks[stage] - changes, model.rematerialise

    def block(rngs: nnx.Rngs, index: Int[Array, ""]) -> Block:
      return Block(model, connection, width, outputs, index, rngs)

    self.blocks = stacked(block, self.count, rngs, first=first + changes) if self.count else None

  def __call__(
    self,
    h: Hidden,
    training: bool,
    scales: Float[Array, "blocks b"] | None = None,
    probe: Callable[[Any, Array], Any] | None = None,
  ) -> tuple[Hidden, Any]:
    """(streams behind the stage, what `probe(connection, streams)` saw, stacked over its blocks)."""
    if self.change is not None:
      h = self.change(h, training, None if scales is None else scales[0])
    if self.blocks is None:
      return h, None

    def body(h: Array, turn: tuple[Block, Array | None]) -> tuple[Array, Any]:
      block, scale = turn
      seen = None if probe is None else probe(block.connect, h)
      return block(h, training, scale), (seen, nnx.state(block, nnx.BatchStat))

    behind = None if scales is None else scales[-self.count :]
    h, (seen, statistics) = jax.lax.scan(recomputing(body, self.policy), h, (self.blocks, behind))
    if training:
      nnx.update(self.blocks, statistics)
    return h, seen


class ResNet(nnx.Module):
  """Class logits of an image. Raises ConfigError for a depth that there is not, and for streams in segments."""

  def __init__(
    self,
    model: schema.Model,
    connection: schema.Connection,
    *,
    image: ImageFormat,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    require(connection.segments == 1, "connection.segments", connection.segments, "1: a stream is as wide as an image")
    self.plan = plan = Plan.of(model)
    self.model, self.image, self.dtype = model, image, jnp.dtype(dtype)
    self.large, self.pre, norm = model.vision.form == "imagenet", model.vision.order == "pre", NORMS[model.vision.norm]
    side, stride = (7, 2) if self.large else (3, 1)
    self.stem = Convolution(side, image.channels, model.width, stride=stride, rngs=rngs)
    last = plan.outputs[-1]
    self.norm = norm(last if self.pre else model.width, model)  # pre: behind the last block, post: of the stem
    connections = stage_connections(model, connection)
    for stage, own in enumerate(connections):
      before = connections[max(stage - 1, 0)].streams
      setattr(self, f"stage{stage}", Stage(model, own, plan, stage, before, sum(plan.blocks[:stage]), rngs))
    ends = self._ends(connection, connections[-1].streams, last, rngs) if connection.streams > 1 else (None, None)
    self.entry: StreamExpansion | None = ends[0]
    self.exit: StreamExpansion | None = ends[1]
    self.class_head = weight(rngs, (last, image.classes), last, ("embed", None))
    self.class_bias = nnx.Param(jnp.zeros((image.classes,), jnp.float32), axes=(None,), role="trunk")

  def _ends(
    self, connection: schema.Connection, streams: int, last: int, rngs: nnx.Rngs
  ) -> tuple[StreamExpansion, StreamExpansion]:
    """Where streams begin, at the stem's width, and where they end, so many of the last stage's width."""
    begin = dataclasses.replace(connection, reduce="mean")
    end = dataclasses.replace(connection, streams=streams, expand="copy", stream_embedding=False)
    return (
      StreamExpansion(stream_expansion_fn(begin, self.model.width), rngs=rngs),
      StreamExpansion(stream_expansion_fn(end, last), rngs=rngs),
    )

  def embed(self, inputs: Num[Array, "b pixels"], training: bool = False) -> Hidden:
    """The stem's features, expanded into the streams."""
    x = self.stem(pixels(inputs, self.image, self.dtype))
    x = x if self.pre else jax.nn.relu(self.norm(x, training))
    if self.large:
      x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    return _laid_out(self.entry.expand(x) if self.entry is not None else x)

  def run(
    self,
    h: Hidden,
    training: bool = False,
    key: Key[Array, ""] | None = None,
    probe: Callable[[Any, Array], Any] | None = None,
  ) -> tuple[Hidden, dict[str, Any]]:
    """Streams behind the last stage, and by block what `probe(connection, streams)` saw.

    A probe sees every stage at the positions from which those of the last one descend along the shortcuts. With a key,
    blocks are left out as model.vision.drop_path says.
    """
    blocks, rate, records = self.plan.blocks, self.model.vision.drop_path, {}
    scales = kept_paths(key, rate, sum(blocks), h.shape[0]) if key is not None and rate else None
    for stage, count in enumerate(blocks):
      first = sum(blocks[:stage])
      own = None if scales is None else scales[first : first + count]
      step = math.prod(self.plan.stride(later) for later in range(stage + 1, len(blocks)))
      at = None if probe is None else functools.partial(_probed, probe, step)
      h, seen = getattr(self, f"stage{stage}")(h, training, own, at)
      if probe is not None and seen is not None:
        held = jax.tree.leaves(seen)[0].shape[0]
        for k in range(held):
          records[f"stage{stage}.block{count - held + k}"] = jax.tree.map(lambda leaf, k=k: leaf[k], seen)
    return h, records

  def head(self, h: Hidden, training: bool = False) -> Float[Array, "b classes"]:
    """Logits from the mean over positions of the reduced streams."""
    x = self.exit.reduce(h) if self.exit is not None else h
    x = jax.nn.relu(self.norm(x, training)) if self.pre else x
    logits = jnp.einsum("bd,dc->bc", jnp.mean(x, axis=(1, 2)), self.class_head[...].astype(self.dtype))
    return logits + self.class_bias[...].astype(self.dtype)[None]

  def __call__(
    self, inputs: Num[Array, "b pixels"], training: bool = False, key: Key[Array, ""] | None = None
  ) -> Float[Array, "b classes"]:
    """Logits of the classes; inputs are the pixel values, channels last, flattened. key: for what training draws."""
    return self.head(self.run(self.embed(inputs, training), training, key)[0], training)


def _probed(probe: Callable[[Any, Array], Any], step: int, connection: Any, streams: Array) -> Any:
  return probe(connection, streams[:, ::step, ::step])


def _laid_out(h: Hidden) -> Hidden:
  return constrain(h, "batch", *(None,) * (h.ndim - 1))
