"""Mixers that blend other families: what `choice` and `hybrid` share."""

import abc
import math
from typing import Any

from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers.base import Mixer, Traits

__all__ = ["Blend", "check_span", "scheduled"]

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
    return sum(others, first)

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
