"""From the resolvent to densities and the numbers that a design rule reads off them.

Two inversions of G. On a line above the axis, ρ(x) ≈ −Im G(x + iη)/π smooths with a Lorentzian of width η. On a ray,
z = x e^{iθ}, −Im(z G(z))/π is the density of log λ smoothed with width θ: the same relative resolution at every size,
which is what deep products need. Its kernel has mass 1 − θ/π. The error of both is linear in the width; Richardson's
2 ρ(width) − ρ(2 width) removes that order, and with it the heavy tails that would spoil second moments.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float
import numpy as np
from scipy.interpolate import AAA

from jpmhc_jax.spectral import correlated, dyson, moments
from jpmhc_jax.spectral.correlated import Correlated, Prepared
from jpmhc_jax.spectral.layers import Layers

__all__ = [
  "Solvable", "Spectrum", "Stack", "Statistics", "aaa_density", "line_spectrum", "log_spectrum", "quantile", "spectrum",
  "statistics", "stieltjes_inversion", "support", "upper_edge",
]  # fmt: skip

Stack = Layers | Correlated
Solvable = Stack | Prepared

_WIDEST = 0.7  # angle of a ray up to which −Im(z G) is a density of log λ that is worth extrapolating
_EDGE_POINTS, _EDGE_ANGLE, _EDGE_HEIGHT = 32, 1e-6, 1e-2  # of the search for the largest value
_LARGEST_LOG = 600.0  # |log λ| that float64 takes, with room for the products of the solver


class Spectrum(NamedTuple):
  """Density of the eigenvalues of JᵀJ (squared singular values) on a grid of increasing x > 0."""

  x: jax.Array  # (points,)
  density: jax.Array  # (points,) with respect to x, or to log x when logarithmic
  weights: jax.Array  # (points,) quadrature mass of each point; the sum falls short of 1 by what lies off the grid
  residual: jax.Array  # (points,) defect of the Dyson equation, the worse of the two widths


class Statistics(NamedTuple):
  """What the spectrum says about trainability. Every field is a differentiable scalar."""

  mass: jax.Array  # on the grid; 1 − mass sits below it (dead directions)
  mean_log: jax.Array  # mean log singular value
  spread_log: jax.Array  # standard deviation of the log singular values
  condition: jax.Array  # ratio of the 99 % to the 1 % quantile of the singular values
  stalled: jax.Array  # fraction of singular values under the threshold


def _widths(x: Float[Array, " points"]) -> Float[Array, " points"]:
  """Trapezoid weights of a grid."""
  gaps = jnp.diff(x)
  return 0.5 * (jnp.pad(gaps, (0, 1)) + jnp.pad(gaps, (1, 0)))


def log_spectrum(layers: Layers, x: Float[Array, " points"], angle: float = 0.02) -> Spectrum:
  """Density of log λ at the given x > 0, smoothed over less than `angle` (relative), by Richardson's extrapolation."""
  return _from_rays(x, angle, _along(layers, jnp.stack(_rays(x, angle))))


@jax.jit
def _along(layers: Layers, curves: Complex[Array, "curves points"]) -> list[dyson.Resolvent]:
  """The resolvent on each of the curves; one after the other, so that the solver is compiled once."""
  solved = jax.lax.map(lambda z: dyson.resolvent(layers, z), curves)
  return [jax.tree.map(lambda values, k=k: values[k], solved) for k in range(len(curves))]


def _rays(x: Float[Array, " points"], angle: float) -> list[Complex[Array, " points"]]:
  return [x * jnp.exp(1j * width) for width in (angle, 2 * angle)]


def _from_rays(x: Float[Array, " points"], angle: float, rays: Sequence[dyson.Resolvent]) -> Spectrum:
  near, far = (
    -(x * jnp.exp(1j * width) * r.g).imag / (jnp.pi - width) for r, width in zip(rays, (angle, 2 * angle), strict=True)
  )
  density = 2 * near - far
  return Spectrum(x, density, density * _widths(jnp.log(x)), jnp.maximum(rays[0].residual, rays[1].residual))


