"""Design rules: what a mixer, a depth, an activation and a weight scale do to the Jacobian, before anything is
trained."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpmhc_jax.core.errors import check_choice, UserError
from jpmhc_jax.core.files import to_json, write_atomically
from jpmhc_jax.mixers import parse
from jpmhc_jax.spectral import compare, correlated, density, jacobian, moments, propagation
from jpmhc_jax.spectral.correlated import Correlated
from jpmhc_jax.spectral.density import Stack
from jpmhc_jax.spectral.jacobian import FLOOR, mixer_stack
from jpmhc_jax.spectral.layers import Layers
from jpmhc_jax.spectral.stacks import labels, layer_stack, NOISES, recursion_stack

__all__ = [
  "Absent", "LARGEST", "Prediction", "Question", "Report", "Row", "SHARINGS", "Tick", "longest_seconds", "predict",
  "rows", "what_if",
]  # fmt: skip

SHARINGS = ("all", "per_call")  # of a recursion: are the mixers of a call those of all calls?
LARGEST = 2e7  # depth · streams³ up to which a row is worth waiting for
_LARGEST_LOG = 690.0  # what exp takes
_COMPILE_S, _SOLVE_S, _SAMPLE_S = 3.0, 0.035, 0.014  # CPU seconds, measured: see `longest_seconds`


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
  residual: float | None  # largest defect of the Dyson equation on the grid; None where it was not solved
  singular_values: tuple[float, ...]
  log_density: tuple[float, ...]
  remark: str = ""  # why the numbers are those of a sampled product of finite width, where they are
  coherence: float | None = None  # of repeated weights, see `correlated.coherence`; None where none repeats

  def cost(self) -> float:
    """What the recommendation minimises: lost directions first, then the spread and drift of what is left."""
    drift = abs(math.log(self.gradient_gain)) * self.depth if self.gradient_gain > 0 else math.inf
    return 4 * self.stalled + self.spread_log + drift


@dataclasses.dataclass(frozen=True)
class Absent:
  """A row without numbers: the family does not exist for so many streams, or its noise is not finite."""

  mixer: str
  depth: int
  reason: str


Row = Prediction | Absent
Tick = Callable[[str, float], None]  # (what is being done, share of all the work that is done)


@dataclasses.dataclass(frozen=True)
class Report:
  """Predictions for every mixer and depth asked for, and what they recommend."""

  predictions: tuple[Prediction, ...]
  threshold: float
  activation: str
  draw: str
  noise: str
  recommendation: str  # empty without predictions
  reason: str
  sigma_w_advice: float | None  # σ_w that keeps Σ σ_l² = 0.05 at the greatest depth; None where noise was measured
  absent: tuple[Absent, ...] = ()
  complete: bool = True  # False when the work was interrupted: rows are missing

  @classmethod
  def of(cls, rows: Sequence[Row], threshold: float, **about: Any) -> "Report":
    """The report on these rows; about: the fields that say what was asked for."""
    predictions = tuple(row for row in rows if isinstance(row, Prediction))
    best, reason = _recommended(predictions, threshold) if predictions else ("", "")
    absent = tuple(row for row in rows if isinstance(row, Absent))
    return cls(predictions, threshold, recommendation=best, reason=reason, absent=absent, **about)

  def save(self, path: pathlib.Path) -> None:
    """Writes everything, densities included, as JSON."""
    write_atomically(path, to_json(dataclasses.asdict(self), indent=1) + "\n")


def predict(
  name: str,
  layers: Stack | Sequence[Stack],
  sigma_w: float | None,
  threshold: float = 0.1,
  points: int = 160,
  tick: Callable[[float], None] = lambda share: None,
) -> Prediction:
  """Spectrum and gradient statistics of a given stack, or the average over several of one shape. Needs float64.

  Where the Dyson equation cannot be solved, as for products that span more than float64 resolves, or not within
  minutes, the numbers are those of one product of finite width a stack, sampled in logarithms, and `remark` says so.
  `name` and `sigma_w` are only carried along. tick: called now and then with the share of the work that is done; what
  it raises ends the work.
  """
  stacks = [layers] if isinstance(layers, Layers | Correlated) else list(layers)
  law = jacobian.solve(stacks, points, tick)
  values = _sampled(law, threshold, points) if isinstance(law, jacobian.Sampled) else _solved(law, threshold)
  growth = np.array([_log_first_moment(each) for each in stacks])
  noise = [_total_noise(each) for each in stacks]
  return Prediction(
    mixer=name,
    streams=stacks[0].streams,
    depth=stacks[0].depth,
    sigma_w=sigma_w,
    total_noise=float(np.mean(noise)),
    gradient_gain=float(np.exp((np.logaddexp.reduce(growth) - np.log(len(growth))) / (2 * stacks[0].depth))),
    **values,
  )


def longest_seconds(streams: int, depth: int, stacks: int = 1) -> float:
  """CPU time on a server's core that `predict` takes at most, roughly, for so many stacks of one shape.

  The Dyson equation takes it where every part of the grid needs all of its iterations, as for Sinkhorn mixers 60
  layers deep; most rows take a tenth. A sampled product takes about what this says.
  """
  size = depth * streams**3
  if size <= jacobian.DEEPEST:
    return _COMPILE_S + stacks * _SOLVE_S * size
  return stacks * _SAMPLE_S * depth * (jacobian.sampled_size(streams) / 96) ** 3  # measured at 96


def _solved(spectrum: density.Spectrum, threshold: float) -> dict[str, Any]:
  """Fields of a `Prediction` from the density that the Dyson equation gives."""
  statistics = density.statistics(spectrum, threshold)
  return {
    "condition": float(statistics.condition),
    "stalled": float(statistics.stalled),
    "mean_log": float(statistics.mean_log),
    "spread_log": float(statistics.spread_log),
    "dead": float(jnp.maximum(1 - statistics.mass, 0.0)),
    "residual": float(jnp.max(spectrum.residual)),
    "singular_values": tuple(np.sqrt(np.asarray(spectrum.x)).tolist()),
    "log_density": tuple((2 * np.asarray(spectrum.density)).tolist()),  # d log λ = 2 d log s
  }


def _sampled(sample: jacobian.Sampled, threshold: float, points: int) -> dict[str, Any]:
  """The same fields from sampled products."""
  logs = sample.logs
  alive = logs[logs > np.log(FLOOR)]
  shown = alive if alive.size else np.array([np.log(FLOOR)])
  law = compare.Atoms(np.sort(shown), np.full(shown.size, 1 / shown.size))
  low, high = compare.quantiles(law, np.array([0.01, 0.99]))
  grid = np.linspace(shown.min() - 0.5, min(shown.max() + 0.5, _LARGEST_LOG), points)
  bandwidth = max(0.05, 2 * float(grid[1] - grid[0]))
  return {
    "condition": float(np.exp(min(high - low, _LARGEST_LOG))),
    "stalled": float(np.mean(logs < np.log(threshold))),
    "mean_log": float(np.mean(shown)),
    "spread_log": float(np.std(shown)),
    "dead": 1 - alive.size / logs.size,
    "residual": None,
    "singular_values": tuple(np.exp(grid).tolist()),
    "log_density": tuple((compare.smoothed(law, grid, bandwidth) * alive.size / logs.size).tolist()),
    "remark": sample.remark,
  }


def _log_first_moment(layers: Stack) -> float:
  if isinstance(layers, Layers):
    return float(moments.log_first_moment(layers))
  return math.log(max(correlated.first_moment(layers), 1e-300))


def _total_noise(layers: Stack) -> float:
  """Σ_l of the mean square that a layer's noise gives to a unit vector."""
  if isinstance(layers, Layers):
    return float(jnp.sum(layers.variance * _trace(layers.read) * _trace(layers.write)))
  (reads,), (writes,) = layers.reads, layers.writes
  power = jnp.sum(reads**2, axis=(1, 2)) * jnp.sum(writes**2, axis=(1, 2))
  return float(jnp.sum(jnp.diagonal(layers.covariance) * power) / (layers.streams * reads.shape[1]))


