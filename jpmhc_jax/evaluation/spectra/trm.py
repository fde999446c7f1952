"""A trained network as the spectral theory sees it: mixers, reads, writes and noise at real activations.

One part of the network, RMSNorm(H x + b ⊗ F(aᵀ x)), has the Jacobian D (H ⊗ I + (b aᵀ) ⊗ F') up to what is small: D
holds the norm's scale 1/rms of every stream, and the dependence of H, a, b on the streams is left out. So a part is a
layer of `spectral.correlated` with mixer D H, write D b and read a, all taken from the checkpoint at the tokens of a
real batch, and with the moments of F' (`moments`). The norm of a vector of m entries also removes one direction, the
vector's own. 1/m of the singular values are zero (`Network.removed`), and F' is projected: what it writes in that
direction is no small part of it, but the largest. Where no norm follows a part D = 1, and nothing is removed:
a decoder's stands inside F, whose F' is projected as it is (`spectra.transformer`).
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key
import numpy as np

from jpmhc_jax.config import schema
from jpmhc_jax.evaluation.spectra import moments
from jpmhc_jax.evaluation.spectra.cells import Cells
from jpmhc_jax.evaluation.spectra.stacks import carry_layers, Stack, stream_layers, Trace
from jpmhc_jax.models.layers import rms_norm
from jpmhc_jax.models.trm import Part, TRM

LEAST_RECURSIONS = 12


@dataclasses.dataclass(frozen=True)
class Network:
  """The calls of a TRM over as many supervision steps as give at least 12, as functions to be linearised.

  `params` and `buffers` are the model's arrays; x is the embedded input, as `TRM.injected` gives it. What `spectrum`
  asks of a network is the same of every kind: `spectra.transformer` has the other one.
  """

  noun: ClassVar[str] = "call"
  scales: ClassVar[tuple[str, str]] = ("recursion", "carry")  # of one call, of many

  graph: nnx.GraphDef
  answers: tuple[bool, ...]  # of every call: does it update z_H, or z_L?
  period: int  # calls of a cycle

  @classmethod
  def of(cls, graph: nnx.GraphDef, config: schema.Model) -> "Network":
    """The network of a model's graph and its recursion."""
    recursion = config.recursion
    cycle = (False,) * recursion.inner + (True,)
    steps = math.ceil(LEAST_RECURSIONS / (len(cycle) * recursion.outer))
    return cls(graph, cycle * recursion.outer * steps, len(cycle))

  @property
  def calls(self) -> int:
    """Number of network calls."""
    return len(self.answers)

  @property
  def counts(self) -> tuple[int, ...]:
    """Numbers of calls after which the carry is looked at: the first cycle, and all."""
    return tuple(sorted({self.answers.index(True) + 1, self.calls}))

  def model(self, params: Any, buffers: Any) -> TRM:
    """The model with these parameters and buffers."""
    return nnx.merge(self.graph, nnx.State(params), nnx.State(buffers))

  def start(self, params: Any, buffers: Any, inputs: Array, rows: Array | None) -> tuple[Array, Array, tuple[str, ...]]:
    """(latents before the first call, embedded input, names of the parts)."""
    model = self.model(params, buffers)
    x = model.injected(model.embed(inputs, rows))
    latents: Any = model.initial_latents(*x.shape[:2])
    return jnp.stack(latents), x, tuple(part.name for part in model.parts())

  def removed(self, params: Any, buffers: Any, streams: Array) -> tuple[float, ...]:
    """Share of the directions that the norm behind each part removes; a product of parts loses the largest of them."""
    axes = [np.atleast_1d(part.axes) for part in self.model(params, buffers).parts()]
    return tuple(1 / math.prod(streams.shape[axis] for axis in each) for each in axes)

  def part(self, index: int) -> Callable[..., Array]:
    """(streams, params, buffers) -> streams behind part `index` and its norm."""

    def function(streams: Array, params: Any, buffers: Any) -> Array:
      model = self.model(params, buffers)
      part = model.parts((self.calls - 1) % self.period)[index]
      return _normed(part, part.connect(streams, part.sublayer), model.model.norm_epsilon)

    return function

  def call(self, state: Array, params: Any, buffers: Any, index: Array) -> Array:
    """One network call, f(h)."""
    return self.model(params, buffers).network(state, jnp.zeros_like(state), index % self.period)

  def carry(self, latents: Array, params: Any, buffers: Any, x: Array, calls: Array) -> Array:
    """(z_H, z_L) after the first `calls` calls."""
    model = self.model(params, buffers)

    def one(z: Array, turn: tuple[Array, Array]) -> tuple[Array, None]:
      index, answers = turn
      new = model.network(_entering(z, x, answers), jnp.zeros_like(z[0]), index % self.period)
      new = _updated(z, new, answers)
      return jnp.where(index < calls, new, z), None

    turns = jnp.arange(len(self.answers)), jnp.asarray(self.answers)
    return jax.lax.scan(one, latents, turns)[0]

  def trace(self, latents: Array, params: Any, buffers: Any, x: Array, cells: Cells, key: Key[Array, ""]) -> Trace:
    """Everything a prediction needs but the noise, at the given cells."""
    model = self.model(params, buffers)

    def one(z: Array, turn: tuple[Array, Array]) -> tuple[Array, Any]:
      number, answers = turn
      state = _entering(z, x, answers)
      parts, streams = model.parts(number), _expanded(model, state, number)
      h, inputs, layers = through(parts, streams, model.model.norm_epsilon, cells)
      return _updated(z, model.ends.reduce(h) if _inside(model) else h, answers), (state, inputs, layers)

    turns = jnp.arange(self.calls) % self.period, jnp.asarray(self.answers)
    _, (states, inputs, layers) = jax.lax.scan(one, latents, turns)
    gains, mixers, reads, writes = layers
    enter, leave = _ends(model, states[0], key) if _inside(model) else (jnp.zeros(0), jnp.zeros(0))
    return Trace(states, inputs[-1], gains, mixers, reads, writes, enter, leave)

  def products(self, states: Array, params: Any, buffers: Any, probe: Array, rows: Array) -> Array:
    """(K·P, 2, N): what the sub-layers of every call make of a probe; see `moments.estimate`."""
    model = self.model(params, buffers)

    def one(_: None, turn: tuple[Array, Array, Array]) -> tuple[None, Array]:
      number, state, rows = turn
      streams = _expanded(model, state, number)
      return None, products(model.parts(number), streams, model.model.norm_epsilon, probe, rows)

    turns = jnp.arange(self.calls) % self.period, states, rows.reshape(self.calls, -1, rows.shape[1])
    images = jax.lax.scan(one, None, turns)[1]
    return images.reshape(-1, *images.shape[2:])

  def rotated(self, states: Array, rows: Array) -> Callable[..., Array]:
    """(latents, params, buffers) -> what the linearised calls make of (z_H, z_L), every Jacobian F̂ being turned.

    QF̂Qᵀ with one random rotation Q for all of them has the moments, singular values and repetitions of F̂, and is free
    of the coefficients: all that free probability supposes, without the Gaussian form. rows: (K·P, N), ρ of `moments`.
    """
    key, rows = jax.random.key(0), rows.reshape(self.calls, -1, rows.shape[1])

    def function(latents: Array, params: Any, buffers: Any) -> Array:
      model = self.model(params, buffers)

      def one(z: Array, turn: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        number, answers, state, rows = turn
        streams = _expanded(model, state, number)
        new = rotated(model.parts(number), streams, model.model.norm_epsilon, rows, key, z[0] + z[1])
        return _updated(z, new, answers), None

      turns = jnp.arange(self.calls) % self.period, jnp.asarray(self.answers), states, rows
      return jax.lax.scan(one, latents, turns)[0]

    return function

  def layers(self, trace: Trace, count: int, token: int) -> Stack | None:
    """The carry through the first calls; None where a call makes its streams inside: that is no product of layers."""
    return None if trace.enter.size else carry_layers(trace, self.answers[:count], token)

  def design(self, trace: Trace, token: int, mixers: np.ndarray | None = None) -> Stack:
    """What the design rules judge: the last call."""
    return stream_layers(trace, -1, token, mixers)


def _inside(model: TRM) -> bool:
  """Does every call make its streams and reduce them?"""
  return model.connection.streams > 1 and model.carried_streams == 1


def _expanded(model: TRM, state: Array, call: Array) -> Array:
  """The streams that enter the parts of a call."""
  state = model.entering(state, call)
  return model.ends.expand(state) if _inside(model) else state


def _entering(z: Array, x: Array, answers: Bool[Array, ""]) -> Array:
  return z[0] + z[1] + jnp.where(answers, jnp.zeros_like(x), x)


def _updated(z: Array, new: Array, answers: Bool[Array, ""]) -> Array:
  return jnp.stack([jnp.where(answers, new, z[0]), jnp.where(answers, z[1], new)])


def through(
  parts: Sequence[Part], streams: Array, epsilon: float, cells: Cells
) -> tuple[Array, Array, tuple[Array, ...]]:
  """Streams behind all parts, those in front of each, and (gains, mixers, reads, writes) as in `Trace`."""
  inputs, layers = [], []
  for part in parts:
    inputs.append(streams)
    streams, layer = _layer(part, streams, epsilon, cells)
    layers.append(layer)
  return streams, jnp.stack(inputs), jax.tree.map(lambda *a: jnp.stack(a), *layers)


class _Step(NamedTuple):
  """A part at real streams."""

  noise: moments.Projection  # see `moments.noise`
  mix: Array
  read: Array
  write: Array
  gain: Array  # (b, l, n, e) or broadcast to it


def _steps(parts: Sequence[Part], streams: Array, epsilon: float, rows: Array) -> Iterator[_Step]:
  """All parts of a call in order, the first of which no norm precedes. rows: (P, N), ρ of `moments`."""
  axes: int | tuple[int, ...] = ()
  for part, size in zip(parts, rows, strict=True):
    out, entering = _connected(part, streams)
    mix, read, write = _coefficients(part, streams)
    normed = _normed(part, out, epsilon)
    into = moments.before(_wide(streams), axes, read)
    behind = moments.behind(_wide(normed), part.axes, write)
    noise = moments.noise(part.sublayer, entering, into, behind, size)
    yield _Step(noise, mix, read, write, _gain(part, out, normed))
    streams, axes = normed, part.axes


def products(parts: Sequence[Part], streams: Array, epsilon: float, probe: Array, rows: Array) -> Array:
  """(P, 2, N): `moments.pair` of the sub-layers of all parts."""
  return jnp.stack([moments.pair(step.noise, probe) for step in _steps(parts, streams, epsilon, rows)])


def rotated(
  parts: Sequence[Part], streams: Array, epsilon: float, rows: Array, key: Key[Array, ""], tangent: Array
) -> Array:
  """The tangent behind all parts of a call, linearised as in `Trace`, with QF̂Qᵀ for the Jacobian of each sub-layer."""
  wide = _wide(tangent)
  for step, size in zip(_steps(parts, streams, epsilon, rows), rows, strict=True):
    seen = jnp.einsum("blmn,blne->blme", step.read, wide)
    vector = seen.reshape(*seen.shape[:2], -1)
    written = moments.rotated(step.noise, size, key, vector).reshape(seen.shape)
    passed = jnp.einsum("blij,blje->blie", step.mix, wide) + jnp.einsum("blnm,blme->blne", step.write, written)
    wide = step.gain * passed
  return wide.reshape(tangent.shape)


def _gain(part: Part, out: Array, normed: Array) -> Array:
  """Scale 1/rms of the norm behind a part, (b, l, n, e) or broadcast to it."""
  before, behind = (jnp.sum(_wide(a) ** 2, axis=part.axes, keepdims=True) for a in (out, normed))
  return jnp.sqrt(behind / (before + 1e-30))


def _wide(streams: Array) -> Array:
  """(b, l, n, e), n = 1 where the network has no streams."""
  return streams if streams.ndim == 4 else streams[:, :, None, :]


def _connected(part: Part, streams: Array) -> tuple[Array, Array]:
  """The streams behind a part before its norm, and what its sub-layer sees."""
  inputs = []

  def spy(u: Array) -> Array:
    inputs.append(u)
    return part.sublayer(u)

  return part.connect(streams, spy), inputs[0]


def _normed(part: Part, streams: Array, epsilon: float) -> Array:
  return streams if part.axes == () else rms_norm(streams, epsilon, axis=part.axes)


def _coefficients(part: Part, streams: Array) -> tuple[Array, Array, Array]:
  """Mixer (b, l, n, n), read (b, l, m, n) and write (b, l, n, m) of every token."""
  tokens = streams.shape[:2]
  if streams.ndim == 3:
    one = jnp.ones((*tokens, 1, 1))
    return one, one, one
  coefficients = part.connect.coefficients(streams)  # type: ignore[attr-defined]
  mix = jnp.eye(streams.shape[2]) if coefficients.mix is None else coefficients.mix
  mix, read, write = (_tokens_first(c, tokens) for c in (mix, coefficients.read, coefficients.write))
  read = read[:, :, None, :] if read.ndim == 3 else read
  return mix, read, write[..., None] if write.ndim == 3 else write


def _tokens_first(coefficient: Array, tokens: tuple[int, ...]) -> Array:
  """A coefficient with its token axes (b, l) in front; it has them last, or none where it is static."""
  if coefficient.ndim > 2:
    return jnp.moveaxis(coefficient, (-2, -1), (0, 1))
  return jnp.broadcast_to(coefficient, (*tokens, *coefficient.shape))


def _layer(part: Part, streams: Array, epsilon: float, cells: Cells) -> tuple[Array, tuple[Array, Array, Array, Array]]:
  """The streams behind a part, and its (gain, mixer, read, write) at the cells."""
  out, _ = _connected(part, streams)
  normed = _normed(part, out, epsilon)
  gain = jnp.broadcast_to(_gain(part, out, normed), _wide(out).shape)
  at_tokens = lambda a: a.reshape(-1, *a.shape[2:])[cells.tokens]  # noqa: E731
  gain = jnp.take_along_axis(at_tokens(gain), cells.features[:, None, None], axis=2)[:, :, 0]
  return normed, (gain, *map(at_tokens, _coefficients(part, streams)))


def _ends(model: TRM, state: Array, key: Key[Array, ""]) -> tuple[Array, Array]:
  """How a vector enters the streams of a call and leaves them, as one number a stream."""
  v = jax.random.normal(key, state.shape, state.dtype)
  streams, widen = jax.linearize(model.ends.expand, state)
  entering = jnp.sum(widen(v) * v[..., None, :], axis=(0, 1, 3)) / jnp.sum(v**2)
  _, pull = jax.vjp(model.ends.reduce, streams)
  leaving = jnp.sum(pull(v)[0] * v[..., None, :], axis=(0, 1, 3)) / jnp.sum(v**2)
  return entering, leaving