def line_spectrum(layers: Layers, x: Float[Array, " points"], eta: float = 0.02, richardson: bool = True) -> Spectrum:
  """Density of λ at the given x, smoothed with a Lorentzian of width η (second order in η with Richardson)."""
  near, *rest = _along(layers, jnp.stack([x + k * 1j * eta for k in ((1, 2) if richardson else (1,))]))
  density, residual = stieltjes_inversion(near.g), near.residual
  for far in rest:
    density, residual = 2 * density - stieltjes_inversion(far.g), jnp.maximum(residual, far.residual)
  return Spectrum(x, density, density * _widths(x), residual)


def stieltjes_inversion(g: Complex[Array, " points"]) -> Float[Array, " points"]:
  """ρ = −Im G/π, smoothed with a Lorentzian whose width is the height of the line."""
  return -g.imag / jnp.pi


def aaa_density(
  z: Complex[np.ndarray, " points"], g: Complex[np.ndarray, " points"], x: Float[np.ndarray, " m"]
) -> np.ndarray:
  """Density on the real axis by rational (AAA) continuation of G from the points z; G(z̄) = conj G(z) is imposed by
  data.

  Needs accurate G (residual ≤ 1e-8) and heights comparable to the feature sizes; poles near the axis show up as spikes.
  Source: Nakatsukasa, Sète, Trefethen 2018, in scipy.
  """
  rational = AAA(np.asarray(z), np.asarray(g), rtol=1e-9)
  result: np.ndarray = np.maximum(-rational(np.asarray(x, complex)).imag / np.pi, 0.0)
  return result


def _by_parts(
  layers: Solvable, z: Complex[Array, " points"], tick: Callable[[float], None] = lambda share: None
) -> dyson.Resolvent:
  """The resolvent by the solver for such layers."""
  if isinstance(layers, Layers):
    return dyson.by_parts(layers, z, tick)
  return correlated.by_parts(layers, z, tick)


def _prepared(layers: Solvable) -> Solvable:
  """The layers for several grids."""
  return layers if isinstance(layers, Layers) else correlated.prepared(layers)


def _log_bound(layers: Solvable, tail: float) -> float:
  """log λ above which no more than a share `tail` of the mass lies."""
  if not isinstance(layers, Layers):
    return math.log(max(correlated.first_moment(layers), 1e-300)) - math.log(tail)
  scale = jnp.linalg.norm(layers.mixers, 2, axis=(1, 2))
  noise = jnp.sqrt(
    layers.variance * jnp.linalg.norm(layers.read, 2, axis=(1, 2)) * jnp.linalg.norm(layers.write, 2, axis=(1, 2))
  )
  # |J| ≤ Π (|A| + 2σ); and no more than a share m₁/λ of the mass lies above λ (Markov), m₁ = E tr JᵀJ / N.
  norm = 2 * float(jnp.sum(jnp.log(scale + 2 * noise + 1e-12)))
  return min(norm, float(moments.log_first_moment(layers)) - math.log(tail))


def support(
  layers: Solvable, floor: float = 1e-12, tail: float = 1e-5, tick: Callable[[float], None] = lambda share: None
) -> tuple[float, float]:
  """Range of λ that holds the spectrum up to a fraction `tail` of its mass; what lies under `floor` is given up.

  Raises NotSolvedError where λ may leave the range of float64, as it does at great depth, and as `dyson.by_parts` does.
  """
  layers = _prepared(layers)
  top = _log_bound(layers, tail)
  bottom = min(np.log(floor), top - 1.0)
  if not max(top, -bottom) < _LARGEST_LOG:
    raise dyson.NotSolvedError(f"squared singular values may reach {top / math.log(10):.3g} decades, beyond float64")
  x = np.exp(np.linspace(bottom, top + 0.5, 96))
  angle = 0.15
  g = np.asarray(_by_parts(layers, jnp.asarray(x * np.exp(1j * angle)), tick).g)
  # Lorentzian tails of width 0.15 would pass for mass far outside; Richardson is no use for a sign test, so square
  # them.
  density = np.maximum(-(x * np.exp(1j * angle) * g).imag / np.pi, 0.0) ** 2
  mass = np.cumsum(density) / np.sum(density)
  low, high = int(np.searchsorted(mass, tail)), int(np.searchsorted(mass, 1 - tail))
  margin = 3 + int(0.05 * (high - low))
  return float(x[max(low - margin, 0)]), float(x[min(high + margin, len(x) - 1)])


