"""The two ends of a network of streams: one vector becomes n streams, and n streams become one vector again.

| expand | x_i of an input x                | numbers | reduce  | output                               | numbers |
| copy   | x                                | 0       | mean    | mean_i x_i                           | 0       |
| scale  | s_i ∘ x (LSS)                    | nd      | sum     | Σ_i x_i                              | 0       |
| linear | W_i x                            | nd²     | learned | Σ_i r_i x_i                          | n       |
|        | + e_i, if a stream embedding     | nd      | head    | Σ_i (σ(Norm(vec x) W + b)_i + ε) x_i | n²d + n |

With m segments stream i holds (d/m numbers of) segment i mod m, and the sums and means run over each segment's streams.
Learned ends start as the copy and the mean, plus a small noise that makes the streams differ.
Sources: LSS (2606.03483), stream embedding (lucidrains), head (DeepSeek-V4, ε = 1e-6).
"""

from collections.abc import Mapping
import dataclasses
import math
import operator
from typing import SupportsIndex

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from jpmhc_jax.connections.ops import segments
from jpmhc_jax.connections.routing import Routing
from jpmhc_jax.core.errors import check_choice, require
from jpmhc_jax.core.fields import check_number, check_whole

__all__ = ["EXPANSIONS", "HEAD_EPSILON", "REDUCTIONS", "StreamExpansion", "StreamExpansionFn", "expand", "reduce"]

HEAD_EPSILON = 1e-6
_NORM_EPSILON = 1e-6
_AXES = {
  "scale": ("streams", "embed"),
  "kernel": ("streams", None, "embed"),
  "embedding": ("streams", "embed"),
  "head_kernel": ("streams", "embed", None),
}


def expand(x: Float[Array, "*tokens d"], n: SupportsIndex, m: SupportsIndex = 1) -> Float[Array, "*tokens n w"]:
  """n copies of one vector, or of its m segments in turn: the streams (*tokens, n, d/m) at the start of a network.

  x: (*tokens, d) of any dtype, which stays. Raises ValueError unless 1 <= m <= n and m divides d.

  >>> jp.expand(jnp.array([1.0, 2.0]), 3).tolist()
  [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
  >>> jp.expand(jnp.array([1.0, 2.0]), 4, 2).tolist()  # two segments
  [[1.0], [2.0], [1.0], [2.0]]
  """
  n, m = operator.index(n), operator.index(m)
  if not 1 <= m <= n or x.shape[-1] % m:
    raise ValueError(f"n={n}, m={m}: expected at least one stream, and 1 to n segments that divide d={x.shape[-1]}")
  return segments.split(x, n, m)


def reduce(streams: Float[Array, "*tokens n w"], how: str = "mean", m: int = 1) -> Float[Array, "*tokens d"]:
  """One vector (*tokens, d) from n streams (*tokens, n, d/m): their mean or sum, segment by segment.

  Raises ConfigError for another word.

  >>> jp.reduce(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
  [2.0, 3.0]
  """
  check_choice("how", how, ("mean", "sum"))
  return segments.join(streams, m, how)


