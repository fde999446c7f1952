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
import functools
import math
from typing import Any, NamedTuple, SupportsIndex

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped
import numpy as np

from jpmhc_jax import mixers
from jpmhc_jax.config import schema
from jpmhc_jax.config.connection_fields import check_connection, connection_fields
from jpmhc_jax.connections import generator
from jpmhc_jax.connections.manifold_parameter import stored_mixer, StoredMixer
from jpmhc_jax.connections.ops import base, fused_streams, segments, vjp
from jpmhc_jax.connections.ops.base import StreamOps
from jpmhc_jax.connections.ops.fused_streams import FusedStreams, Terms
from jpmhc_jax.connections.routing import Routing
from jpmhc_jax.core.errors import ConfigError, require
from jpmhc_jax.core.scalars import whole
from jpmhc_jax.linalg import linear

Parameters = Mapping[str, Float[Array, "..."] | Int[Array, ""]]
# F: x -> y, or x -> (y, …) with whatever else the sub-layer makes: a cache, an auxiliary loss, attention weights.
SubLayer = Callable[[Float[Array, "*tokens d"]], Any]


# Mixers for causal ablations: what a trained network loses without its own.
ABLATIONS: dict[str, Callable[[int], np.ndarray | None]] = {
  "identity": lambda n: None,
  "mean": lambda n: np.full((n, n), 1 / n),
  "permutation": lambda n: np.roll(np.eye(n), 1, axis=1),  # x'_i = x_(i+1): no stream stays in its place
}


# What a rematerialisation policy may save instead of the streams: n² + 2n numbers a token, against n·d.
COEFFICIENTS = "coefficients"


class Coefficients(NamedTuple):
  """What a connection computes per token, float32. `mix` is None for the identity mixer.

  With m > 1 segments read is (m, n, *tokens) and write (n, m, *tokens).

  >>> rule = jp.HyperConnectionFn.of(jp.Cayley(), streams=2, width=3)
  >>> coefficients = rule.coefficients(rule.init(jax.random.key(0)), jnp.ones((5, 2, 3)))
  >>> coefficients.read.shape, coefficients.mix.shape, coefficients.write.shape
  ((2, 5), (2, 2, 5), (2, 5))
  """

  read: Float[Array, "..."]
  mix: Float[Array, "n n *tokens"] | None
  write: Float[Array, "..."]


def _named(coefficient: Array) -> Array:
  return checkpoint_name(coefficient, COEFFICIENTS)


