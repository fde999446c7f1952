"""What `jpmhc spectrum` asks of a trained network: calls one after another, each of a few parts, as functions."""

import abc
from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key
import numpy as np

from jpmhc_jax.evaluation.spectra.cells import Cells
from jpmhc_jax.evaluation.spectra.parts import applied, products, rotated, through
from jpmhc_jax.evaluation.spectra.stacks import Stack, Trace
from jpmhc_jax.models.blocks import Part

Number = int | Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Network(abc.ABC):
  """Calls of a network, as functions to be linearised; `params` and `buffers` are the model's arrays.

  What persists between calls is z: TRM's two latents, a transformer's streams. A call takes `entering(z)`, its parts
  turn that into a new vector or streams, and `updated` puts these into z. noun: the word for a call. scales: the names
  of one call and of many, see `Site.scale`. judged: what `design` takes, in words. period: calls after which the
  sub-layers repeat.
  """

  noun: ClassVar[str]
  scales: ClassVar[tuple[str, str]]
  judged: ClassVar[str]

  graph: nnx.GraphDef
  period: int

  @property
  @abc.abstractmethod
  def calls(self) -> int:
    """Number of calls."""

  @property
  def counts(self) -> tuple[int, ...]:
    """Numbers of calls after which z is looked at: those of the first period, and all."""
    return tuple(sorted({self.period, self.calls}))

  def number(self, call: int) -> int:
    """Of a call in the network, from 1."""
    return call + 1

  def title(self, call: int) -> str:
    """Name of a call."""
    return f"{self.noun} {call + 1}"

  def whole_title(self, count: int) -> str:
    """Name of the first calls together."""
    return f"{self.noun}s 1 to {count}"

  @abc.abstractmethod
  def start(self, params: Any, buffers: Any, inputs: Array, rows: Array | None) -> tuple[Array, Array, tuple[str, ...]]:
    """(z before the first call, the embedded input x, names of the parts of the last call)."""

  @abc.abstractmethod
  def removed(self, params: Any, buffers: Any, streams: Array) -> tuple[float, ...]:
    """Share of the directions that the norm behind each part removes; a product of parts loses the largest of them."""

  @abc.abstractmethod
  def parts(self, model: Any, index: Number) -> tuple[Part, ...]:
    """The parts of a call in order."""

  @abc.abstractmethod
  def entering(self, model: Any, z: Array, x: Array, index: Number) -> Array:
    """What a call takes: `summed(z)`, and what does not depend on z."""

  @abc.abstractmethod
  def call(self, state: Array, params: Any, buffers: Any, index: Number) -> Array:
    """What a call makes of what it takes."""

  @abc.abstractmethod
  def layers(self, trace: Trace, count: int, token: int) -> Stack | None:
    """The first calls as layers of the theory; None where they are no product of layers."""

  @abc.abstractmethod
  def design(self, trace: Trace, token: int, mixers: np.ndarray | None = None) -> Stack:
    """What the design rules judge, calls that share no weights; with other mixers (parts, n, n) if given."""

  def summed(self, z: Array) -> Array:
    """What a call takes of z."""
    return z

  def updated(self, z: Array, new: Array, index: Number) -> Array:
    """z after a call that made `new`."""
    return new

  def expanded(self, model: Any, state: Array, index: Number) -> Array:
    """The streams in front of the first part of a call."""
    return state

  def reduced(self, model: Any, streams: Array) -> Array:
    """What a call makes of the streams behind its last part."""
    return streams

  def ends(self, model: Any, state: Array, key: Key[Array, ""]) -> tuple[Array, Array]:
    """`enter` and `leave` of `Trace`."""
    return jnp.zeros(0), jnp.zeros(0)

  def model(self, params: Any, buffers: Any) -> Any:
    """The model with these parameters and buffers."""
    return nnx.merge(self.graph, nnx.State(params), nnx.State(buffers))

  def part(self, index: int) -> Callable[..., Array]:
    """(streams, params, buffers) -> streams behind part `index` of the last call and its norm."""

    def function(streams: Array, params: Any, buffers: Any) -> Array:
      model = self.model(params, buffers)
      return applied(self.parts(model, self.calls - 1)[index], streams, model.model.norm_epsilon)

    return function

  def carry(self, z: Array, params: Any, buffers: Any, x: Array, calls: Array) -> Array:
    """z after the first `calls` calls."""
    model = self.model(params, buffers)

    def one(z: Array, index: Array) -> tuple[Array, None]:
      new = self.call(self.entering(model, z, x, index), params, buffers, index)
      return jnp.where(index < calls, self.updated(z, new, index), z), None

    return jax.lax.scan(one, z, jnp.arange(self.calls))[0]

  def trace(self, z: Array, params: Any, buffers: Any, x: Array, cells: Cells, key: Key[Array, ""]) -> Trace:
    """Everything a prediction needs but the noise, at the given cells."""
    model = self.model(params, buffers)

    def one(z: Array, index: Array) -> tuple[Array, Any]:
      state = self.entering(model, z, x, index)
      streams = self.expanded(model, state, index)
      h, inputs, layers = through(self.parts(model, index), streams, model.model.norm_epsilon, cells)
      return self.updated(z, self.reduced(model, h), index), (state, inputs, layers)

    _, (states, inputs, layers) = jax.lax.scan(one, z, jnp.arange(self.calls))
    gains, mixers, reads, writes = layers
    enter, leave = self.ends(model, states[0], key)
    return Trace(states, inputs[-1], gains, mixers, reads, writes, enter, leave)

  def products(self, states: Array, params: Any, buffers: Any, probe: Array, rows: Array) -> Array:
    """(K·P, 2, N): what the sub-layers of every call make of a probe; see `moments.estimate`."""
    model = self.model(params, buffers)

    def one(_: None, turn: tuple[Array, Array, Array]) -> tuple[None, Array]:
      index, state, rows = turn
      streams = self.expanded(model, state, index)
      return None, products(self.parts(model, index), streams, model.model.norm_epsilon, probe, rows)

    images = jax.lax.scan(one, None, self._turns(states, rows))[1]
    return images.reshape(-1, *images.shape[2:])

  def rotated(self, states: Array, rows: Array) -> Callable[..., Array] | None:
    """(z, params, buffers) -> what the linearised calls make of z, every Jacobian F̂ being turned; None: not asked for.

    QF̂Qᵀ with one random rotation Q for all of them has the moments, singular values and repetitions of F̂, and is free
    of the coefficients: all that free probability supposes, without the Gaussian form. rows: (K·P, N), ρ of `moments`.
    """
    key = jax.random.key(0)

    def function(z: Array, params: Any, buffers: Any) -> Array:
      model = self.model(params, buffers)

      def one(z: Array, turn: tuple[Array, Array, Array]) -> tuple[Array, None]:
        index, state, rows = turn
        streams, each = self.expanded(model, state, index), self.parts(model, index)
        new = rotated(each, streams, model.model.norm_epsilon, rows, key, self.summed(z))
        return self.updated(z, new, index), None

      return jax.lax.scan(one, z, self._turns(states, rows))[0]

    return function

  def _turns(self, states: Array, rows: Array) -> tuple[Array, Array, Array]:
    return jnp.arange(self.calls), states, rows.reshape(self.calls, -1, rows.shape[1])
