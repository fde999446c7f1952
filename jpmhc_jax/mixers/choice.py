"""A learned choice between families: a mixture that is annealed to one of them while the network trains."""

import dataclasses
import math
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers.base import Mixer, Traits
from jpmhc_jax.mixers.birkhoff import Sinkhorn
from jpmhc_jax.mixers.iso import Iso
from jpmhc_jax.mixers.trivial import Identity

_SHARED = ("row_sums_one", "column_sums_one", "nonnegative", "contractive", "contains_identity", "exact")


@dataclasses.dataclass(frozen=True)
class Choice(Mixer):
  """H = Σ_k w_k H_k over families k, w = softmax(scores / τ); one family once the share p of the run reaches `end`.

  The scores are one vector a connection, not a token. With p = finished steps / planned steps,
  τ(p) = hot (cold / hot)^t,  t = (p − start) / (end − start) clipped to [0, 1];  from p >= end on w is the one-hot
  vector of the largest score, without a gradient: the choice is made, and the run goes on with that family alone.
  Everything is a function of p: nothing is retraced and a resumed run repeats.

  project: logits (K, *tokens), the families' logits flattened and joined -> H (n, n, *tokens) with equal weights, which
  is where every run starts; `blend` takes the weights. Options: families=cayley(alpha=1)/sinkhorn/identity, hot, …
  Source: the mixture of DARTS (Liu et al. 2019). A one-hot forward pass with the softmax's gradient from the start was
  tried and left out: families that are not taken do not learn, and the first guess is often kept.
  """

  families: tuple[Mixer, ...] = (Iso(), Sinkhorn(), Identity())
  hot: float = 1.0
  cold: float = 0.01
  start: float = 0.1
  end: float = 0.7

  def __post_init__(self) -> None:
    if len(self.families) < 2 or any(family.follows_progress for family in self.families):
      raise ConfigError(
        "connection.options: families: expected at least two families to choose from and no choice or schedule among "
        "them, e.g. families=cayley/sinkhorn/iso."
      )
    if len(set(self.families)) < len(self.families):
      raise ConfigError("connection.options: families: a family is named twice; name each once.")
    if not 0 < self.cold <= self.hot:
      raise ConfigError(f"connection.options: hot={self.hot}, cold={self.cold}: expected 0 < cold <= hot.")
    if not 0 <= self.start < self.end <= 1:
      raise ConfigError(
        f"connection.options: start={self.start}, end={self.end}: expected shares of the run, 0 <= start < end <= 1."
      )

  @property
  def traits(self) -> Traits:
    members = [family.traits for family in self.families]
    contractive = all(traits.contractive for traits in members)
    shared: dict[str, Any] = {name: all(getattr(traits, name) for traits in members) for name in _SHARED}
    return Traits(
      "one of " + ", ".join(traits.set for traits in members), **shared,
      eigenvalues="closed unit disc" if contractive else "any", norm="kept at most" if contractive else "free",
    )  # fmt: skip

  @property
  def follows_progress(self) -> bool:
    return True

  def _sizes(self, n: int) -> list[int]:
    return [math.prod(family.logit_shape(n)) for family in self.families]

  def logit_shape(self, n: int) -> tuple[int, ...]:
    return (sum(self._sizes(n)),)

  def dimension(self, n: int) -> int:
    """An upper bound: tangent directions that families share are counted once for each."""
    shared = self.traits
    ambient = (n - 1) ** 2 if shared.row_sums_one and shared.column_sums_one else n * n
    return min(sum(family.dimension(n) for family in self.families), ambient)

  def identity_logits(self, n: int, strength: float) -> Float[Array, "k"]:
    return jnp.concatenate([family.identity_logits(n, strength).reshape(-1) for family in self.families])

  def weights(self, scores: Float[Array, "families"] | None, progress: Float[Array, ""]) -> Float[Array, "families"]:
    """w at the share `progress` of the run; see the class. Scores of None are all equal."""
    scores = jnp.zeros((len(self.families),)) if scores is None else scores
    t = jnp.clip((progress - self.start) / (self.end - self.start), 0.0, 1.0)
    soft = jax.nn.softmax(scores / (self.hot * (self.cold / self.hot) ** t))
    chosen = jax.nn.one_hot(jnp.argmax(scores), len(self.families), dtype=soft.dtype)
    return jnp.where(progress >= self.end, chosen, soft)

  def blend(
    self, logits: Float[Array, "k *tokens"], n: int, weights: Float[Array, "families"]
  ) -> Float[Array, "{n} {n} *tokens"]:
    """Σ_k w_k H_k for the given weights, the same for every token."""
    parts = jnp.split(logits, np.cumsum(self._sizes(n))[:-1].tolist(), axis=0)
    mixers = [
      family.project(part.reshape(*family.logit_shape(n), *logits.shape[1:]), n)
      for family, part in zip(self.families, parts, strict=True)
    ]
    return sum(
      (weight * mixer for weight, mixer in zip(weights[1:], mixers[1:], strict=True)), start=weights[0] * mixers[0]
    )

  def blended(self, progress: Array, scores: Array | None) -> list[tuple[Mixer, Array]]:
    return list(zip(self.families, self.weights(scores, progress), strict=True))

  def project_at(self, logits: Array, n: int, progress: Array, scores: Array | None) -> Array:
    return self.blend(logits, n, self.weights(scores, progress))

  def _project(self, logits: Array, n: int) -> Array:
    count = len(self.families)
    return self.blend(logits, n, jnp.full((count,), 1 / count, logits.dtype))