@dataclasses.dataclass(frozen=True)
class HyperConnectionFn:
  """Everything about one connection but its parameters.

  `stored` is set when the mixer is a matrix on its manifold (connection.parameterisation='manifold') instead of logits.

  Example:
    connection = HyperConnectionFn.from_config(schema.Connection(mixer="cayley"), width=64, layer_index=0)
    parameters = connection.init(jax.random.key(0))
    streams = connection(parameters, streams, lambda x: jnp.tanh(x))     # (*tokens, n, d) -> (*tokens, n, d)
  """

  mixer: mixers.Mixer
  streams: int
  width: int
  layer_index: int
  routing: Routing = Routing()
  generator: str = "dynamic"
  gate_init: float = 0.01
  activation: str = "none"
  bias: bool = True
  projection: str = "joint"
  norm: str = "rmsnorm"
  norm_epsilon: float = 1e-6
  stored: StoredMixer | None = None
  initialisation: str = "random"
  init_scale: float = 0.02
  identity_bias: float = 4.0
  transpose: bool = False  # apply Hᵀ of what the mixer gives
  implementation: str = "auto"  # see `ops.base.stream_ops`
  ablation: str = "none"  # a key of ABLATIONS: the matrix that is applied in place of H
  ablated_indices: tuple[int, ...] | None = (
    None  # where one rule serves a stack, the `layer_index` of these; None = all
  )

  @classmethod
  def of(
    cls, mixer: mixers.Mixer, *, width: SupportsIndex, layer_index: SupportsIndex | None = None, **fields: Any
  ) -> "HyperConnectionFn":
    """The connection around a mixer object; `fields` are those of `config.Connection`, such as streams=4.

    `layer_index`, the number of the layer, must be given where the start favours a stream by it.

    Raises ConfigError as `from_config` does, and for a field that there is not.

    >>> from jpmhc_jax.mixers import Cayley
    >>> HyperConnectionFn.of(Cayley(alpha=0.5), streams=4, width=64).parameter_names
    ('bias', 'projection')
    """
    for name in ("mixer", "options"):
      require(name not in fields, name, fields.get(name), "nothing: the mixer is the first argument")
    config = connection_fields(**fields, mixer=type(mixer).__name__)
    return cls.from_config(config, width, layer_index, mixer)

  @classmethod
  def from_config(
    cls,
    config: schema.Connection,
    width: SupportsIndex,
    layer_index: SupportsIndex | None,
    mixer: mixers.Mixer | None = None,
  ) -> "HyperConnectionFn":
    """The connection that the config describes; `mixer` stands in for the one that it names.

    Raises ConfigError for a field that is no choice or out of range, for segments that do not divide the width, and
    where mixer and parameterisation, or mixer and projection, do not fit.
    """
    config, d = check_connection(config, width)
    index = 0 if layer_index is None else whole(layer_index)
    if index is None:
      raise ConfigError(f"layer_index={layer_index!r}: expected a whole number")
    mixer = mixers.parse(config.mixer, config.options) if mixer is None else mixer
    connection = cls(
      mixer=mixer,
      streams=config.streams,
      width=d,
      layer_index=index,
      routing=Routing(config.read_write, config.temperature, config.segments, config.read_epsilon),
      generator=config.generator,
      gate_init=config.gate_init,
      activation=config.activation,
      bias=config.bias,
      projection=config.projection,
      norm=config.norm,
      norm_epsilon=config.norm_epsilon,
      stored=stored_mixer(mixer, config.mixer) if config.parameterisation == "manifold" else None,
      initialisation=config.init,
      init_scale=config.init_scale,
      identity_bias=config.identity_bias,
      transpose=config.transpose,
      implementation=config.implementation,
    )
    connection._check_projection(config)
    if layer_index is None and connection.favours_a_stream:
      raise ConfigError("layer_index=None: expected the number of the layer, by which this start favours a stream")
    return connection

  def _check_projection(self, config: schema.Connection) -> None:
    shape = self.mix_shape
    rows = shape == (0,) or (len(shape) == 2 and shape[0] % self.streams == 0)
    require(
      rows or self.projection == "joint" or self.generator == "static",
      "connection.projection",
      config.projection,
      f"mixer logits that are a matrix of rows for {self.streams} streams; those of {config.mixer!r} are {shape}: "
      "use projection='joint'",
    )

  @property
  def stream_width(self) -> int:
    """Features of one stream: d, or d/m with m segments."""
    return self.width // self.routing.segments

  @property
  def streams_seen(self) -> int:
    """How many streams a logit is projected from: all, or its own."""
    return 1 if self.projection == "per_stream" else self.streams

  @property
  def parameter_names(self) -> tuple[str, ...]:
    """The keys of what `init` makes."""
    dynamic = self.generator != "static"
    present = {
      "bias": self.bias or not dynamic,
      "projection": dynamic,
      "norm_scale": dynamic and self.norm == "layernorm",
      "norm_shift": dynamic and self.norm == "layernorm",
      "gate": self.generator == "gated",
      "mixer": self.stored is not None,
      "choice": self.blend is not None and self.blend.scores > 0,
    }
    return tuple(name for name, there in present.items() if there)

  @property
  def mix_shape(self) -> tuple[int, ...]:
    """Leading axes of the mixer's logits; (0,) when the mixer takes none."""
    return (0,) if self.stored else tuple(self.mixer.logit_shape(self.streams))

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
      parameters["mixer"] = self.stored.initial(n, self.identity_bias)
    if self.blend and self.blend.scores:
      parameters["choice"] = jnp.zeros((self.blend.scores,), jnp.float32)
    return parameters

  @functools.cached_property
  def blend(self) -> mixers.Blend | None:
    """The mixer, where it blends families by weights that follow the progress of the run."""
    return mixers.scheduled(self.mixer)

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

  @property
  def logit_sizes(self) -> tuple[int, int, int]:
    """How many logits the read, the write and the mixer take, in this order."""
    shapes = (*self.routing.logit_shapes(self.streams), self.mix_shape)
    return tuple(math.prod(shape) for shape in shapes)  # type: ignore[return-value]

  def logits(
    self, parameters: Parameters, streams: Float[Array, "*tokens n d"] | FusedStreams
  ) -> Float[Array, "k *per_token"]:
    """The logits of read, write and mixer in float32 or wider: bias, or bias + (gate ·) projection of each token."""
    bias = parameters["bias"] if "bias" in parameters else self._initial_logits(parameters.get("layer_index"))
    if self.generator == "static":
      return bias
    ops = base.stream_ops(self.implementation, self.streams)
    products = generator.project(streams, parameters, self.norm, self.norm_epsilon, ops)
    if self.streams_seen < self.streams:
      products = self._joined(products)
    if self.activation == "tanh":
      products = jnp.tanh(products)
    per_logit = (slice(None),) + (None,) * (products.ndim - 1)
    if self.generator == "gated":
      gates = jnp.repeat(parameters["gate"], np.array(self.logit_sizes), total_repeat_length=sum(self.logit_sizes))
      products = products * gates[per_logit]
    return products + bias[per_logit]

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

  def __call__(self, parameters: Parameters, streams: Shaped[Array, "*tokens n d"], sublayer: SubLayer) -> Any:
    """x' = H x + b ⊗ F(aᵀ x); the sub-layer runs once, on one d-vector per token.

    A sub-layer that returns (y, …) has the rest returned beside the streams: (x', …).

    Raises ValueError where the streams, the parameters or the sub-layer's output are not of the shape above, and for
    streams that are no floating-point numbers.
    """
    if not jnp.issubdtype(streams.dtype, jnp.floating):
      raise ValueError(f"streams of {streams.dtype}: expected floating-point numbers; cast them, e.g. to float32")
    if streams.shape[-2:] != (self.streams, self.stream_width):
      segmented = f" of {self.routing.segments} segments" if self.routing.segments > 1 else ""
      raise ValueError(
        f"streams {streams.shape}: expected (..., n={self.streams}, d={self.stream_width}){segmented}; "
        "`expand` makes them from a vector"
      )
    ops = base.stream_ops(self.implementation, self.streams)
    entered = self._entered(streams, ops)
    with jax.named_scope("coefficients"):
      coefficients = jax.tree.map(_named, self.coefficients(parameters, entered))
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

  def _entered(self, streams: Array, ops: StreamOps) -> Array | FusedStreams:
    """The streams, or the form of them whose gradient is made in one piece (see `ops.fused_streams`)."""
    if not ops.fuses or self.routing.segments > 1:
      return streams
    shape = (self.streams_seen, self.stream_width, sum(self.logit_sizes) * self.streams_seen // self.streams)
    projects = self.generator != "static" and generator.has_operator(self.norm, self.streams_seen)
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

  @property
  def favours_a_stream(self) -> bool:
    """Whether the read bias starts with stream layer_index mod n ahead, which tells equal streams apart.

    A joint random projection does that alone; no projection, or one that the streams share, does not.
    """
    projects = self.generator != "static" and self.projection == "joint"
    return self.initialisation != "zero" and not (self.initialisation == "random" and projects)

  def _initial_logits(self, layer_index: Array | None) -> Array:
    if not self.favours_a_stream:
      return jnp.asarray(self._logits_favouring(None), jnp.float32)
    every = np.stack([self._logits_favouring(stream) for stream in range(self.streams)])
    index = self.layer_index if layer_index is None else layer_index
    return jnp.asarray(every, jnp.float32)[index % self.streams]

  def _logits_favouring(self, favoured: int | None) -> np.ndarray:
    read, write = self.routing.initial_logits(self.streams, favoured, self.identity_bias)
    parts = [read.ravel(), write.ravel()]
    if not self.stored:
      with jax.ensure_compile_time_eval():  # a constant, also where the model is built under jit
        parts.append(np.asarray(self.mixer.identity_logits(self.streams, self.identity_bias)).ravel())
    return np.concatenate(parts)

  @property
  def mixes(self) -> bool:
    """Whether there is a mixer: not for the identity, whether it is the family's or an ablation of every layer."""
    if self.ablation == "none":
      return not self.mixer.is_identity
    return self.ablated_indices is not None or ABLATIONS[self.ablation](self.streams) is not None

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
      mixer = self.stored.mixer(parameters["mixer"])
    elif self.blend:
      mixer = self.blend.project_at(logits, self.streams, self._progress(parameters), parameters.get("choice"))
    else:
      mixer = self.mixer.project(logits, self.streams)
    return jnp.swapaxes(mixer, 0, 1) if self.transpose else mixer