EXPANSIONS = ("copy", "scale", "linear")
REDUCTIONS = ("mean", "sum", "learned", "head")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamExpansionFn:
  """Learned ends of a network, (*tokens, d) -> streams -> (*tokens, d), as pure functions of their parameters.

  Parameters are a dict of float32 arrays, empty for copy and mean.

  streams, width, segments: n, d and m. expansion, reduction: the tables above; embedding: add e_i. noise: standard
  deviation of the deviation from copy and mean at the start, in units of the weights' own size.

  Raises ConfigError for a field that is no choice or out of range, for segments that do not divide the width, and for a
  head with less than two streams per segment.

  >>> ends = jp.StreamExpansionFn(streams=4, width=64, expansion="scale", reduction="head")
  >>> parameters = ends.init(jax.random.key(0))
  >>> ends.reduce(parameters, ends.expand(parameters, jnp.ones((2, 64)))).shape
  (2, 64)
  """

  streams: int
  width: int
  segments: int = 1
  expansion: str = "copy"
  embedding: bool = False
  reduction: str = "mean"
  noise: float = 0.0

  def __post_init__(self) -> None:
    for name in ("streams", "width"):
      object.__setattr__(self, name, check_whole(name, getattr(self, name), ge=1))
    check_choice("expansion", self.expansion, EXPANSIONS)
    check_choice("reduction", self.reduction, REDUCTIONS)
    check_number("noise", self.noise, ge=0)
    Routing(segments=self.segments).check(self.streams, self.width)
    require(
      self.reduction != "head" or self.streams >= 2 * self.segments,
      "reduction",
      self.reduction,
      f"at least two streams per segment (streams={self.streams}, segments={self.segments}) to weigh; or 'mean' or "
      "'learned'",
    )

  def init(self, key: Key[Array, ""]) -> dict[str, Float[Array, "..."]]:
    """Fresh parameters: the copy and the mean, plus the noise."""
    n, m = self.streams, self.segments
    w, group = self.width // m, self._group_sizes()
    keys = dict(zip(("expand", "embedding", "reduce"), jax.random.split(key, 3), strict=True))
    parameters: dict[str, Array] = {}
    if self.expansion == "scale":
      # The noise of LSS, Xavier-uniform over (n, d), around 1 instead of 0.6 so that the streams keep the input's size.
      limit = math.sqrt(6 / (n + w)) if self.noise else 0.0
      parameters["scale"] = 1 + jax.random.uniform(keys["expand"], (n, w), minval=-limit, maxval=limit)
    if self.expansion == "linear":
      start = jnp.stack([jnp.eye(self.width)[:, i % m * w : (i % m + 1) * w] for i in range(n)])
      parameters["kernel"] = start + self.noise / math.sqrt(self.width) * jax.random.normal(keys["expand"], start.shape)
    if self.embedding:
      parameters["embedding"] = self.noise * jax.random.normal(keys["embedding"], (n, w))
    if self.reduction == "learned":
      parameters["weights"] = (1 + self.noise * jax.random.normal(keys["reduce"], (n,))) / group
    if self.reduction == "head":
      gate = 1 / group - HEAD_EPSILON
      scale = self.noise / math.sqrt(n * w)
      parameters["head_kernel"] = scale * jax.random.normal(keys["reduce"], (n, w, n))
      parameters["head_bias"] = jnp.log(gate / (1 - gate))
    return {name: jnp.asarray(value, jnp.float32) for name, value in parameters.items()}

  def expand(
    self, parameters: Mapping[str, Float[Array, "..."]], x: Float[Array, "*tokens d"]
  ) -> Float[Array, "*tokens n w"]:
    """The streams at the start, in x's dtype."""
    if self.expansion == "linear":
      out = jnp.einsum("...d,ndw->...nw", x, parameters["kernel"].astype(x.dtype))
    else:
      out = segments.split(x, self.streams, self.segments)
    leading = (1,) * (x.ndim - 1)
    if self.expansion == "scale":
      out = out * parameters["scale"].astype(x.dtype).reshape(*leading, *out.shape[-2:])
    if self.embedding:
      out = out + parameters["embedding"].astype(x.dtype).reshape(*leading, *out.shape[-2:])
    return out

  def reduce(
    self, parameters: Mapping[str, Float[Array, "..."]], streams: Float[Array, "*tokens n w"]
  ) -> Float[Array, "*tokens d"]:
    """The vector at the end, in the streams' dtype; learned weights act in float32."""
    if self.reduction in ("mean", "sum"):
      return segments.join(streams, self.segments, self.reduction)
    wide = streams.astype(jnp.promote_types(streams.dtype, jnp.float32))
    if self.reduction == "learned":
      weights = parameters["weights"].astype(wide.dtype).reshape((1,) * (wide.ndim - 2) + (-1,))
    else:
      scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=(-2, -1)) + _NORM_EPSILON)
      logits = jnp.einsum("...nw,nwk->...k", wide, parameters["head_kernel"].astype(wide.dtype)) * scale[..., None]
      bias = parameters["head_bias"].astype(wide.dtype).reshape((1,) * (wide.ndim - 2) + (-1,))
      weights = jax.nn.sigmoid(logits + bias) + HEAD_EPSILON
    return segments.join(wide * weights[..., None], self.segments, "sum").astype(streams.dtype)

  def _group_sizes(self) -> np.ndarray:
    """For each stream, how many streams hold its segment."""
    of_stream = np.arange(self.streams) % self.segments
    return np.bincount(of_stream)[of_stream].astype(np.float32)


class StreamExpansion(nnx.Module):
  """Learned ends of a network, `StreamExpansionFn`, as a Flax NNX module.

  Every leaf carries its logical axes and its optimiser role.

  >>> ends = jp.StreamExpansion(jp.StreamExpansionFn(streams=4, width=64, expansion="scale"), rngs=nnx.Rngs(0))
  >>> ends.reduce(ends.expand(jnp.ones((2, 64)))).shape
  (2, 64)
  """

  def __init__(self, rule: StreamExpansionFn, *, rngs: nnx.Rngs):
    self.rule = rule
    if jax.eval_shape(self.rule.init, jax.random.key(0)):  # ends without parameters draw no random number
      for name, value in self.rule.init(rngs.params()).items():
        setattr(self, name, nnx.Param(value, axes=_AXES.get(name, (None,) * value.ndim), role="mixer"))

  def _parameters(self) -> dict[str, Array]:
    return {name: value[...] for name, value in vars(self).items() if isinstance(value, nnx.Param)}

  def expand(self, x: Float[Array, "*tokens d"]) -> Float[Array, "*tokens n w"]:
    """n streams from one vector."""
    return self.rule.expand(self._parameters(), x)

  def reduce(self, streams: Float[Array, "*tokens n w"]) -> Float[Array, "*tokens d"]:
    """One vector from n streams."""
    return self.rule.reduce(self._parameters(), streams)
