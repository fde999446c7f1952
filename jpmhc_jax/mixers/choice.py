"""A learned choice between families: a mixture that is annealed to one of them while the network trains."""

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
from jpmhc_jax.mixers.trivial import Identity

__all__ = ["Choice"]


@dataclasses.dataclass(frozen=True)
class Choice(Blend):
  """H = Σ_k w_k H_k over families k, w = softmax(scores / τ); one family once the share p of the run reaches `end`.

  The scores are one vector per connection, not per token. With p = finished steps / planned steps,
  τ(p) = hot (cold / hot)^t,  t = (p − start) / (end − start) clipped to [0, 1];  from p >= end on w is the one-hot
  vector of the largest score, without a gradient: the choice is made, and the run goes on with that family alone.
  Everything is a function of p: nothing is retraced and a resumed run repeats.

  project: logits (K, *tokens), the families' logits flattened and joined -> H (n, n, *tokens) with equal weights, which
  is where every run starts; `project_at` takes p and the scores.
  Options: families=cayley(alpha=1)/sinkhorn/identity, hot, …
  Source: the mixture of DARTS (Liu et al. 2019). A one-hot forward pass with the softmax's gradient from the start was
  tried and left out: families that are not taken do not learn, and the first guess is often kept.

  Raises ConfigError for a single family, one named twice, and temperatures or shares out of order.

  >>> mixer = jp.Choice(families=(jp.Identity(), jp.Circulant(leak=1.0)))
  >>> h = mixer.project(jnp.zeros(mixer.logit_shape(2)), 2)  # half I, half the mean over both streams
  >>> h.tolist()
  [[0.75, 0.25], [0.25, 0.75]]
  """

  families: tuple[Mixer, ...] = (Iso(), Sinkhorn(), Identity())
  hot: float = 1.0
  cold: float = 0.01
  start: float = 0.1
  end: float = 0.7

  def __post_init__(self) -> None:
    if len(self.families) < 2 or any(scheduled(family) for family in self.families):
      raise ConfigError(
        "families: expected at least two families to choose from and no choice or schedule among "
        "them, e.g. families=cayley/sinkhorn/iso."
      )
    if len(set(self.families)) < len(self.families):
      raise ConfigError("families: a family is named twice; name each once.")
    if not 0 < self.cold <= self.hot:
      raise ConfigError(f"hot={self.hot}, cold={self.cold}: expected 0 < cold <= hot.")
    check_span(self.start, self.end)

  @property
  def traits(self) -> Traits:
    return self._shared_traits("one of " + ", ".join(family.traits.set for family in self.families))

  @property
  def follows_progress(self) -> bool:
    """Always."""
    return True

  @property
  def scores(self) -> int:
    """One per family."""
    return len(self.families)

  def weights(self, scores: Float[Array, "families"] | None, progress: Float[Array, ""]) -> Float[Array, "families"]:
    """w at the share `progress` of the run; see the class. Scores of None are all equal."""
    scores = jnp.zeros((len(self.families),)) if scores is None else scores
    t = jnp.clip((progress - self.start) / (self.end - self.start), 0.0, 1.0)
    soft = jax.nn.softmax(scores / (self.hot * (self.cold / self.hot) ** t))
    chosen = jax.nn.one_hot(jnp.argmax(scores), len(self.families), dtype=soft.dtype)
    return jnp.where(progress >= self.end, chosen, soft)

  def _project(self, logits: Array, n: int) -> Array:
    count = len(self.families)
    return self._sum(self.matrices(logits, n), jnp.full((count,), 1 / count, logits.dtype))
