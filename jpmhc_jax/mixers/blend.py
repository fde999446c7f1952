"""Mixers that blend other families.

choice   a learned choice: a mixture that is annealed to one family while the network trains
hybrid   a convex blend of two families: how much of each is fixed, learned or scheduled
"""

import abc
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

__all__ = ["Blend", "Choice", "Hybrid", "check_span", "scheduled"]

_SHARED = ("row_sums_one", "column_sums_one", "nonnegative", "contractive", "contains_identity", "exact")


class Blend(Mixer):
  """H = Σ_k w_k H_k over families k, Σ w_k = 1. Convexity keeps what all families share: sums, sign, ‖H‖₂ <= 1.

  Where `follows_progress`, the weights are a function of the share p of the run that is done, common to all tokens:
  `project_at` takes it, and `project` blends as the run starts. Nothing is retraced, and a resumed run repeats.
  """

  @property
  @abc.abstractmethod
  def families(self) -> tuple[Mixer, ...]:
    """The families that are blended."""

  @property
  @abc.abstractmethod
  def follows_progress(self) -> bool:
    """Whether the weights depend on p."""

  @property
  def scores(self) -> int:
    """How many numbers a connection learns that the weights depend on; 0 for none."""
    return 0

  @property
  def gates(self) -> int:
    """How many logits the weights have, behind those of the families; 0 for weights common to all tokens."""
    return 0

  @abc.abstractmethod
  def weights(self, scores: Float[Array, "families"] | None, progress: Float[Array, ""]) -> Float[Array, "families"]:
    """w at the share `progress` of the run, for a blend that follows it."""

  def project_at(
    self, logits: Float[Array, "k *tokens"], n: int, progress: Float[Array, ""], scores: Float[Array, "families"] | None
  ) -> Float[Array, "{n} {n} *tokens"]:
    """H (n, n, *tokens) when the share `progress` of the run is done, for a blend that follows it."""
    return self._sum(self.matrices(logits, n), self.weights(scores, progress))

  def matrices(self, logits: Float[Array, "k *tokens"], n: int) -> list[Float[Array, "{n} {n} *tokens"]]:
    """H_k of every family, from its own part of the logits; those of the gates are ignored."""
    # One split: the gradient of several slices pads each of them.
    parts = jnp.split(logits, np.cumsum(self._sizes(n)).tolist(), axis=0)[: len(self.families)]
    return [
      family.project(part.reshape(*family.logit_shape(n), *logits.shape[1:]), n)
      for family, part in zip(self.families, parts, strict=True)
    ]

  def _sum(self, matrices: list[Array], weights: Float[Array, "families"]) -> Array:
    first, *others = (weight * matrix for weight, matrix in zip(weights, matrices, strict=True))
    result: Array = sum(others, first)
    return result

  def _sizes(self, n: int) -> list[int]:
    return [math.prod(family.logit_shape(n)) for family in self.families]

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """The logits of all families, flattened and joined, then those of the gates."""
    return (sum(self._sizes(n)) + self.gates,)

  def identity_logits(self, n: int, strength: float) -> Float[Array, "k"]:
    """Those of the families; 0 for the gates."""
    parts = [family.identity_logits(n, strength).reshape(-1) for family in self.families]
    return jnp.concatenate([*parts, jnp.zeros((self.gates,))])

  def dimension(self, n: int) -> int:
    """An upper bound: tangent directions that families share are counted once for each."""
    shared = self.traits
    ambient = (n - 1) ** 2 if shared.row_sums_one and shared.column_sums_one else n * n
    return min(sum(family.dimension(n) for family in self.families) + self.gates, ambient)

  def _shared_traits(self, name: str) -> Traits:
    members = [family.traits for family in self.families]
    shared: dict[str, Any] = {trait: all(getattr(traits, trait) for traits in members) for trait in _SHARED}
    contractive = shared["contractive"]
    return Traits(
      name, **shared, eigenvalues="closed unit disc" if contractive else "any",
      norm="kept at most" if contractive else "free",
    )  # fmt: skip


def scheduled(mixer: Mixer) -> Blend | None:
  """The mixer, where its weights follow the progress of the run; None for all others."""
  return mixer if isinstance(mixer, Blend) and mixer.follows_progress else None


def check_span(start: float, end: float) -> None:
  """Raises ConfigError unless start and end are shares of the run, 0 <= start < end <= 1."""
  if not 0 <= start < end <= 1:
    raise ConfigError(f"start={start}, end={end}: expected shares of the run, 0 <= start < end <= 1.")


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
    """What holds for every family that may be chosen."""
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
    """What holds for every blend of the two families."""
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
