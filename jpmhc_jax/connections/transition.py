"""Where the number of streams changes, and where streams begin from different inputs.

    transition   x' = R x,  R = √(m/n) Q  (m, n),  QᵀQ = I for m > n, Q Qᵀ = I for m < n
    sources      x_i = W_i u_s,  s = i mod S,  of inputs u_0 … u_{S−1}

Q lives on the Stiefel manifold, transposed where m < n. It starts at the point nearest the identity matrix among those
that keep the mean, with E (m, n) the identity matrix cut off, or filled up with zeros, and m > n:

    Q₀ = E (I − 1 1ᵀ/n) + 1 1ᵀ/√(m n):   x'_i = x̄ + √(m/n) (x_i − x̄) for i < n,   x̄ for the streams that are new

R 1 = 1 then: streams that are equal go on as copies, and the mean square over all streams is kept by every Q for m > n.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jpmhc_jax.connections.ops import segments
from jpmhc_jax.core.errors import require
from jpmhc_jax.core.fields import check_whole

__all__ = ["StreamSources", "StreamSourcesFn", "StreamTransition", "StreamTransitionFn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamTransitionFn:
  """Another number of streams: (*tokens, n, d) -> (*tokens, m, d), x' = R x, as pure functions of its parameters.

  inputs, outputs: n and m. Parameters are {"frame": Q or Qᵀ, (larger, smaller) float32}, with orthonormal columns, and
  none where n = m: then R = I. Raises ConfigError for less than one stream.

  >>> widening = jp.StreamTransitionFn(inputs=2, outputs=3)
  >>> widening(widening.init(), jnp.array([[1.0], [1.0]])).round(4).tolist()  # equal streams go on as copies
  [[1.0], [1.0], [1.0]]
  """

  inputs: int
  outputs: int

  def __post_init__(self) -> None:
    for name in ("inputs", "outputs"):
      object.__setattr__(self, name, check_whole(name, getattr(self, name), ge=1))

  def init(self) -> dict[str, Float[Array, "larger smaller"]]:
    """The point nearest the identity that keeps the mean; nothing is drawn."""
    if self.inputs == self.outputs:
      return {}
    larger, smaller = max(self.inputs, self.outputs), min(self.inputs, self.outputs)
    centre = jnp.eye(smaller) - 1 / smaller
    return {"frame": jnp.eye(larger, smaller) @ centre + 1 / math.sqrt(larger * smaller)}

  def matrix(self, parameters: Mapping[str, Float[Array, "larger smaller"]]) -> Float[Array, "m n"]:
    """R, float32."""
    if self.inputs == self.outputs:
      return jnp.eye(self.inputs)
    frame = parameters["frame"]
    return math.sqrt(self.outputs / self.inputs) * (frame if self.outputs > self.inputs else frame.T)

  def __call__(
    self, parameters: Mapping[str, Float[Array, "larger smaller"]], streams: Float[Array, "*tokens n d"]
  ) -> Float[Array, "*tokens m d"]:
    """x' = R x in the streams' dtype. Raises ValueError for another number of streams."""
    if streams.shape[-2] != self.inputs:
      raise ValueError(f"streams {streams.shape}: expected (..., n={self.inputs}, d)")
    if self.inputs == self.outputs:
      return streams
    flat = segments.read(streams, self.matrix(parameters))
    return flat.reshape(*streams.shape[:-2], self.outputs, streams.shape[-1])


class StreamTransition(nnx.Module):
  """Another number of streams, `StreamTransitionFn`, as a Flax NNX module; its frame moves on the Stiefel manifold.

  >>> transition = jp.StreamTransition(jp.StreamTransitionFn(inputs=4, outputs=2))
  >>> transition(jp.expand(jnp.ones((5, 16)), 4)).shape
  (5, 2, 16)
  """

  def __init__(self, rule: StreamTransitionFn):
    self.rule = rule
    for name, value in rule.init().items():
      setattr(self, name, nnx.Param(value, axes=(None, None), role="manifold:stiefel"))

  def __call__(self, streams: Float[Array, "*tokens n d"]) -> Float[Array, "*tokens m d"]:
    """x' = R x."""
    return self.rule({name: value[...] for name, value in vars(self).items() if isinstance(value, nnx.Param)}, streams)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamSourcesFn:
  """Streams that begin from different inputs, each by a learned map of its own, as pure functions of their parameters.

  x_i = W_i u_s with s = i mod S, of S inputs u_s (*tokens, d_s) with the same tokens: patches in two resolutions, an
  image and a text. widths: d_s. streams, width: n and d. Parameters: {"kernels<s>": (streams of the input, d_s, d)
  float32}, normal of variance 1/d_s at the start. Raises ConfigError for fewer streams than inputs.

  >>> sources = jp.StreamSourcesFn(widths=(16, 64), streams=4, width=8)
  >>> parameters = sources.init(jax.random.key(0))
  >>> sources(parameters, [jnp.ones((2, 16)), jnp.ones((2, 64))]).shape
  (2, 4, 8)
  """

  widths: Sequence[int]
  streams: int
  width: int

  def __post_init__(self) -> None:
    object.__setattr__(self, "widths", tuple(check_whole("widths", width, ge=1) for width in self.widths))
    for name in ("streams", "width"):
      object.__setattr__(self, name, check_whole(name, getattr(self, name), ge=1))
    require(1 <= len(self.widths) <= self.streams, "widths", self.widths, f"1 to streams={self.streams} inputs")

  def init(self, key: Key[Array, ""]) -> dict[str, Float[Array, "_ _ d"]]:
    """Fresh parameters: normal, of variance 1/d_s."""
    keys = jax.random.split(key, len(self.widths))
    return {
      f"kernels{s}": jax.random.normal(k, (len(self._of(s)), width, self.width), jnp.float32) / math.sqrt(width)
      for s, (k, width) in enumerate(zip(keys, self.widths, strict=True))
    }

  def __call__(
    self, parameters: Mapping[str, Float[Array, "_ _ d"]], inputs: Sequence[Float[Array, "*tokens _"]]
  ) -> Float[Array, "*tokens n d"]:
    """The streams at the start, in the inputs' dtype. Raises ValueError for inputs of other widths."""
    widths = tuple(u.shape[-1] for u in inputs)
    if widths != self.widths:
      raise ValueError(f"inputs of widths {widths}: expected {self.widths}")
    made = [jnp.einsum("...e,ned->...nd", u, parameters[f"kernels{s}"].astype(u.dtype)) for s, u in enumerate(inputs)]
    order = [stream for s in range(len(inputs)) for stream in self._of(s)]
    return jnp.concatenate(made, axis=-2)[..., [order.index(stream) for stream in range(self.streams)], :]

  def _of(self, source: int) -> range:
    """Streams that begin from an input."""
    return range(source, self.streams, len(self.widths))


class StreamSources(nnx.Module):
  """Streams that begin from different inputs, `StreamSourcesFn`, as a Flax NNX module.

  >>> sources = jp.StreamSources(jp.StreamSourcesFn(widths=(16, 64), streams=2, width=8), rngs=nnx.Rngs(0))
  >>> sources([jnp.ones((3, 16)), jnp.ones((3, 64))]).shape
  (3, 2, 8)
  """

  def __init__(self, rule: StreamSourcesFn, *, rngs: nnx.Rngs):
    self.rule = rule
    for name, value in rule.init(rngs.params()).items():
      setattr(self, name, nnx.Param(value, axes=("streams", None, "embed"), role="trunk"))

  def __call__(self, inputs: Sequence[Float[Array, "*tokens _"]]) -> Float[Array, "*tokens n d"]:
    """n streams, one from each input in turn."""
    parameters = {name: value[...] for name, value in vars(self).items() if isinstance(value, nnx.Param)}
    return self.rule(parameters, inputs)
