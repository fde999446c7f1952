"""What a connection is, without its parameters: mixer, form and sizes, checked once, where they are put together."""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import TypedDict

import numpy as np

from jpmhc_jax import mixers
from jpmhc_jax.connections.ops.base import IMPLEMENTATIONS
from jpmhc_jax.connections.routing import Routing
from jpmhc_jax.core.errors import check_choice, ConfigError, require
from jpmhc_jax.core.fields import check_number, check_whole

__all__ = ["ABLATIONS", "CHOICES", "ConnectionFields", "ConnectionSpec", "SizedConnectionFields"]

# Mixers for causal ablations: what a trained network loses without its own.
ABLATIONS: dict[str, Callable[[int], np.ndarray | None]] = {
  "identity": lambda n: None,
  "mean": lambda n: np.full((n, n), 1 / n),
  "permutation": lambda n: np.roll(np.eye(n), 1, axis=1),  # x'_i = x_(i+1): no stream stays in its place
}

# What the fields of a connection that are words may be.
CHOICES: dict[str, tuple[str, ...]] = {
  "generator": ("static", "dynamic", "gated"),
  "activation": ("none", "tanh"),
  "projection": ("joint", "per_stream"),
  "norm": ("rmsnorm", "layernorm", "rmsnorm_per_stream", "none"),
  "parameterisation": ("logits", "manifold"),
  "initialisation": ("random", "zero", "round_robin"),
  "implementation": IMPLEMENTATIONS,
  "ablation": ("none", *ABLATIONS),
}


class ConnectionFields(TypedDict, total=False):
  """The fields of a `ConnectionSpec` that say what form it has."""

  routing: Routing
  generator: str
  gate_init: float
  activation: str
  bias: bool
  projection: str
  norm: str
  norm_epsilon: float
  parameterisation: str
  initialisation: str
  init_scale: float
  identity_bias: float
  transpose: bool
  implementation: str


class SizedConnectionFields(ConnectionFields, total=False):
  """With its sizes, which have no default."""

  streams: int
  width: int


@dataclasses.dataclass(frozen=True)
class ConnectionSpec:
  """A mixer in a connection of some form and size. Static under jit.

  streams, width: n and d, as is layer_index whole numbers of Python, NumPy or JAX. layer_index is the number of the
  layer; it may be None unless the start favours a stream by it. The other fields are those of `jpmhc describe`:

  generator: static | dynamic | gated, where the logits come from;  activation: none | tanh, of the projected logits;
  projection: joint | per_stream;  norm: rmsnorm | layernorm | rmsnorm_per_stream | none, in front of the projection;
  parameterisation: logits, or manifold for a mixer stored as a matrix on its manifold;  initialisation: random | zero |
  round_robin;  transpose: apply Hᵀ of what the mixer gives;  implementation: see `ops.base.stream_ops`;  ablation: a
  key of ABLATIONS, the matrix in place of H, where `layer_index` is one of `ablated_indices` (None: everywhere).

  Raises ConfigError for a field that is no choice or out of range, for segments that do not divide the width, and where
  mixer and parameterisation, or mixer and projection, do not fit.
  """

  mixer: mixers.Mixer
  _: dataclasses.KW_ONLY
  streams: int
  width: int
  layer_index: int | None = None
  routing: Routing = Routing()
  generator: str = "dynamic"
  gate_init: float = 0.01
  activation: str = "none"
  bias: bool = True
  projection: str = "joint"
  norm: str = "rmsnorm"
  norm_epsilon: float = 1e-6
  parameterisation: str = "logits"
  initialisation: str = "random"
  init_scale: float = 0.02
  identity_bias: float = 4.0
  transpose: bool = False
  implementation: str = "auto"
  ablation: str = "none"
  ablated_indices: tuple[int, ...] | None = None

  def __post_init__(self) -> None:
    for name in ("streams", "width"):
      object.__setattr__(self, name, check_whole(name, getattr(self, name), ge=1))
    if self.layer_index is not None:
      object.__setattr__(self, "layer_index", check_whole("layer_index", self.layer_index))
    for name, choices in CHOICES.items():
      check_choice(name, getattr(self, name), choices)
    for name in ("norm_epsilon", "init_scale"):
      check_number(name, getattr(self, name), ge=0)
    for name in ("gate_init", "identity_bias"):
      check_number(name, getattr(self, name))
    self.routing.check(self.streams, self.width)
    self._check_mixer()
    require(
      self.layer_index is not None or not self.favours_a_stream, "layer_index", None,
      "the number of the layer, by which this start favours a stream",
    )  # fmt: skip

  def _check_mixer(self) -> None:
    """Raises ConfigError where the mixer does not exist for n streams, or not in the form that the fields ask for."""
    if self.parameterisation == "manifold" and self.mixer.manifold is None:
      raise ConfigError(
        f"parameterisation='manifold': expected 'logits', since the matrices of {mixers.name_of(self.mixer)!r} are no "
        "manifold of their own to step on, or another mixer, such as cayley, polar, iso, sinkhorn or grassmann"
      )
    shape = tuple(self.mixer.logit_shape(self.streams))
    rows = self.mix_shape == (0,) or (len(shape) == 2 and shape[0] % self.streams == 0)
    if self.projection == "per_stream" and self.generator != "static" and not rows:
      raise ConfigError(
        f"projection='per_stream': expected mixer logits that are a matrix of rows for {self.streams} streams; those "
        f"of {mixers.name_of(self.mixer)!r} are {shape}: use projection='joint'"
      )

  @property
  def stored(self) -> str | None:
    """The name of the manifold that the mixer is stored on (parameterisation='manifold'); None for logits."""
    return self.mixer.manifold if self.parameterisation == "manifold" else None

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

  @property
  def logit_sizes(self) -> tuple[int, int, int]:
    """How many logits the read, the write and the mixer take, in this order."""
    shapes = (*self.routing.logit_shapes(self.streams), self.mix_shape)
    return tuple(math.prod(shape) for shape in shapes)  # type: ignore[return-value]

  @functools.cached_property
  def blend(self) -> mixers.Blend | None:
    """The mixer, where it blends families by weights that follow the progress of the run."""
    return mixers.scheduled(self.mixer)

  @property
  def favours_a_stream(self) -> bool:
    """Whether the read bias starts with stream layer_index mod n ahead, which tells equal streams apart.

    A joint random projection does that alone; no projection, or one that the streams share, does not.
    """
    projects = self.generator != "static" and self.projection == "joint"
    return self.initialisation != "zero" and not (self.initialisation == "random" and projects)

  @property
  def mixes(self) -> bool:
    """Whether there is a mixer: not for the identity, whether it is the family's or an ablation of every layer."""
    if self.ablation == "none":
      return not self.mixer.is_identity
    return self.ablated_indices is not None or ABLATIONS[self.ablation](self.streams) is not None
