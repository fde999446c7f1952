"""A trained residual network as the spectral theory sees it: stages of blocks, and changes of shape between them.

A block h ← σ(H h + b ⊗ F(aᵀ h)) is a layer of the theory: positions are tokens, a, b and H are those of the position,
and the Jacobian of F, two or three convolutions with their norms, is one matrix over all positions and features. A ReLU
behind the sum is a factor of 0 or 1 for each position, stream and feature, which the cells carry (`Cells`); norms stand
inside F, so that F' has their projection already.

Where the theory holds: within a stage, in the limit of many features. Two convolutions 3×3 couple a position with the
5×5 around it and not with all; that many features make up for it (Xiao et al. 2018, 1806.05393, for networks without
streams) and few do not. Zeros outside of the image leave less noise along its edge, which the sizes of the rows of F'
(`moments`) hold for what a position gets, not for what it gives. At a change of width and resolution the Jacobian is no
square matrix, and nothing is predicted from moments. There, and of all stages together, it is measured over the
directions of the output, which are fewer; the turned law (`Whole.rotated`) keeps the changes as they are.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from jpmhc_jax.evaluation.spectra.network import Network, Number
from jpmhc_jax.evaluation.spectra.parts import applied
from jpmhc_jax.evaluation.spectra.stacks import Stack, successive_layers, Trace
from jpmhc_jax.models.blocks import Part
from jpmhc_jax.models.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class Stage(Network):
  """The blocks of one stage behind the one that changes the shape. z are the streams, (b, height · width, n, d)."""

  noun: ClassVar[str] = "block"
  scales: ClassVar[tuple[str, str]] = ("block", "stage")
  judged: ClassVar[str] = "the longest stage"

  stage: int
  first: int  # number of its first block in the network
  changes: bool  # does a block that changes the shape come before it?
  sides: tuple[int, int]  # height and width of its images

  @property
  def calls(self) -> int:
    """Blocks."""
    return self.period

  def number(self, call: int) -> int:
    """Of a block in the network, from 1."""
    return self.first + call + 1

  def title(self, call: int) -> str:
    """Name of a block, as the diagnostics have it."""
    return f"stage{self.stage}.block{self.changes + call}"

  def whole_title(self, count: int) -> str:
    """Name of the stage."""
    return f"stage{self.stage}"

  def start(self, params: Any, buffers: Any, inputs: Array, rows: Array | None) -> tuple[Array, Array, tuple[str, ...]]:
    """x are the streams in front of the first block, too."""
    model = self.model(params, buffers)
    h, change = _entering(model, inputs, self.stage), getattr(model, f"stage{self.stage}").change
    streams = _flat(h if change is None else change(h, False))
    return streams, streams, (self.title(self.calls - 1),)

  def removed(self, params: Any, buffers: Any, streams: Array) -> tuple[float, ...]:
    """No norm stands behind a block."""
    return (0.0,)

  def parts(self, model: ResNet, index: Number) -> tuple[Part, ...]:
    """The one connection of a block."""
    block = jax.tree.map(lambda leaf: leaf[index], getattr(model, f"stage{self.stage}").blocks)

    def sublayer(u: Array) -> Array:
      convolved: Array = block.convolutions(u.reshape(u.shape[0], *self.sides, -1), False)
      return convolved.reshape(u.shape)

    return (Part("block", block.connect, sublayer, (), None if block.pre else jax.nn.relu),)

  def entering(self, model: ResNet, z: Array, x: Array, index: Number) -> Array:
    """The streams."""
    return z

  def call(self, state: Array, params: Any, buffers: Any, index: Number) -> Array:
    """One block."""
    model = self.model(params, buffers)
    return applied(self.parts(model, index)[0], state, model.model.norm_epsilon)

  def layers(self, trace: Trace, count: int, token: int) -> Stack:
    """The first blocks."""
    return successive_layers(trace, range(count), token)

  def design(self, trace: Trace, token: int, mixers: np.ndarray | None = None) -> Stack:
    """All blocks."""
    stack = self.layers(trace, self.calls, token)
    return stack if mixers is None else stack._replace(mixers=mixers)


def _entering(model: ResNet, inputs: Array, stage: int) -> Array:
  """Streams that enter a stage."""
  h = model.embed(inputs)
  for earlier in range(stage):
    h, _ = getattr(model, f"stage{earlier}")(h, False)
  return h


def _flat(h: Array) -> Array:
  return h.reshape(h.shape[0], -1, *h.shape[3:])


@dataclasses.dataclass(frozen=True)
class Whole:
  """All stages, from the streams behind the stem to those behind the last block, (b, height, width, n, d).

  Jacobians are transposed: their singular values are counted over the directions of the output, whose gradients they
  stretch.
  """

  graph: nnx.GraphDef
  stages: tuple[Stage, ...]  # those that have blocks behind their change
  changes: tuple[int, ...]  # numbers of the stages that begin with a change of shape
  depth: int  # stages in all

  @classmethod
  def of(cls, graph: nnx.GraphDef, model: ResNet) -> "Whole":
    """The network of a model, whose arrays may be shapes."""
    plan, image, stages = model.plan, model.image, []
    for stage, count in enumerate(plan.blocks):
      change, reduction = plan.changes(stage), 2 ** (stage + 2 * model.large)
      sides = (-(-image.height // reduction), -(-image.width // reduction))
      if count > change:
        first = sum(plan.blocks[:stage]) + change
        stages.append(Stage(graph, count - change, stage, first, change, sides))
    depth = len(plan.blocks)
    return cls(graph, tuple(stages), tuple(filter(plan.changes, range(depth))), depth)

  def model(self, params: Any, buffers: Any) -> ResNet:
    """The model with these parameters and buffers."""
    return nnx.merge(self.graph, nnx.State(params), nnx.State(buffers))

  def change(self, stage: int) -> Callable[..., Array]:
    """(u, params, buffers, inputs) -> Jᵀ u of the block that begins the stage."""

    def function(u: Array, params: Any, buffers: Any, inputs: Array) -> Array:
      model = self.model(params, buffers)
      h = _entering(model, inputs, stage)
      changed = lambda h: getattr(model, f"stage{stage}").change(h, False)  # noqa: E731
      return jax.vjp(changed, h)[1](u)[0]

    return function

  def carry(self, u: Array, params: Any, buffers: Any, inputs: Array) -> Array:
    """Jᵀ u of all stages."""
    model = self.model(params, buffers)
    pulled: Array = jax.vjp(lambda h: model.run(h)[0], model.embed(inputs))[1](u)[0]
    return pulled

  def rotated(self, u: Array, params: Any, buffers: Any, inputs: Array, states: Any, rows: Any) -> Array:
    """The same with F̂ of every block turned, as in `Network.rotated`; changes keep their own Jacobians.

    states, rows: of each of `stages`, what enters its blocks and ρ of `moments`.
    """
    model = self.model(params, buffers)
    known = {stage.stage: (stage, *each) for stage, *each in zip(self.stages, states, rows, strict=True)}

    def linearised(v: Array) -> Array:
      for number in range(self.depth):
        change, at = getattr(model, f"stage{number}").change, _entering(model, inputs, number)
        if change is not None:
          v = jax.jvp(lambda h, change=change: change(h, False), (at,), (v,))[1]
        if number in known:
          stage, *coefficients = known[number]
          v = stage.rotated(*coefficients)(_flat(v), params, buffers).reshape(v.shape)
      return v

    pulled: Array = jax.vjp(linearised, jnp.zeros_like(model.embed(inputs)))[1](u)[0]
    return pulled

  def behind(self, stage: int, params: Any, buffers: Any, inputs: Array) -> Array:
    """Zeros as the streams behind the block that begins a stage; behind the last stage for the number of stages."""

    def streams(params: Any, buffers: Any, inputs: Array) -> Array:
      model = self.model(params, buffers)
      h = _entering(model, inputs, stage)
      return h if stage == self.depth else getattr(model, f"stage{stage}").change(h, False)

    return jax.tree.map(jnp.zeros_like, jax.eval_shape(streams, params, buffers, inputs))
