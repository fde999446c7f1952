"""A convex blend of two families: how much of each is fixed, learned or scheduled."""

import dataclasses

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers.base import Mixer, Traits
from jpmhc_jax.mixers.birkhoff import Sinkhorn
from jpmhc_jax.mixers.blend import Blend, check_span, scheduled
from jpmhc_jax.mixers.iso import Iso

__all__ = ["Hybrid"]

_LEARNED = -1.0


@dataclasses.dataclass(frozen=True)
class Hybrid(Blend):
  """H = (1 − λ) H_first + λ H_second, λ in [0, 1]; Iso and Birkhoff unless named otherwise.

  project: logits (K, *tokens) = [first's logits, second's logits, gate] flattened -> H (n, n, *tokens). weight >= 0
  fixes λ and drops the gate; weight = −1 learns it, λ = σ(gate): per layer from a static generator, per token from a
  dynamic one. final >= 0 schedules it: λ goes from `weight` to `final`, linearly in the share p of the run that is
  done, from p = start to p = end (`at`).
  Options: first=iso(method=newton_schulz),second=sinkhorn, weight, …: a family's own options stand in parentheses.

  Raises ConfigError for weights that are no fractions, and a schedule without an end.

  >>> mixer = jp.Hybrid(jp.Identity(), jp.Circulant(leak=1.0), weight=0.5)
  >>> mixer.project(jnp.zeros(mixer.logit_shape(2)), 2).tolist()
  [[0.75, 0.25], [0.25, 0.75]]
  """

  first: Mixer = Iso()
  second: Mixer = Sinkhorn()
  weight: float = _LEARNED
  final: float = _LEARNED  # −1: λ does not change
  start: float = 0.0
  end: float = 1.0

  def __post_init__(self) -> None:
    if scheduled(self.first) or scheduled(self.second):
      raise ConfigError(
        "first, second: a choice or a schedule cannot run inside a blend; name families that do not change with the "
        "run, e.g. first=iso,second=sinkhorn."
      )
    if self.weight != _LEARNED and not 0 <= self.weight <= 1:
      raise ConfigError(f"weight={self.weight}: expected a fraction, 0 to 1, or −1 to learn it.")
    if self.final != _LEARNED and not (0 <= self.final <= 1 and self.weight != _LEARNED):
      raise ConfigError(
        f"final={self.final}, weight={self.weight}: a schedule goes from one fraction to another, e.g. "
        "weight=0,final=1; final=−1 for none."
      )
    check_span(self.start, self.end)

  @property
  def families(self) -> tuple[Mixer, Mixer]:
    """(first, second)."""
    return self.first, self.second

  @property
  def traits(self) -> Traits:
    return self._shared_traits(f"blend of {self.first.traits.set} and {self.second.traits.set}")

  @property
  def follows_progress(self) -> bool:
    """Whether there is a schedule."""
    return self.final != _LEARNED

  @property
  def gates(self) -> int:
    """One, where λ is learned."""
    return int(self.weight == _LEARNED)

  def at(self, progress: Float[Array, ""] | float) -> Float[Array, ""] | float:
    """The scheduled λ when the share `progress` of the run is done; the fixed one without a schedule."""
    if not self.follows_progress:
      return self.weight
    share = jnp.clip((progress - self.start) / (self.end - self.start), 0.0, 1.0)
    return self.weight + (self.final - self.weight) * share

  def weights(self, scores: Float[Array, "families"] | None, progress: Float[Array, ""]) -> Float[Array, "2"]:
    """(1 − λ, λ) of the schedule."""
    weight = jnp.asarray(self.at(progress))
    return jnp.stack([1 - weight, weight])

  def blend(
    self, logits: Float[Array, "k *tokens"], n: int, weight: Float[Array, "..."] | float
  ) -> Float[Array, "{n} {n} *tokens"]:
    """H for a given λ, a scalar or one per token; any gate logit is ignored."""
    a, b = self.matrices(logits, n)
    weight = jnp.broadcast_to(weight, logits.shape[1:])
    return a + weight * (b - a) if weight.ndim == 0 else a + weight[None, None] * (b - a)

  def project_at(self, logits: Array, n: int, progress: Array, scores: Array | None) -> Array:
    """H with the scheduled λ."""
    return self.blend(logits, n, self.at(progress))

  def _project(self, logits: Array, n: int) -> Array:
    return self.blend(logits, n, jax.nn.sigmoid(logits[-1]) if self.gates else self.weight)
