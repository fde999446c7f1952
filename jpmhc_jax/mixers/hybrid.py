"""A convex blend of two families: how much of each is fixed, learned or scheduled."""

import dataclasses
import math

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers.base import Mixer, Traits
from jpmhc_jax.mixers.birkhoff import Sinkhorn
from jpmhc_jax.mixers.iso import Iso

_LEARNED = -1.0


@dataclasses.dataclass(frozen=True)
class Hybrid(Mixer):
  """H = (1 − λ) H_first + λ H_second, λ in [0, 1]; Iso and Birkhoff unless named otherwise.

  project: logits (K, *tokens) = [first's logits, second's logits, gate] flattened -> H (n, n, *tokens). weight >= 0
  fixes λ and drops the gate; weight = −1 learns it, λ = σ(gate): per layer from a static generator, per token from a
  dynamic one. final >= 0 schedules it: λ goes from `weight` to `final`, linearly in the share p of the run that is
  done, from p = start to p = end (`at`); a function of p, so nothing is retraced and a resumed run repeats. Convexity
  keeps what both families share: row and column sums, sign, ‖H‖₂ <= 1.
  Options: first=iso(method=newton_schulz),second=sinkhorn, weight, …: a family's own options stand in parentheses.
  """

  first: Mixer = Iso()
  second: Mixer = Sinkhorn()
  weight: float = _LEARNED
  final: float = _LEARNED  # −1: λ does not change
  start: float = 0.0
  end: float = 1.0

  def __post_init__(self) -> None:
    if self.first.follows_progress or self.second.follows_progress:
      raise ConfigError(
        "connection.options: first, second: a choice or a schedule cannot run inside a blend; name families that do "
        "not change with the run, e.g. first=iso,second=sinkhorn."
      )
    if self.weight != _LEARNED and not 0 <= self.weight <= 1:
      raise ConfigError(f"connection.options: weight={self.weight}: expected a fraction, 0 to 1, or −1 to learn it.")
    if self.final != _LEARNED and not (0 <= self.final <= 1 and self.weight != _LEARNED):
      raise ConfigError(
        f"connection.options: final={self.final}, weight={self.weight}: a schedule goes from one fraction to another, "
        "e.g. weight=0,final=1; final=−1 for none."
      )
    if not 0 <= self.start < self.end <= 1:
      raise ConfigError(
        f"connection.options: start={self.start}, end={self.end}: expected shares of the run, 0 <= start < end <= 1."
      )

  @property
  def traits(self) -> Traits:
    a, b = self.first.traits, self.second.traits
    shared = ("row_sums_one", "column_sums_one", "nonnegative", "contractive", "contains_identity", "exact")
    return Traits(
      f"blend of {a.set} and {b.set}", **{name: getattr(a, name) and getattr(b, name) for name in shared},
      eigenvalues="closed unit disc" if a.contractive and b.contractive else "any",
      norm="kept at most" if a.contractive and b.contractive else "free",
    )  # fmt: skip

  @property
  def follows_progress(self) -> bool:
    return self.final != _LEARNED

  def at(self, progress: Float[Array, ""] | float) -> Float[Array, ""] | float:
    """The scheduled λ when the share `progress` of the run is done."""
    if not self.follows_progress:
      return self.weight
    share = jnp.clip((progress - self.start) / (self.end - self.start), 0.0, 1.0)
    return self.weight + (self.final - self.weight) * share

  def _sizes(self, n: int) -> tuple[int, int]:
    return math.prod(self.first.logit_shape(n)), math.prod(self.second.logit_shape(n))

  def logit_shape(self, n: int) -> tuple[int, ...]:
    return (sum(self._sizes(n)) + (self.weight == _LEARNED),)

  def dimension(self, n: int) -> int:
    shared = self.traits
    ambient = (n - 1) ** 2 if shared.row_sums_one and shared.column_sums_one else n * n
    return min(self.first.dimension(n) + self.second.dimension(n) + (self.weight == _LEARNED), ambient)

  def identity_logits(self, n: int, strength: float) -> Float[Array, "k"]:
    parts = [manifold.identity_logits(n, strength).reshape(-1) for manifold in (self.first, self.second)]
    return jnp.concatenate([*parts, jnp.zeros((1,))] if self.weight == _LEARNED else parts)

  def blend(
    self, logits: Float[Array, "k *tokens"], n: int, weight: Float[Array, "..."] | float
  ) -> Float[Array, "{n} {n} *tokens"]:
    """H for a given λ, a scalar or one a token; any gate logit is ignored."""
    # One split: the gradient of several slices pads each of them.
    parts = jnp.split(logits, np.cumsum(self._sizes(n)).tolist(), axis=0)
    a, b = (
      manifold.project(part.reshape(*manifold.logit_shape(n), *logits.shape[1:]), n)
      for manifold, part in ((self.first, parts[0]), (self.second, parts[1]))
    )
    weight = jnp.broadcast_to(weight, logits.shape[1:])
    return a + weight * (b - a) if weight.ndim == 0 else a + weight[None, None] * (b - a)

  def blended(self, progress: Array, scores: Array | None) -> list[tuple[Mixer, Array]]:
    if not self.follows_progress:
      return []
    weight = jnp.asarray(self.at(progress))
    return [(self.first, 1 - weight), (self.second, weight)]

  def project_at(self, logits: Array, n: int, progress: Array, scores: Array | None) -> Array:
    return self.blend(logits, n, self.at(progress)) if self.follows_progress else self.project(logits, n)

  def _project(self, logits: Array, n: int) -> Array:
    return self.blend(logits, n, jax.nn.sigmoid(logits[-1]) if self.weight == _LEARNED else self.weight)