def _trace(covariance: jax.Array) -> jax.Array:
  return jnp.trace(covariance, axis1=1, axis2=2) / covariance.shape[-1]


@dataclasses.dataclass(frozen=True)
class Question:
  """What `what_if` answers: which mixers, at which depths, with which noise. Raises UserError where no row could be
  predicted.

  calls, tied: of a recursion, that many calls of `depths` layers each; the noise of a layer at two calls has the
  correlation `tied`, which is 1 where the weights are the same and the sub-layers linear. sharing: 'all' repeats the
  mixers of a call too, 'per_call' draws others for every call.
  """

  mixers: Sequence[str] | Mapping[str, np.ndarray]
  streams: int = 4
  depths: Sequence[int] = (12,)
  activation: str = "gelu"
  sigma_w: float | None = None
  draw: str = "random"
  noise: str = "full"
  threshold: float = 0.1
  seed: int = 0
  points: int = 160
  calls: int = 1
  tied: float = 1.0
  sharing: str = "all"

  def __post_init__(self) -> None:
    if self.streams < 2 or not self.mixers or min(self.depths, default=0) < 1:
      raise UserError(
        f"streams={self.streams}, depths={list(self.depths)}, mixers={list(self.mixers)}: expected n >= 2, depths >= 1 "
        "and a mixer"
      )
    if self.calls < 1 or not 0 <= self.tied <= 1 or (self.calls > 1 and isinstance(self.mixers, Mapping)):
      raise UserError(
        f"calls={self.calls}, tied={self.tied}: expected calls >= 1, a similarity of calls from 0 to 1, and names of "
        "mixers, which are drawn for every call"
      )
    if self.calls * max(self.depths) * self.streams**3 > LARGEST:
      raise UserError(
        f"depth={max(self.depths)} of {self.streams} streams: expected depth · streams³ of at most {LARGEST:.0e}, a "
        f"depth of {int(LARGEST) // self.streams**3} here; a row of that takes hours"
      )
    check_choice("activation", self.activation, propagation.ACTIVATIONS)
    check_choice("draw", self.draw, jacobian.DRAWS)
    check_choice("noise", self.noise, NOISES)
    check_choice("sharing", self.sharing, SHARINGS)

  @functools.cached_property
  def advice(self) -> float:
    """The σ_w that keeps Σ σ_l² = 0.05 over isometric mixers at the greatest depth."""
    with jax.enable_x64(True):
      return propagation.isometric_sigma_w(self.activation, self.calls * max(self.depths))

  @property
  def jobs(self) -> list[tuple[str, int]]:
    """(mixer, depth) of every row, in order."""
    if isinstance(self.mixers, Mapping):
      return [(name, len(stack)) for name, stack in self.mixers.items()]
    return [(name, self.calls * depth) for name in self.mixers for depth in self.depths]

  def rows(self, tick: Tick = lambda what, share: None) -> Iterator[Row]:
    """Every mixer at every depth in turn; see `rows`."""
    scale = self.advice if self.sigma_w is None else self.sigma_w

    def make(name: str, depth: int) -> Stack:
      if isinstance(self.mixers, Mapping):
        return layer_stack(np.asarray(self.mixers[name], np.float64), self.activation, scale, self.noise)
      repeats = self.calls if self.sharing == "all" else 1
      drawn = mixer_stack(parse(name), self.streams, depth // repeats, self.draw, self.seed)
      mixers = np.tile(drawn, (repeats, 1, 1))
      if self.calls == 1:
        return layer_stack(mixers, self.activation, scale, self.noise)
      return recursion_stack(mixers, self.activation, scale, self.noise, self.calls, self.tied)

    return rows(self.jobs, make, scale, self.threshold, self.points, tick, self.calls)

  def report(self, rows: Sequence[Row]) -> Report:
    """The report on these rows, which are all or those that were done when the work was interrupted."""
    return Report.of(
      rows,
      self.threshold,
      activation=self.activation,
      draw=self.draw,
      noise=self.noise,
      sigma_w_advice=self.advice,
      complete=len(rows) == len(self.jobs),
    )


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

  Raises UserError for a question that no row answers, ConfigError for unknown words.

  >>> report = jp.spectral.what_if({"plain": np.eye(2)[None]}, streams=2, sigma_w=0.2, activation="linear", points=96)
  >>> round(report.predictions[0].gradient_gain, 2)
  1.02
  """
  question = Question(mixers, streams, depths, activation, sigma_w, draw, noise, threshold, seed, points)
  return question.report(list(question.rows()))


def rows(
  jobs: Sequence[tuple[str, int]],
  make: Callable[[str, int], Stack | Sequence[Stack]],
  sigma_w: float | None,
  threshold: float = 0.1,
  points: int = 160,
  tick: Tick = lambda what, share: None,
  calls: int = 1,
) -> Iterator[Row]:
  """A row a (name, depth), as it is done; one whose layers `make` refuses with a UserError is `Absent`.

  make: the layers, or several stacks of one shape whose spectra are averaged; called with float64 enabled.
  calls: of the weights that all of these layers apply again and again, 1 where none repeats.
  tick: called now and then, and may raise to end the work. The cost of a row is about proportional to its depth.
  """
  total, before = sum(depth for _, depth in jobs), 0
  for name, depth in jobs:

    def report(share: float, what: str = f"{name}, depth {depth}", before: int = before, depth: int = depth) -> None:
      tick(what, (before + depth * share) / total)

    report(0.0)
    row: Row
    try:
      with jax.enable_x64(True):
        layers = make(name, depth)
        row = predict(name, layers, sigma_w, threshold, points, report)
        if calls > 1 and isinstance(layers, Correlated):
          row = dataclasses.replace(row, coherence=correlated.coherence(layers, labels(calls, depth)))
    except UserError as error:
      row = Absent(name, depth, str(error))
    before += depth
    yield row


def _recommended(predictions: Sequence[Prediction], threshold: float) -> tuple[str, str]:
  """The mixer with the lowest total cost over the depths, and the numbers that decided; '' where nothing was compared.

  Identity is never recommended: its spectrum is tame because it mixes nothing; it is what the others are compared with.
  """
  total: dict[str, float] = {}
  for row in predictions:
    total[row.mixer] = total.get(row.mixer, 0.0) + row.cost()
  mixing = [name for name in total if name != "identity"]
  if len(mixing) < 2:
    return "", "it takes two or more mixers beside identity, which mixes nothing: --mixer=sinkhorn,cayley"
  best = min(mixing, key=total.__getitem__)
  deep = max((row for row in predictions if row.mixer == best), key=lambda row: row.depth)
  reason = (
    f"at depth {deep.depth} {deep.stalled:.1%} of its singular values are under {threshold:g}, their logs spread by "
    f"{deep.spread_log:.2f}, and a layer changes the gradient norm by a factor {deep.gradient_gain:.4f}"
  )
  rivals = sorted((cost, name) for name, cost in total.items() if name in mixing and name != best)
  if rivals and rivals[0][0] < 1.1 * total[best] + 0.02:
    reason += f"; {rivals[0][1]} is as good within 10 %"
  return best, reason
