"""Design rules: what a mixer, a depth, an activation and a weight scale do to the Jacobian, before anything is
trained."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jpmhc_jax import manifolds
from jpmhc_jax.core.errors import check_choice, UserError
from jpmhc_jax.core.files import to_json, write_atomically
from jpmhc_jax.core.ranges import check_seed
from jpmhc_jax.spectral import density, moments, propagation
from jpmhc_jax.spectral.layers import block_noise, full_noise, Layers

DRAWS = ("init", "random")
NOISES = ("block", "full")
SOLVED = 1e-3  # relative residual above which a density would be drawn wrong


@dataclasses.dataclass(frozen=True)
class Prediction:
  """One row of the report; the arrays are ready to draw (density of log singular values over the singular values)."""

  mixer: str
  streams: int
  depth: int
  sigma_w: float | None  # None where the noise was measured
  total_noise: float  # Σ_l σ_l²
  condition: float  # 99 % over 1 % quantile of the singular values
  stalled: float  # fraction of singular values under the threshold
  mean_log: float  # of the singular values
  spread_log: float
  gradient_gain: float  # factor on the gradient norm a layer, towards the input: (E|g_0|²/E|g_L|²)^{1/2L}
  dead: float  # fraction of directions below the grid, singular value 1e-6 or less
  residual: float  # largest defect of the Dyson equation on the grid
  singular_values: tuple[float, ...]
  log_density: tuple[float, ...]

  def cost(self) -> float:
    """What the recommendation minimises: lost directions first, then the spread and drift of what is left."""
    return 4 * self.stalled + self.spread_log + abs(np.log(self.gradient_gain)) * self.depth


@dataclasses.dataclass(frozen=True)
class Report:
  """Predictions for every mixer and depth asked for, and what they recommend."""

  predictions: tuple[Prediction, ...]
  threshold: float
  activation: str
  draw: str
  noise: str
  recommendation: str
  reason: str
  sigma_w_advice: float | None  # σ_w that keeps Σ σ_l² = 0.05 at the greatest depth; None where noise was measured

  def save(self, path: pathlib.Path) -> None:
    """Writes everything, densities included, as JSON."""
    write_atomically(path, to_json(dataclasses.asdict(self), indent=1) + "\n")


def mixer_stack(
  name: str, streams: int, depth: int, draw: str, seed: int = 0, options: str = "", strength: float = 4.0
) -> np.ndarray:
  """(depth, n, n) mixers of a family: `init` = identity logits plus noise of standard deviation 0.02, `random` = its
  own law."""
  check_choice("draw", draw, DRAWS)
  check_seed("seed", seed)
  manifold = manifolds.parse(name, options)
  keys = jax.random.split(jax.random.key(seed), depth)
  if draw == "random":
    make = lambda key: manifold.random(key, streams)  # noqa: E731
  else:
    logits = jnp.asarray(manifold.identity_logits(streams, strength), jnp.float32)
    make = lambda key: manifold.project(logits + 0.02 * jax.random.normal(key, logits.shape, jnp.float32), streams)  # noqa: E731
  return np.stack([np.asarray(make(key), np.float64) for key in keys])


def layer_stack(mixers: np.ndarray, activation: str, sigma_w: float, noise: str, norm: bool = True) -> Layers:
  """Layers whose noise follows from signal propagation through these mixers (residual gain tr AᵀA/n, averaged).

  noise: "full", or "block" with the read and write of a freshly initialised block, a = 1/n and b = 1. Needs float64.
  """
  check_choice("noise", noise, NOISES)
  depth, streams, _ = mixers.shape
  gain = float(np.mean(np.sum(mixers**2, axis=(1, 2))) / streams)
  sigma = propagation.propagate(activation, sigma_w, depth, residual=gain, norm=norm).noise
  if noise == "full":
    return full_noise(mixers, sigma)
  return block_noise(mixers, sigma, np.full((depth, streams), 1 / streams), np.ones((depth, streams)))


def predict(
  name: str, layers: Layers | Sequence[Layers], sigma_w: float | None, threshold: float = 0.1, points: int = 160
) -> Prediction:
  """Spectrum and gradient statistics of a given stack, or the average over several of one shape. Needs float64.

  `name` and `sigma_w` are only carried along. Raises UserError where the equation could not be solved.
  """
  stacks = [layers] if isinstance(layers, Layers) else list(layers)
  spectrum = density.spectrum(stacks, points)
  worst = float(jnp.max(spectrum.residual))
  if not worst < SOLVED:
    s = jnp.linalg.svd(jnp.concatenate([each.mixers for each in stacks]), compute_uv=False)
    raise UserError(
      f"{name}: the Dyson equation was solved to a residual of {worst:.0e} only, expected {SOLVED:.0e}; the singular "
      f"values of the mixers span {float(s.min()):.0e} to {float(s.max()):.0e}: scale them nearer to 1, or add noise"
    )
  statistics = density.statistics(spectrum, threshold)
  energy = sum(moments.gradient_energy(each) for each in stacks[1:]) + moments.gradient_energy(stacks[0])
  noise = [jnp.sum(each.variance * _trace(each.read) * _trace(each.write)) for each in stacks]
  return Prediction(
    mixer=name,
    streams=stacks[0].streams,
    depth=stacks[0].depth,
    sigma_w=sigma_w,
    total_noise=float(np.mean(noise)),
    condition=float(statistics.condition),
    stalled=float(statistics.stalled),
    mean_log=float(statistics.mean_log),
    spread_log=float(statistics.spread_log),
    gradient_gain=float((energy[0] / energy[-1]) ** (0.5 / stacks[0].depth)),
    dead=float(jnp.maximum(1 - statistics.mass, 0.0)),
    residual=worst,
    singular_values=tuple(np.sqrt(np.asarray(spectrum.x)).tolist()),
    log_density=tuple((2 * np.asarray(spectrum.density)).tolist()),  # d log λ = 2 d log s
  )


def _trace(covariance: jax.Array) -> jax.Array:
  return jnp.trace(covariance, axis1=1, axis2=2) / covariance.shape[-1]


def what_if(
  mixers: Sequence[str] | Mapping[str, np.ndarray],
  streams: int = 4,
  depths: Sequence[int] = (12,),
  activation: str = "gelu",
  sigma_w: float | None = None,
  *,
  draw: str = "random",
  noise: str = "full",
  threshold: float = 0.1,
  seed: int = 0,
  points: int = 160,
) -> Report:
  """Predicts every mixer at every depth and recommends one.

  mixers: family names (drawn per `draw`), or name -> (depth, n, n) arrays, e.g. from a checkpoint (their depth counts,
  `depths` does not).
  sigma_w: weight scale; None takes the one that keeps Σ σ_l² = 0.05 over isometric mixers at the greatest depth.
  """
  if streams < 2 or not mixers or min(depths, default=0) < 1:
    raise UserError(
      f"streams={streams}, depths={list(depths)}, mixers={list(mixers)}: expected n >= 2, depths >= 1 and a mixer"
    )
  with jax.enable_x64(True):
    advice = propagation.isometric_sigma_w(activation, max(depths))
    scale = advice if sigma_w is None else sigma_w
    if isinstance(mixers, Mapping):
      stacks = [(name, np.asarray(stack, np.float64)) for name, stack in mixers.items()]
    else:
      stacks = [(name, mixer_stack(name, streams, depth, draw, seed)) for name in mixers for depth in depths]
    predictions = tuple(
      predict(name, layer_stack(stack, activation, scale, noise), scale, threshold, points) for name, stack in stacks
    )
  best, reason = _recommended(predictions, threshold)
  return Report(predictions, threshold, activation, draw, noise, best, reason, advice)


def judged(stacks: Mapping[str, Sequence[Layers]], threshold: float = 0.1, points: int = 160) -> Report:
  """A report on given layers, e.g. those of a checkpoint, by name; several stacks of a name are averaged.

  Needs float64.
  """
  predictions = tuple(predict(name, each, None, threshold, points) for name, each in stacks.items())
  best, reason = _recommended(predictions, threshold)
  return Report(predictions, threshold, "measured", "checkpoint", "block", best, reason, None)


def _recommended(predictions: Sequence[Prediction], threshold: float) -> tuple[str, str]:
  """The mixer with the lowest total cost over the depths, and the numbers that decided."""
  total: dict[str, float] = {}
  for row in predictions:
    total[row.mixer] = total.get(row.mixer, 0.0) + row.cost()
  best = min(total, key=total.__getitem__)
  rows = sorted((r for r in predictions if r.mixer == best), key=lambda r: r.depth)
  deep = rows[-1]
  reason = (
    f"at depth {deep.depth} {deep.stalled:.1%} of its singular values are under {threshold:g}, their logs spread by "
    f"{deep.spread_log:.2f}, and a layer changes the gradient norm by a factor {deep.gradient_gain:.4f}"
  )
  rivals = sorted((cost, name) for name, cost in total.items() if name != best)
  if rivals and rivals[0][0] < 1.1 * total[best] + 0.02:
    reason += f"; {rivals[0][1]} is as good within 10 %"
  return best, reason
