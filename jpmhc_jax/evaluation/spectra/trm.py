"""A trained Tiny Recursive Model as the spectral theory sees it: the calls of a few supervision steps."""

import dataclasses
import math
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
import numpy as np

from jpmhc_jax.config import schema
from jpmhc_jax.evaluation.spectra import network
from jpmhc_jax.evaluation.spectra.network import Number
from jpmhc_jax.evaluation.spectra.stacks import carry_layers, Stack, stream_layers, Trace
from jpmhc_jax.models.blocks import Part
from jpmhc_jax.models.trm import TRM

LEAST_RECURSIONS = 12


@dataclasses.dataclass(frozen=True)
class Network(network.Network):
  """The calls of a TRM over as many supervision steps as give at least 12. z is (z_H, z_L), period a cycle."""

  noun: ClassVar[str] = "call"
  scales: ClassVar[tuple[str, str]] = ("recursion", "carry")
  judged: ClassVar[str] = "the last call"

  answers: tuple[bool, ...]  # of every call: does it update z_H, or z_L?

  @classmethod
  def of(cls, graph: nnx.GraphDef, config: schema.Model) -> "Network":
    """The network of a model's graph and its recursion."""
    recursion = config.recursion
    cycle = (False,) * recursion.inner + (True,)
    steps = math.ceil(LEAST_RECURSIONS / (len(cycle) * recursion.outer))
    return cls(graph, len(cycle), cycle * recursion.outer * steps)

  @property
  def calls(self) -> int:
    """Number of network calls."""
    return len(self.answers)

  def start(self, params: Any, buffers: Any, inputs: Array, rows: Array | None) -> tuple[Array, Array, tuple[str, ...]]:
    """x as `TRM.injected` gives it."""
    model = self.model(params, buffers)
    x = model.injected(model.embed(inputs, rows))
    latents: Any = model.initial_latents(*x.shape[:2])
    return jnp.stack(latents), x, tuple(part.name for part in model.parts())

  def removed(self, params: Any, buffers: Any, streams: Array) -> tuple[float, ...]:
    """One direction of a token, or of a feature where the norm goes over the positions."""
    axes = [np.atleast_1d(part.axes) for part in self.model(params, buffers).parts()]
    return tuple(1 / math.prod(streams.shape[axis] for axis in each) for each in axes)

  def parts(self, model: TRM, index: Number) -> tuple[Part, ...]:
    """Of all blocks."""
    return model.parts(index % self.period)

  def entering(self, model: TRM, z: Array, x: Array, index: Number) -> Array:
    """z_L + (z_H + x), or z_L + z_H."""
    return self.summed(z) + jnp.where(self._answers(index), jnp.zeros_like(x), x)

  def call(self, state: Array, params: Any, buffers: Any, index: Number) -> Array:
    """One network call, f(h)."""
    new: Array = self.model(params, buffers).network(state, jnp.zeros_like(state), index % self.period)
    return new

  def summed(self, z: Array) -> Array:
    """z_H + z_L."""
    return z[0] + z[1]

  def updated(self, z: Array, new: Array, index: Number) -> Array:
    """With the new z_H or z_L."""
    answers = self._answers(index)
    return jnp.stack([jnp.where(answers, new, z[0]), jnp.where(answers, z[1], new)])

  def expanded(self, model: TRM, state: Array, index: Number) -> Array:
    """With the vector of the call; widened where every call makes its streams."""
    state = model.entering(state, index % self.period)
    return model.ends.expand(state) if _inside(model) else state

  def reduced(self, model: TRM, streams: Array) -> Array:
    """Narrowed where every call makes its streams."""
    return model.ends.reduce(streams) if _inside(model) else streams

  def ends(self, model: TRM, state: Array, key: Key[Array, ""]) -> tuple[Array, Array]:
    """Of a call that makes its streams: how a vector enters them and leaves them, as one number a stream."""
    if not _inside(model):
      return super().ends(model, state, key)
    v = jax.random.normal(key, state.shape, state.dtype)
    streams, widen = jax.linearize(model.ends.expand, state)
    entering = jnp.sum(widen(v) * v[..., None, :], axis=(0, 1, 3)) / jnp.sum(v**2)
    _, pull = jax.vjp(model.ends.reduce, streams)
    leaving = jnp.sum(pull(v)[0] * v[..., None, :], axis=(0, 1, 3)) / jnp.sum(v**2)
    return entering, leaving

  def layers(self, trace: Trace, count: int, token: int) -> Stack | None:
    """The carry through the first calls; None where a call makes its streams inside."""
    return None if trace.enter.size else carry_layers(trace, self.answers[:count], token)

  def design(self, trace: Trace, token: int, mixers: np.ndarray | None = None) -> Stack:
    """The last call."""
    return stream_layers(trace, -1, token, mixers)

  def _answers(self, index: Number) -> Array:
    return jnp.asarray(self.answers)[index]


def _inside(model: TRM) -> bool:
  """Does every call make its streams and reduce them?"""
  return model.connection.streams > 1 and model.carried_streams == 1