def spectrum(
  layers: Solvable | Sequence[Solvable],
  points: int = 200,
  angle: float = 0.0,
  floor: float = 1e-12,
  tick: Callable[[float], None] = lambda share: None,
) -> Spectrum:
  """Density of log λ over its own support, found first on a coarse ray.

  layers: one stack, or several of one shape (the same network at several tokens), whose spectra are averaged.
  angle: smoothing; 0 takes 0.02, or the spacing of the grid where that is coarser: the atoms that block noise leaves
  (directions that it never reaches) would fall between the points. What lies under `floor` is left to be inferred from
  the missing mass.
  tick: called now and then with the share of the work that is done; what it raises ends the work. Raises
  NotSolvedError where the Dyson equation was not solved.
  """
  stacks = [_prepared(each) for each in ([layers] if isinstance(layers, Layers | Correlated | Prepared) else layers)]
  turns = 3 * len(stacks)  # of about equal cost: the support and two rays of every stack

  def turn(done: int) -> Callable[[float], None]:
    return lambda share: tick((done + share) / turns)

  bounds = np.log([support(each, floor, tick=turn(k)) for k, each in enumerate(stacks)])
  low, high = bounds[:, 0].min(), bounds[:, 1].max()
  x = jnp.exp(jnp.linspace(low, high, points))
  angle = angle or max(0.02, (high - low) / points)
  if not angle < _WIDEST:
    raise dyson.NotSolvedError(
      f"squared singular values span {(high - low) / math.log(10):.3g} decades, too many for {points} points of a ray"
    )
  each = [
    _from_rays(x, angle, [_by_parts(stack, z, turn(len(stacks) + 2 * k + j)) for j, z in enumerate(_rays(x, angle))])
    for k, stack in enumerate(stacks)
  ]
  mean = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]) / len(parts), *each)
  residual = jnp.max(jnp.stack([one.residual for one in each]), axis=0)
  if not float(jnp.max(residual)) < dyson.SOLVED:
    raise dyson.NotSolvedError.of(float(jnp.max(residual)))
  result: Spectrum = mean._replace(residual=residual)
  return result


def upper_edge(layers: Solvable, low: float, high: float) -> float:
  """The largest λ of the spectrum, between two bounds, to a thousandth of their ratio's logarithm.

  Just above the axis, at z = x e^{iθ}, −Im(z G)/π is of order θ outside of the spectrum and grows like a root inside.
  Raises NotSolvedError as `dyson.by_parts` does.
  """
  layers = _prepared(layers)
  for _ in range(2):
    x = np.geomspace(low, high, _EDGE_POINTS)
    z = x * np.exp(1j * _EDGE_ANGLE)
    height = -(z * np.asarray(_by_parts(layers, jnp.asarray(z)).g)).imag / np.pi
    last = int(np.flatnonzero(height >= _EDGE_HEIGHT).max(initial=0))
    low, high = x[last], x[min(last + 1, _EDGE_POINTS - 1)]
  return float(np.sqrt(low * high))


def quantile(spectrum: Spectrum, level: float) -> Float[Array, ""]:
  """log λ below which a fraction `level` of the mass on the grid lies."""
  cumulative = jnp.cumsum(spectrum.weights) - 0.5 * spectrum.weights
  cumulative = jax.lax.cummax(cumulative / jnp.sum(spectrum.weights))  # Richardson may dip below zero beside an edge
  return jnp.interp(level, cumulative, jnp.log(spectrum.x))


def statistics(spectrum: Spectrum, threshold: float = 0.1) -> Statistics:
  """Summary of a logarithmic spectrum; `threshold` is the singular value under which a direction counts as stalled."""
  mass = jnp.sum(spectrum.weights)
  weights = spectrum.weights / mass
  log_singular = 0.5 * jnp.log(spectrum.x)
  mean = jnp.sum(weights * log_singular)
  spread = jnp.sqrt(jnp.maximum(jnp.sum(weights * (log_singular - mean[None]) ** 2), 1e-30))
  cumulative = jnp.cumsum(weights) - 0.5 * weights
  stalled = jnp.clip(jnp.interp(jnp.log(threshold), log_singular, cumulative, left=0.0, right=1.0), 0.0, 1.0)
  dead = jnp.maximum(1 - mass, 0.0)
  condition = jnp.exp(0.5 * (quantile(spectrum, 0.99) - quantile(spectrum, 0.01)))
  return Statistics(mass, mean, spread, condition, dead + (1 - dead) * stalled)
