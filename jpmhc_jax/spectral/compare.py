"""A predicted and a measured spectrum on equal terms: both as weighted singular values on one logarithmic axis.

What lies under a floor counts as the floor, in both: a float32 Jacobian resolves nothing under 1e-4 of its largest
singular value, k steps of Lanczos nothing under 2/k of it, and the logarithm of a dead direction would swamp all means.
"""

from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from jpmhc_jax.spectral.density import Spectrum

__all__ = ["Atoms", "Summary", "atoms", "cut", "of_spectrum", "quantiles", "smoothed", "summary", "w1", "with_dead"]


class Atoms(NamedTuple):
  """A distribution of log singular values: ascending positions, weights that sum to 1."""

  log_values: Float[np.ndarray, " atoms"]
  weights: Float[np.ndarray, " atoms"]


class Summary(NamedTuple):
  """What both sides of a comparison are reduced to."""

  condition: float  # 99 % over 1 % quantile of the singular values
  stalled: float  # fraction of singular values under the threshold
  mean_log: float
  spread_log: float
  smallest: float  # 1 %, 50 % and 99 % quantiles
  median: float
  largest: float


def atoms(values: np.ndarray, weights: np.ndarray | None = None, floor: float = 1e-12) -> Atoms:
  """Singular values, any shape, with weights of the same shape (equal ones by default); negative weights count as 0."""
  values = np.ravel(np.asarray(values, np.float64))
  weights = np.ones_like(values) if weights is None else np.maximum(np.ravel(np.asarray(weights, np.float64)), 0.0)
  order = np.argsort(values)
  return Atoms(np.log(np.maximum(values[order], floor)), weights[order] / weights.sum())


def of_spectrum(spectrum: Spectrum, total: float = 1.0, floor: float = 1e-12, removed: float = 0.0) -> Atoms:
  """A predicted logarithmic density; the mass that falls short of `total` lies below the grid, a share `removed` of
  what is left too."""
  weights = np.maximum(np.asarray(spectrum.weights), 0.0)
  dead = max(1.0 - float(np.sum(spectrum.weights)) / total, 0.0)
  dead += (1 - dead) * removed
  values = np.sqrt(np.asarray(spectrum.x))
  mass = max(weights.sum(), np.finfo(np.float64).tiny)  # 0 where all of it lies below the grid
  return atoms(np.append(0.0, values), np.append(dead, weights * ((1 - dead) / mass)), floor)


def quantiles(law: Atoms, levels: Float[np.ndarray, " levels"]) -> Float[np.ndarray, " levels"]:
  """log singular value under which a fraction of the mass lies."""
  return law.log_values[np.minimum(np.searchsorted(np.cumsum(law.weights), levels), len(law.weights) - 1)]


def summary(law: Atoms, threshold: float = 0.1, floor: float = 0.0) -> Summary:
  """Condition, stalled fraction, mean and spread of the logarithms, quantiles. What lies at the floor is stalled."""
  low, middle, high = quantiles(law, np.array([0.01, 0.5, 0.99]))
  mean = float(np.sum(law.weights * law.log_values))
  spread = float(np.sqrt(np.sum(law.weights * (law.log_values - mean) ** 2)))
  stalled = float(np.sum(law.weights[law.log_values <= np.log(max(threshold, floor * (1 + 1e-9)))]))
  return Summary(
    float(np.exp(high - low)), stalled, mean, spread, float(np.exp(low)), float(np.exp(middle)), float(np.exp(high))
  )


def cut(law: Atoms, floor: float) -> Atoms:
  """The same with what lies under the floor at it."""
  return law._replace(log_values=np.maximum(law.log_values, np.log(floor)))


def with_dead(law: Atoms, share: float, floor: float) -> Atoms:
  """The law with a share of dead directions beside it, cut off at the floor."""
  values, weights = np.append(0.0, np.exp(law.log_values)), np.append(share, (1 - share) * law.weights)
  return atoms(values, weights, floor)


def w1(first: Atoms, second: Atoms) -> float:
  """∫ |F − F̂| d log s: how far, in log singular value, mass has to be moved on average."""
  at = np.concatenate([first.log_values, second.log_values])
  order = np.argsort(at, kind="stable")
  steps = np.concatenate([first.weights, -second.weights])[order]
  return float(np.sum(np.abs(np.cumsum(steps))[:-1] * np.diff(at[order])))


def smoothed(law: Atoms, log_values: Float[np.ndarray, " points"], width: float) -> Float[np.ndarray, " points"]:
  """Density over log s, every atom spread by a Gaussian of the given width, for drawing."""
  bumps = np.exp(-0.5 * ((log_values[:, None] - law.log_values[None, :]) / width) ** 2)
  result: np.ndarray = bumps @ law.weights / (width * np.sqrt(2 * np.pi))
  return result
