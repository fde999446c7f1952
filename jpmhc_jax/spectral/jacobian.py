"""The singular values of a Jacobian as a law: predicted from its layers, or measured, in one form to compare and draw.

    predicted = predict(Cayley(), sigma=0.1, streams=4, depth=12)
    measured = measure(function, x)
    predicted.w1(measured), predicted.top, measured.quantile(0.99)

Predictions compute in float64, whatever the process computes in.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.core.errors import check_choice, UserError
from jpmhc_jax.core.scalars import check_seed
from jpmhc_jax.mixers import Mixer
from jpmhc_jax.spectral import compare, density, dyson, measured, monte_carlo, stable_product
from jpmhc_jax.spectral.correlated import Correlated, correlated_noise, tied_covariance
from jpmhc_jax.spectral.layers import block_noise, full_noise, Layers, Real, without_rotations

__all__ = [
  "DEEPEST", "DRAWS", "FLOOR", "JacobianSpectrum", "MOST_PLACES", "Sampled", "drawing", "measure", "mixer_stack",
  "predict", "sampled_size", "solve",
]  # fmt: skip

DRAWS = ("init", "random")
FLOOR = 1e-6  # singular value below which a direction counts as dead
DEEPEST = 4_000  # depth · streams³ up to which the Dyson equation is tried: two minutes; beyond, a product is sampled
MOST_PLACES = 400  # of `Correlated` layers, up to which the same holds
_SAMPLED = 96  # singular values of a sampled product, at least
_TAIL = 1e-4  # share of the mass that a smoothed edge may leave outside of the support
_LOST = 0.01  # share of the mass that the grid of a density loses by smoothing: no dead directions
_RESOLVED = 1e-4  # share of the largest singular value down to which a float32 Jacobian is right
_LARGEST_LOG = 690.0  # what exp takes
_POINTS = 160


@dataclasses.dataclass(frozen=True)
class JacobianSpectrum:
  """The law of the singular values s of a Jacobian, as weighted values.

  log_values, weights: log s, ascending, float64 (atoms,), and their shares, which sum to 1.
  grid, density: singular values and the density of log s there, float64 (points,), to draw.
  support: the least and the greatest singular value above the floor, but for 1e-4 of a prediction's mass at the least.
  source: 'dyson' (the limit of wide layers), 'sampled' (one product of finite width); 'exact' or 'lanczos' (measured).
  floor: the singular value under which nothing is resolved; what lies there counts as the floor.
  residual: the largest defect of the Dyson equation. remark: why a prediction was sampled.
  chance: the W1 from the truth that random probes are expected to leave.

  >>> law = jp.spectral.measure(lambda x: jnp.array([4.0, 1.0]) * x, jnp.zeros(2))
  >>> law.top, law.quantile([0.25, 0.75]).round(4).tolist(), round(law.summary().mean_log, 4)  # log 2
  (4.0, [1.0, 4.0], 0.6931)
  """

  log_values: Float[np.ndarray, " atoms"]
  weights: Float[np.ndarray, " atoms"]
  grid: Float[np.ndarray, " points"]
  density: Float[np.ndarray, " points"]
  support: tuple[float, float]
  source: str
  floor: float
  residual: float | None = None
  chance: float = 0.0
  remark: str = ""

  @property
  def atoms(self) -> compare.Atoms:
    """The law as the functions of `spectral.compare` take it."""
    return compare.Atoms(self.log_values, self.weights)

  @property
  def top(self) -> float:
    """The largest singular value: the upper edge of the support."""
    return self.support[1]

  @property
  def dead(self) -> float:
    """The share of directions at the floor."""
    return float(self.weights[self.log_values <= np.log(self.floor * (1 + 1e-9))].sum())

  def quantile(self, levels: float | Sequence[float]) -> Float[np.ndarray, "..."]:
    """Singular values under which these shares of the directions lie, in the shape of `levels`."""
    asked = np.asarray(levels, np.float64)
    result: np.ndarray = np.exp(compare.quantiles(self.atoms, asked.ravel())).reshape(asked.shape)
    return result

  def summary(self, threshold: float = 0.1) -> compare.Summary:
    """Condition (99 % over 1 % quantile), share under the threshold, mean and spread of log s, three quantiles."""
    return compare.summary(self.atoms, threshold, self.floor)

  def w1(self, other: "JacobianSpectrum") -> float:
    """∫ |F − F̂| d log s: how far mass has to be moved, on average, in log s. Both are cut off at the higher floor."""
    floor = max(self.floor, other.floor)
    return compare.w1(compare.cut(self.atoms, floor), compare.cut(other.atoms, floor))


def predict(
  mixers: Mixer | Layers | Correlated | Real,
  sigma: Real | None = None,
  *,
  streams: int | None = None,
  depth: int | None = None,
  reads: Real | None = None,
  writes: Real | None = None,
  weights: Sequence[int] | None = None,
  similarity: float = 1.0,
  draw: str = "random",
  seed: int = 0,
  points: int = _POINTS,
  tick: Callable[[float], None] = lambda share: None,
) -> JacobianSpectrum:
  """The law of the singular values of J = Y_L … Y_1, Y_l = A_l ⊗ I + noise, for wide layers.

  mixers: A_l as an array (L, n, n), or a mixer of which `depth` members for `streams` streams are drawn: 'random' by
  its own law, 'init' as a network starts; or `Layers` or `Correlated`, which have their noise already.
  sigma: standard deviation of the noise, a number or (L,): Y_l = A_l ⊗ I + σ_l X_l, the entries of X_l with variance
  1/N. With reads a_l and writes b_l, (L, n) each, it is that of a hyper-connection: Y_l = A_l ⊗ I + σ_l b_l a_lᵀ ⊗ W_l,
  where σ_l² is the mean square of the singular values of the sub-layer's Jacobian.
  weights: (L,) label of the weight that a layer applies, for a network that repeats weights: the noise of two layers
  with one label has the correlation `similarity`, 0 to 1. Without labels all noise is independent.
  points: of the grid. tick: called now and then with the share of the work that is done; what it raises ends the work.

  Exact as the width goes to infinity (matrix Dyson equation). Where it cannot be solved, or not within minutes, the
  law is that of one sampled product of finite width, and `remark` says so. Raises UserError for a combination that
  makes no sense, ValueError for shapes that do not fit and values that are not finite.
  Source: Helton, Rashidi Far, Speicher 2007; Haagerup, Thorbjørnsen 2005.

  >>> law = jp.spectral.predict(np.zeros((1, 2, 2)), sigma=1.0)  # a Gaussian matrix: the quarter circle on [0, 2]
  >>> round(law.top, 1)
  2.0
  >>> straight, ends = np.ones((4, 1, 1)), {"reads": np.ones((4, 1)), "writes": np.ones((4, 1))}
  >>> calls = jp.spectral.predict(straight, 0.3, **ends, weights=[0, 0, 0, 0], points=64)  # (1 + σ W)⁴
  >>> calls.top > 1.3 * jp.spectral.predict(straight, 0.3, **ends, points=64).top
  True
  """
  with jax.enable_x64(True):
    layers = _layers(mixers, sigma, streams, depth, reads, writes, draw, seed, weights, similarity)
    solved = solve([layers], points, tick)
    if isinstance(solved, density.Spectrum):
      mass = float(jnp.sum(solved.weights))
      law = compare.of_spectrum(solved, mass if abs(mass - 1) < _LOST else 1.0, FLOOR)
      grid = np.sqrt(np.asarray(solved.x))
      drawn = np.maximum(2 * np.asarray(solved.density), 0.0)  # d log λ = 2 d log s
      support, residual = _edges(layers, law, grid[-1]), float(jnp.max(solved.residual))
      return JacobianSpectrum(*law, grid, drawn, support, "dyson", FLOOR, residual)
  law = compare.atoms(np.exp(np.minimum(solved.logs, _LARGEST_LOG)), floor=FLOOR)
  return JacobianSpectrum(
    *law, *drawing(law), _ends(np.exp(law.log_values), FLOOR), "sampled", FLOOR, remark=solved.remark
  )


def _edges(layers: density.Stack, law: compare.Atoms, end: float) -> tuple[float, float]:
  """The support of a predicted density, whose grid ends at the singular value `end`."""
  least, middle, greatest = np.exp(compare.quantiles(law, np.array([_TAIL, 0.5, 1 - _TAIL])))
  try:
    greatest = density.upper_edge(_simplest(layers), max(middle, FLOOR) ** 2, end**2) ** 0.5
  except dyson.NotSolvedError:
    pass  # the smoothed density's own
  return float(least), float(greatest)


def _simplest(layers: density.Stack) -> density.Stack:
  """Layers with the same spectrum that cost less, where there are any."""
  return without_rotations(layers) if isinstance(layers, Layers) else layers


def _ends(values: np.ndarray, floor: float) -> tuple[float, float]:
  """The least and the greatest value above the floor; zeros without one."""
  alive = values[values > floor * (1 + 1e-9)]
  return (float(alive.min()), float(alive.max())) if alive.size else (0.0, 0.0)


def drawing(law: compare.Atoms, points: int = _POINTS) -> tuple[np.ndarray, np.ndarray]:
  """Singular values that cover the atoms, and the density of log s there, smoothed to a sixtieth of the range."""
  grid = np.linspace(law.log_values[0] - 0.1, law.log_values[-1] + 0.1, points)
  return np.exp(grid), compare.smoothed(law, grid, max(0.03, (grid[-1] - grid[0]) / 60))


def _layers(
  mixers: Mixer | Layers | Correlated | Real,
  sigma: Real | None,
  streams: int | None,
  depth: int | None,
  reads: Real | None,
  writes: Real | None,
  draw: str,
  seed: int,
  weights: Sequence[int] | None,
  similarity: float,
) -> density.Stack:
  given: dict[str, Any] = {"streams": streams, "depth": depth}
  if isinstance(mixers, Layers | Correlated):
    given |= {"sigma": sigma, "reads": reads, "writes": writes, "weights": weights}
    _refuse(given, "nothing beside layers, which say it already")
    return mixers
  if isinstance(mixers, Mixer):
    if streams is None or depth is None:
      raise UserError(f"streams={streams}, depth={depth}: expected both beside a mixer, such as streams=4, depth=12")
    mixers = mixer_stack(mixers, streams, depth, draw, seed)
  else:
    _refuse(given, "nothing: the mixers' shape (layers, streams, streams) says it")
  if sigma is None:
    raise UserError("sigma=None: expected the standard deviation of the layers' noise, such as 0.1")
  if (reads is None) != (writes is None):
    raise UserError("reads, writes: expected both, for the noise of a hyper-connection, or neither, for full noise")
  if weights is not None:
    covariance = tied_covariance(sigma, weights, similarity)
    everywhere = np.broadcast_to(np.eye(np.shape(mixers)[-1]), np.shape(mixers))  # full noise: a segment a stream
    return correlated_noise(
      mixers, everywhere if reads is None else reads, everywhere if writes is None else writes, covariance
    )
  if reads is None or writes is None:
    return full_noise(mixers, sigma)
  return block_noise(mixers, sigma, reads, writes)


def _refuse(given: dict[str, Any], expected: str) -> None:
  for name, value in given.items():
    if value is not None:
      raise UserError(f"{name}={value!r}: expected {expected}")


def mixer_stack(
  mixer: Mixer, streams: int, depth: int, draw: str = "random", seed: int = 0, strength: float = 4.0
) -> Float[np.ndarray, "depth n n"]:
  """Members of a family, float64: `init` = identity logits plus noise of standard deviation 0.02, `random` = its own
  law."""
  check_choice("draw", draw, DRAWS)
  check_seed("seed", seed)
  keys = jax.random.split(jax.random.key(seed), depth)
  if draw == "random":
    mixer.logit_shape(streams)  # raises where the family does not exist, before anything is traced
    make = lambda key: mixer.random(key, streams)  # noqa: E731
  else:
    logits = jnp.asarray(mixer.identity_logits(streams, strength), jnp.float32)
    make = lambda key: mixer.project(logits + 0.02 * jax.random.normal(key, logits.shape, jnp.float32), streams)  # noqa: E731
  return np.asarray(jax.jit(lambda keys: jax.lax.map(make, keys))(keys), np.float64)


@dataclasses.dataclass(frozen=True)
class Sampled:
  """Log singular values of sampled products of finite width, and why they were sampled."""

  logs: Float[np.ndarray, " values"]
  remark: str


def solve(
  stacks: Sequence[density.Stack], points: int = _POINTS, tick: Callable[[float], None] = lambda share: None
) -> density.Spectrum | Sampled:
  """The density of several stacks of one shape, averaged; a sample where the Dyson equation cannot be solved.

  Needs float64.
  """
  fewer = [_simplest(each) for each in stacks]
  try:
    _check_size(fewer[0])
    return density.spectrum(fewer, points, tick=tick)
  except dyson.NotSolvedError as error:
    reason = str(error)
  count, dimensions = len(stacks), sampled_size(stacks[0].streams)
  width = dimensions // stacks[0].streams

  def turn(done: int) -> Callable[[float], None]:
    return lambda share: tick((done + share) / count)

  logs = [_sample(each, width, seed, turn(seed)) for seed, each in enumerate(stacks)]
  products = f"{count} sampled product{'s' * (count > 1)} of {dimensions} dimensions"
  return Sampled(np.concatenate(logs), f"{reason}; the numbers are those of {products}")


def _check_size(layers: density.Stack) -> None:
  """Raises NotSolvedError where the equation would take more than minutes."""
  if isinstance(layers, Correlated):
    places = 2 * layers.depth * layers.reads.shape[2]
    if places > MOST_PLACES:
      raise dyson.NotSolvedError(f"{places} places of reads and writes, more than {MOST_PLACES}: not tried")
    return
  size = layers.depth * layers.streams**3
  if size > DEEPEST:
    raise dyson.NotSolvedError(
      f"depth · streams³ = {size:,} is more than {DEEPEST:,}: the Dyson equation was not tried"
    )


def _sample(layers: density.Stack, width: int, seed: int, tick: Callable[[float], None]) -> np.ndarray:
  """Log singular values of one product of finite width."""
  if isinstance(layers, Layers):
    return stable_product.log_singular_values(layers, width, seed, tick)
  values = monte_carlo.correlated_eigenvalues(layers, width, 1, jax.random.key(seed))
  return np.asarray(0.5 * np.log(np.maximum(np.ravel(values), np.finfo(np.float64).tiny)))


def sampled_size(streams: int) -> int:
  """Dimensions of a sampled product."""
  return streams * max(4, -(-_SAMPLED // streams))


def measure(
  function: Callable[..., Array] | measured.Operator,
  at: ArrayLike | None = None,
  *context: Any,
  exact_limit: int = 1200,
  steps: int = 96,
  probes: int = 2,
  key: Array | None = None,
) -> JacobianSpectrum:
  """The law of the singular values of a function's Jacobian at a point, over the directions of its input.

  function: (x, *context) -> array, any shapes, with `at` for x; context: pytrees of arrays that are not differentiated.
  Or a `measured.Operator`. Reverse mode is all that is asked of the function.
  exact_limit: a Jacobian of at most so many inputs is built and decomposed; memory and time grow with its square and
  cube. The law of a larger one is estimated by `probes` runs of `steps` steps of Golub-Kahan-Lanczos, which resolve
  singular values to 2/steps of the largest one. key: of the probes; a fixed one by default.

  Raises ValueError for a point that is not of real floating-point numbers, UserError where the Jacobian is not finite.
  Source: Golub, Kahan 1965; Ubaru, Chen, Saad 2017.

  >>> law = jp.spectral.measure(lambda x: jnp.array([3.0, 1.0]) * x, jnp.zeros(2))
  >>> law.source, law.support
  ('exact', (1.0, 3.0))
  """
  jacobian = function if isinstance(function, measured.Operator) else _operator(function, at, context)
  exact = jacobian.inputs <= exact_limit
  samples: list[tuple[np.ndarray, np.ndarray]] = []  # (values, weights), one a probe
  if exact:
    values = measured.singular_values(jacobian.products.function, jacobian.at, *jacobian.context)
    measured.check_finite(values)
    padded = np.zeros(jacobian.inputs)  # directions that the output has no room for
    padded[: len(values)] = values[: jacobian.inputs]
    samples.append((padded, np.ones_like(padded)))
  else:
    nodes, weights = measured.lanczos_quadrature(jacobian, jax.random.key(0) if key is None else key, steps, probes)
    samples += zip(np.sqrt(nodes), weights, strict=True)
  floor = float(np.max(samples[0][0])) * (_RESOLVED if exact else 2 / steps) or np.finfo(np.float32).tiny.item()
  law = _joined(samples, floor)
  chance = 0.5 * compare.w1(_joined(samples[::2], floor), _joined(samples[1::2] or samples, floor))
  source, ends = "exact" if exact else "lanczos", _ends(np.concatenate([values for values, _ in samples]), floor)
  return JacobianSpectrum(*law, *drawing(law), ends, source, floor, chance=chance)


def _operator(function: Callable[..., Array], at: Any, context: tuple[Any, ...]) -> measured.Operator:
  kind = jnp.result_type(at) if at is not None else None
  if kind is None or not jnp.issubdtype(kind, jnp.floating):
    raise ValueError(f"at: {kind or 'nothing'}; expected the point of the Jacobian, real floating-point numbers")
  return measured.operator(function, jnp.asarray(at), *context)


def _joined(samples: Sequence[tuple[np.ndarray, np.ndarray]], floor: float) -> compare.Atoms:
  values, weights = (np.concatenate(side) for side in zip(*samples, strict=True))
  return compare.atoms(values, weights, floor)
