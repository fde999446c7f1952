"""Lines of a chart: what is drawn of them, their running mean, and whether they are one constant up to rounding."""

from collections.abc import Sequence
import dataclasses
import math

from jaxtyping import Float, Int
import numpy as np

POINTS = 1200  # drawn on one chart, shared by its lines
SHORT = 40  # points from which on a running mean says more than the points
SPAN = 1 / 20  # of the axis: half the window of a running mean


@dataclasses.dataclass(frozen=True)
class Line:
  """One curve. `low` and `high` draw a band around it.

  smooth: where a line of the chart is noisy, its running mean is drawn and the raw curve faded. mean: that mean, which
  `smoothed` fills in.
  """

  label: str
  xs: Float[np.ndarray, " points"]
  ys: Float[np.ndarray, " points"]
  colour: int = 0
  dash: int = 0
  smooth: bool = False
  low: Float[np.ndarray, " points"] | None = None
  high: Float[np.ndarray, " points"] | None = None
  mean: Float[np.ndarray, " points"] | None = None


def smoothed(lines: Sequence[Line]) -> tuple[list[Line], float]:
  """The lines, all that ask for it with their means over one and the same stretch of the axis; that stretch to a side.

  0 where nothing is noisy, or where no line is long enough.
  """
  eligible = [line for line in lines if line.smooth and len(line.xs) >= SHORT]
  if not any(is_noisy(line.ys) for line in eligible):
    return list(lines), 0.0
  span = SPAN * max(float(np.ptp(line.xs)) for line in eligible)
  means = {id(line): running_mean(line.ys, _points(line.xs, span)) for line in eligible}
  return [dataclasses.replace(line, mean=means.get(id(line))) for line in lines], span


def _points(xs: Float[np.ndarray, " points"], span: float) -> int:
  """Points of a line that lie within `span`."""
  return max(2, round(span / max(float(np.median(np.diff(np.sort(xs)))), 1e-300)))


def running_mean(values: Float[np.ndarray, " points"], span: int) -> Float[np.ndarray, " points"]:
  """Centred mean with triangular weights over 2 span - 1 points, so it does not lag; gaps (NaN) stay gaps.

  Near the ends, and beside gaps, the weights that are left are renormalised.
  """
  weights = span - np.abs(np.arange(1.0 - span, span))
  known = np.isfinite(values)
  total = np.convolve(np.where(known, values, 0.0), weights)[span - 1 :][: len(values)]
  weight = np.convolve(known.astype(np.float64), weights)[span - 1 :][: len(values)]
  return np.where(known, total / np.where(known, weight, 1.0), np.nan)


def is_noisy(ys: Float[np.ndarray, " points"]) -> bool:
  """True when a curve goes up and down so much that a running mean says more than it hides."""
  finite = ys[np.isfinite(ys)]
  return finite.size > 1 and bool(np.abs(np.diff(finite)).sum() > 2.5 * np.ptp(finite))


def thinned(lines: Sequence[Line]) -> list[Line]:
  """The lines in order of x, those with more points than the chart has room for without some of them."""
  points = max(60, POINTS // max(len(lines), 1))
  return [_thinned(line, points) for line in lines]


def _thinned(line: Line, points: int) -> Line:
  order = np.argsort(line.xs, kind="stable")
  chosen = order if len(order) <= points else order[_extremes(line.ys[order], points // 2)]
  low, high, mean = (None if part is None else part[chosen] for part in (line.low, line.high, line.mean))
  return dataclasses.replace(line, xs=line.xs[chosen], ys=line.ys[chosen], low=low, high=high, mean=mean)


def _extremes(values: Float[np.ndarray, " points"], buckets: int) -> Int[np.ndarray, " indices"]:
  """Indices of the smallest and largest value of every bucket, first and last included: spikes survive the thinning."""
  edges = np.linspace(0, len(values), buckets + 1).astype(int)
  indices = {0, len(values) - 1}
  for start, stop in zip(edges[:-1], edges[1:], strict=True):
    part = values[start:stop]
    indices |= {start + int(np.where(np.isnan(part), np.inf, part).argmin())}
    indices |= {start + int(np.where(np.isnan(part), -np.inf, part).argmax())}
  return np.array(sorted(indices))


def finite_values(lines: Sequence[Line]) -> Float[np.ndarray, " values"]:
  """All finite values of all lines."""
  return np.concatenate([line.ys[np.isfinite(line.ys)] for line in lines] or [np.zeros(0)])


def constant(lines: Sequence[Line], tolerance: float | None) -> str | None:
  """'1 to 6e-7' where all values of all lines are one up to `tolerance`; None where they are not.

  tolerance: None is a millionth of the value. Fewer than three values are no constant.

  >>> constant([Line("a", np.arange(3.0), np.array([1.0, 1.0 + 6e-7, 1.0]))], 1e-5)
  '1 to 6e-7'
  """
  values = finite_values(lines)
  if values.size < 3 or values.size < sum(line.ys.size for line in lines):
    return None
  middle = float(values.max() + values.min()) / 2
  allowed = abs(middle) * 1e-6 if tolerance is None else tolerance
  if np.ptp(values) > 2 * allowed:
    return None
  # Rounded to the tolerance, the value reads as what it would be without rounding.
  value = round(middle, -math.floor(math.log10(allowed))) if allowed else middle
  off = float(np.abs(values - value).max())
  shown = f"{value + 0.0:.6g}"
  return shown if off <= 1e-9 * max(abs(value), 1e-9) else f"{shown} to {off:.0e}".replace("e-0", "e-")
