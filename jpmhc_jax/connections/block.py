"""The hyper-connection block as pure functions: parameters in, coefficients out, any sub-layer in between.

    x' = H x + b ⊗ F(aᵀ x)        x: (*tokens, n, d),  H: (n, n, *tokens),  a, b: (n, *tokens)
    x' = H x + B F(A x)           with m segments: x: (*tokens, n, d/m),  A: (m, n, *tokens),  B: (n, m, *tokens)

One generator, one norm, one read/write form and one initialisation serve every mixer, so that in a comparison the
mixer is the only thing that differs. At initialisation the block is the plain residual network: streams that are
equal give x + F(x) in every stream (exactly for mixers whose rows sum to 1 or that start at the identity; with several
segments exactly for the linear read and write with a mixer that starts at the identity).
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped
import numpy as np

from jpmhc_jax import mixers
from jpmhc_jax.connections import generator
from jpmhc_jax.connections.ops import base, fused_streams, segments, vjp
from jpmhc_jax.connections.ops.base import StreamOps
from jpmhc_jax.connections.ops.fused_streams import FusedStreams, Terms
from jpmhc_jax.connections.spec import ABLATIONS, ConnectionSpec
from jpmhc_jax.linalg import linear
from jpmhc_jax.manifolds import MANIFOLDS

__all__ = ["COEFFICIENTS", "Coefficients", "HyperConnectionFn", "Parameters", "SubLayer", "saveable"]

Parameters = Mapping[str, Float[Array, "..."] | Int[Array, ""]]
# F: x -> y, or x -> (y, …) with whatever else the sub-layer makes: a cache, an auxiliary loss, attention weights.
SubLayer = Callable[[Float[Array, "*tokens d"]], Any]


# What a rematerialisation policy may save instead of the streams: n² + 2n numbers a token, against n·d.
COEFFICIENTS = "coefficients"


class Coefficients(NamedTuple):
  """What a connection computes per token, float32: x' = mix x + write ⊗ F(readᵀ x).

  read, write: (n, *tokens), with m > 1 segments (m, n, *tokens) and (n, m, *tokens). mix: (n, n, *tokens), None for the
  identity mixer. A static generator gives them without token axes.

  >>> rule = jp.HyperConnectionFn(jp.Cayley(), streams=2, width=3)
  >>> coefficients = rule.coefficients(rule.init(jax.random.key(0)), jnp.ones((5, 2, 3)))
  >>> coefficients.read.shape, coefficients.mix.shape, coefficients.write.shape
  ((2, 5), (2, 2, 5), (2, 5))
  """

  read: Float[Array, "..."]
  mix: Float[Array, "n n *tokens"] | None
  write: Float[Array, "..."]


def saveable(coefficients: Coefficients) -> Coefficients:
  """The coefficients under the name by which a rematerialisation policy saves them."""
  named: Coefficients = jax.tree.map(lambda coefficient: checkpoint_name(coefficient, COEFFICIENTS), coefficients)
  return named


@dataclasses.dataclass(frozen=True)
class HyperConnectionFn(ConnectionSpec):
  """One hyper-connection as pure functions of its parameters: x' = H x + b ⊗ F(aᵀ x) around any sub-layer F.

  Calling it with F: (*tokens, d) -> (*tokens, d) maps streams (*tokens, n, d) to streams of their floating-point dtype;
  where F returns (y, …), to (streams, …). H (n, n), a and b (n) are those of the token, in float32. For the fields see
  `ConnectionSpec`, whose errors it raises. Calls raise ValueError for streams of another shape or kind and for
  parameters of another connection.
  Source: HC (2409.19606), mHC (2512.24880), JPmHC (2602.18308).

  >>> connection = jp.HyperConnectionFn(jp.Cayley(alpha=0.5), streams=4, width=64)
  >>> parameters = connection.init(jax.random.key(0))
  >>> connection(parameters, jp.expand(jnp.ones((2, 64)), 4), jnp.tanh).shape
  (2, 4, 64)
  """

  def init(self, key: Key[Array, ""], layer_index: Int[Array, ""] | None = None) -> dict[str, Float[Array, "..."]]:
    """Fresh float32 parameters; see the class for the state they put the block in.

    `layer_index`, which may be traced, stands in for the rule's own where one rule serves many layers.
    """
    n, d = self.streams, self.stream_width
    offsets = self._initial_logits(layer_index)
    parameters: dict[str, Array] = {}
    if "bias" in self.parameter_names:
      parameters["bias"] = offsets
    if self.generator != "static":
      seen = self.streams_seen
      scale = self.init_scale / math.sqrt(seen * d) if self.initialisation == "random" else 0.0
      parameters["projection"] = scale * jax.random.normal(key, (seen, d, offsets.size * seen // n), jnp.float32)
      parameters |= generator.norm_parameters(self.norm, seen, d)
    if self.generator == "gated":
      parameters["gate"] = jnp.full((3,), self.gate_init, jnp.float32)
    if self.stored:
      parameters["mixer"] = MANIFOLDS[self.stored].project(self.mixer.initial_point(n, self.identity_bias))
    if self.blend and self.blend.scores:
      parameters["choice"] = jnp.zeros((self.blend.scores,), jnp.float32)
    return parameters

  def choice_weights(self, parameters: Parameters) -> dict[str, Float[Array, ""]]:
    """Weight of every family of a learned choice by its name and options; nothing for the other mixers.

    `parameters` may hold 'progress', the share of the run that is done, () float32; without it the run begins.
    """
    if self.blend is None or not self.blend.scores:
      return {}
    return {mixers.name_of(family): weight for family, weight in self.blended(parameters)}

  def blended(self, parameters: Parameters) -> list[tuple[mixers.Mixer, Array]]:
    """Families that the mixer blends by weights that follow the run, with the weights; empty for other mixers."""
    if self.blend is None:
      return []
    weights = self.blend.weights(parameters.get("choice"), self._progress(parameters))
    return list(zip(self.blend.families, weights, strict=True))

  @staticmethod
  def _progress(parameters: Parameters) -> Array:
    return parameters.get("progress", jnp.zeros((), jnp.float32))

  def coefficients(self, parameters: Parameters, streams: Float[Array, "*tokens n d"] | FusedStreams) -> Coefficients:
    """Read, mix and write coefficients of every token (without token axes for a static generator).

    Raises ValueError where `parameters` lack what `init` makes.
    """
    missing = [name for name in self.parameter_names if name not in parameters]
    if missing:
      raise ValueError(
        f"parameters: no {', '.join(map(repr, missing))} among {', '.join(map(repr, parameters)) or 'none'}; expected "
        f"what `init` of this connection makes (generator={self.generator!r}, norm={self.norm!r})"
      )
    return self.coefficients_of(parameters, self.logits(parameters, streams))

  def logits(
    self, parameters: Parameters, streams: Float[Array, "*tokens n d"] | FusedStreams
  ) -> Float[Array, "k *per_token"]:
    """The logits of read, write and mixer in float32 or wider: bias, or bias + (gate ·) projection of each token."""
    if self.generator == "static":
      return self.bias_of(parameters)
    ops = base.stream_ops(self.implementation, self.streams)
    products = generator.project(streams, parameters, self.norm, self.norm_epsilon, ops)
    return self.logits_of(parameters, self._joined(products) if self.streams_seen < self.streams else products)

  def bias_of(self, parameters: Parameters) -> Float[Array, "k"]:
    """The logits that no token has a part in: all of them for a static generator."""
    return parameters["bias"] if "bias" in parameters else self._initial_logits(parameters.get("layer_index"))

  def logits_of(self, parameters: Parameters, products: Float[Array, "k *tokens"]) -> Float[Array, "k *tokens"]:
    """The logits from what the projection makes of each token's normed streams."""
    if self.activation == "tanh":
      products = jnp.tanh(products)
    per_logit = (slice(None),) + (None,) * (products.ndim - 1)
    if self.generator == "gated":
      gates = jnp.repeat(parameters["gate"], np.array(self.logit_sizes), total_repeat_length=sum(self.logit_sizes))
      products = products * gates[per_logit]
    return products + self.bias_of(parameters)[per_logit]

  def _joined(self, products: Float[Array, "k_of_one *tokens n"]) -> Float[Array, "k *tokens"]:
    """All logits, read, write and mixer one after the other, from each stream's own part of the three."""
    own = np.cumsum(self.logit_sizes)[:-1] // self.streams
    read, write, mix = jnp.split(jnp.moveaxis(products, -1, 0), own.tolist(), axis=1)
    if self.routing.segments > 1 and self.routing.form != "softmax":
      read = jnp.swapaxes(read, 0, 1)  # (m, n): streams come second
    return jnp.concatenate([jax.lax.collapse(part, 0, 2) for part in (read, write, mix)])

  def coefficients_of(self, parameters: Parameters, logits: Float[Array, "k *per_token"]) -> Coefficients:
    """Coefficients from their logits."""
    read_shape, write_shape = self.routing.logit_shapes(self.streams)
    tokens = logits.shape[1:]
    read, write, mix = jnp.split(logits, np.cumsum(self.logit_sizes)[:-1].tolist(), axis=0)
    return Coefficients(
      self.routing.read(read.reshape(read_shape + tokens)),
      self._mixer(parameters, mix.reshape(self.mix_shape + tokens)),
      self.routing.write(write.reshape(write_shape + tokens)),
    )

  def __call__(
    self,
    parameters: Parameters,
    streams: Shaped[Array, "*tokens n d"],
    sublayer: SubLayer,
    seen: Float[Array, "*tokens n d"] | None = None,
  ) -> Any:
    """x' = H x + b ⊗ F(aᵀ x); the sub-layer runs once, on one d-vector per token.

    A sub-layer that returns (y, …) has the rest returned beside the streams: (x', …). `seen`: streams that H, a and b
    are made of in place of x, such as those in front of the connection before (see `Chain`).

    Raises ValueError where the streams, the parameters or the sub-layer's output are not of the shape above, and for
    streams that are no floating-point numbers.
    """
    self.check_streams(streams)
    ops = base.stream_ops(self.implementation, self.streams)
    entered = self._entered(streams, ops, projects=seen is None)
    with jax.named_scope("coefficients"):
      coefficients = saveable(self.coefficients(parameters, entered if seen is None else seen))
    with jax.named_scope("read"):
      read = self._read(entered, coefficients, ops)
    result = sublayer(read)
    output, *rest = result if isinstance(result, tuple) and result else (result,)
    shape = getattr(output, "shape", type(output).__name__)
    if shape != read.shape:  # another width would spread over the streams, or fail far from here
      raise ValueError(f"the sub-layer made {shape} of {read.shape}: expected the shape it was given, (..., d)")
    with jax.named_scope("mix_and_write"):
      written = self._mix_and_write(entered, coefficients, output, ops)
    return (written, *rest) if isinstance(result, tuple) else written

  def check_streams(self, streams: Shaped[Array, "*tokens n d"]) -> None:
    """Raises ValueError for streams of another shape, or that are no floating-point numbers."""
    if not jnp.issubdtype(streams.dtype, jnp.floating):
      raise ValueError(f"streams of {streams.dtype}: expected floating-point numbers; cast them, e.g. to float32")
    if streams.shape[-2:] != (self.streams, self.stream_width):
      segmented = f" of {self.routing.segments} segments" if self.routing.segments > 1 else ""
      raise ValueError(
        f"streams {streams.shape}: expected (..., n={self.streams}, d={self.stream_width}){segmented}; "
        "`expand` makes them from a vector"
      )

  def _entered(self, streams: Array, ops: StreamOps, projects: bool) -> Array | FusedStreams:
    """The streams, or the form of them whose gradient is made in one piece (see `ops.fused_streams`)."""
    if not ops.fuses or self.routing.segments > 1:
      return streams
    shape = (self.streams_seen, self.stream_width, sum(self.logit_sizes) * self.streams_seen // self.streams)
    projects = projects and self.generator != "static" and generator.has_operator(self.norm, self.streams_seen)
    terms = Terms(read=True, mix=self.mixes, write=not self.mixes, kernel_shape=shape if projects else None)
    return fused_streams.enter(streams, terms, ops)

  def _read(self, streams: Array | FusedStreams, coefficients: Coefficients, ops: StreamOps) -> Array:
    if not isinstance(streams, FusedStreams) and self.routing.segments > 1:
      return segments.read(streams, coefficients.read)
    return vjp.read(streams, coefficients.read, ops)

  def _mix_and_write(
    self, streams: Array | FusedStreams, coefficients: Coefficients, output: Array, ops: StreamOps
  ) -> Array:
    if not isinstance(streams, FusedStreams) and self.routing.segments > 1:
      return segments.mix_and_write(streams, coefficients.mix, coefficients.write, output)
    if coefficients.mix is None:
      return vjp.write(streams, coefficients.write, output)
    return vjp.mix_and_write(streams, coefficients.mix, coefficients.write, output, ops)

  def _initial_logits(self, layer_index: Array | None) -> Array:
    if not self.favours_a_stream:
      return jnp.asarray(self._logits_favouring(None), jnp.float32)
    every = np.stack([self._logits_favouring(stream) for stream in range(self.streams)])
    index = self.layer_index if layer_index is None else layer_index
    assert index is not None  # or the rule were refused
    return jnp.asarray(every, jnp.float32)[index % self.streams]

  def _logits_favouring(self, favoured: int | None) -> np.ndarray:
    read, write = self.routing.initial_logits(self.streams, favoured, self.identity_bias)
    parts = [read.ravel(), write.ravel()]
    if not self.stored:
      with jax.ensure_compile_time_eval():  # a constant, also where the model is built under jit
        parts.append(np.asarray(self.mixer.identity_logits(self.streams, self.identity_bias)).ravel())
    return np.concatenate(parts)

  def _mixer(self, parameters: Parameters, logits: Array) -> Array | None:
    if not self.mixes:
      return None
    if self.ablation == "none":
      return self._own_mixer(parameters, logits)
    fixed = ABLATIONS[self.ablation](self.streams)
    if self.ablated_indices is None:
      return jnp.asarray(fixed, logits.dtype)
    own, identity = self._own_mixer(parameters, logits), np.eye(self.streams)
    own = jnp.asarray(identity, logits.dtype) if own is None else own
    here = jnp.any(parameters["layer_index"] == jnp.asarray(self.ablated_indices))
    return jnp.where(here, linear.over_tokens(identity if fixed is None else fixed, own), own)

  def _own_mixer(self, parameters: Parameters, logits: Array) -> Array | None:
    if self.mixer.is_identity:
      return None
    if self.stored:
      mixer = self.mixer.of_point(parameters["mixer"])
    elif self.blend:
      mixer = self.blend.project_at(logits, self.streams, self._progress(parameters), parameters.get("choice"))
    else:
      mixer = self.mixer.project(logits, self.streams)
    return jnp.swapaxes(mixer, 0, 1) if self.transpose else mixer
