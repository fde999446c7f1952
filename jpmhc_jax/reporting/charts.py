"""Line charts as inline SVG: axes, legend, gaps where a value is not finite, and the numbers for the page's cursor.

The drawing is complete without JavaScript; the script only adds a cursor that reads values off (pointer or arrow keys).
"""

from collections.abc import Sequence
import dataclasses
import math

from jaxtyping import Float, Int
import numpy as np

from jpmhc_jax.reporting import markup
from jpmhc_jax.reporting.markup import Markup, tag

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 8, 34
COLOURS = 8  # page.css defines --line-0 .. --line-7
DASHES = ("", "5 3", "1.5 2.5", "8 3 2 3")
POINTS = 1200  # drawn on one chart, shared by its lines
TABLE_ROWS = 10


@dataclasses.dataclass(frozen=True)
class Line:
  """One curve. `low` and `high` draw a band around it; `smooth` adds a running mean and fades the raw curve."""

  label: str
  xs: Float[np.ndarray, " points"]
  ys: Float[np.ndarray, " points"]
  colour: int = 0
  dash: int = 0
  smooth: bool = False
  low: Float[np.ndarray, " points"] | None = None
  high: Float[np.ndarray, " points"] | None = None


@dataclasses.dataclass(frozen=True)
class _Scale:
  """Maps data to the SVG's units; `log` takes log10 first."""

  low: float
  high: float
  start: int | float
  end: int | float
  log: bool = False

  def __call__(self, value: int | float) -> float:
    low, high, v = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
    return round(self.start + (v - low) / (high - low) * (self.end - self.start), 1)


def chart(
  title: str, lines: Sequence[Line], x_label: str, percent: bool = False, log_x: bool = False, linear_y: bool = False
) -> Markup:
  """A figure with one chart, or with a remark when no line has a finite value. Lines longer than needed are thinned."""
  lines = [_thin(line, max(60, POINTS // max(len(lines), 1))) for line in lines]
  finite = np.concatenate([line.ys[np.isfinite(line.ys)] for line in lines] or [np.zeros(0)])
  if not finite.size:
    empty = markup.note("Nothing finite was recorded." if lines else "Nothing was recorded.")
    return tag("figure", tag("figcaption", title), empty, class_="chart")
  xs = np.concatenate([line.xs for line in lines])
  x_scale = _Scale(*_x_range(xs, log_x), LEFT, WIDTH - RIGHT, log_x)
  log_y = not linear_y and bool(finite.min() > 0 and finite.max() / finite.min() > 100)
  low, high = _y_range(lines, finite, log_y)
  high = min(high, 1.0) if percent and finite.max() <= 1 else high  # no room above 100 %
  y_scale = _Scale(low, high, HEIGHT - BOTTOM, TOP, log_y)
  drawing = tag(
    "svg",
    tag("title", _summary(title, lines, x_label, percent)),
    _axes(x_scale, y_scale, x_label, percent, whole=bool((xs == np.round(xs)).all())),
    *(_curve(line, x_scale, y_scale) for line in lines),
    tag("g", class_="cursor"),
    viewBox=f"0 0 {WIDTH} {HEIGHT}",
    role="img",
  )
  plot = tag(
    "div", drawing, tag("div", class_="tip", role="status"), _numbers_for_cursor(lines, x_scale, y_scale, percent),
    class_="plot", tabindex="0", role="group", aria_label=f"{title}: left and right arrow keys read the values",
  )  # fmt: skip
  numbers = _table(title, lines, x_label, percent)
  return tag("figure", tag("figcaption", title), _legend(lines), plot, numbers, class_="chart")


def nice_ticks(low: float, high: float, target: int = 5) -> list[float]:
  """Round values (1, 2 or 5 times a power of ten apart) inside [low, high], about `target` of them.

  >>> nice_ticks(0.0, 1.0)
  [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
  """
  raw = (high - low) / target
  power = 10.0 ** math.floor(math.log10(raw))
  step = power * min((1, 2, 5, 10), key=lambda m: abs(m * power - raw))
  first = math.ceil(low / step - 1e-9)
  count = math.floor(high / step + 1e-9) - first + 1
  digits = max(0, -math.floor(math.log10(step)))
  return [round((first + i) * step, digits) + 0.0 for i in range(count)]


def running_mean(values: Float[np.ndarray, " points"], span: int) -> Float[np.ndarray, " points"]:
  """Centred mean with triangular weights over 2 span - 1 points, so it does not lag; gaps (NaN) stay gaps.

  Near the ends, and beside gaps, the weights that are left are renormalised.
  """
  weights = span - np.abs(np.arange(1.0 - span, span))
  known = np.isfinite(values)
  total = np.convolve(np.where(known, values, 0.0), weights)[span - 1 :][: len(values)]
  weight = np.convolve(known.astype(np.float64), weights)[span - 1 :][: len(values)]
  return np.where(known, total / np.where(known, weight, 1.0), np.nan)


def _thin(line: Line, points: int) -> Line:
  order = np.argsort(line.xs, kind="stable")
  chosen = order if len(order) <= points else order[_extremes(line.ys[order], points // 2)]
  low, high = (None if band is None else band[chosen] for band in (line.low, line.high))
  return dataclasses.replace(line, xs=line.xs[chosen], ys=line.ys[chosen], low=low, high=high)


def _extremes(values: Float[np.ndarray, " points"], buckets: int) -> Int[np.ndarray, " indices"]:
  """Indices of the smallest and largest value of every bucket, first and last included: spikes survive the thinning."""
  edges = np.linspace(0, len(values), buckets + 1).astype(int)
  indices = {0, len(values) - 1}
  for start, stop in zip(edges[:-1], edges[1:], strict=True):
    part = values[start:stop]
    indices |= {start + int(np.where(np.isnan(part), np.inf, part).argmin())}
    indices |= {start + int(np.where(np.isnan(part), -np.inf, part).argmax())}
  return np.array(sorted(indices))


def _x_range(xs: Float[np.ndarray, " points"], log: bool) -> tuple[float, float]:
  low, high = float(xs.min()), float(xs.max())
  return (low, high) if high > low else (low * 0.5, low * 2.0) if log else (low - 0.5, high + 0.5)


def _y_range(lines: Sequence[Line], finite: Float[np.ndarray, " points"], log: bool) -> tuple[float, float]:
  bands = [band[np.isfinite(band)] for line in lines for band in (line.low, line.high) if band is not None]
  values = np.concatenate([finite, *bands])
  low, high = float(values.min()), float(values.max())
  if log:
    return max(low, float(finite.min()) / 10) * 0.9, high * 1.1
  if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
    margin = abs(high) / 10 or 1.0
    return (low - margin if low else 0.0), high + margin
  margin = (high - low) * 0.05
  return (0.0 if low >= 0 and low - margin < 0 else low - margin), high + margin


def _ticks(scale: _Scale, whole: bool = False) -> list[float]:
  if not scale.log:
    ticks = nice_ticks(scale.low, scale.high)
    counted = [t for t in ticks if t == int(t)]  # steps and depths are counted: no tick at 1.5 connections
    return counted if whole and counted else ticks
  powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
  step = max(1, len(powers) // 6)
  decades = [10.0**p for p in powers[::step] if scale.low <= 10.0**p <= scale.high]
  return decades if len(decades) >= 2 else [t for t in nice_ticks(scale.low, scale.high) if t > 0]


def _axes(x_scale: _Scale, y_scale: _Scale, x_label: str, percent: bool, whole: bool) -> Markup:
  parts = []
  for value in _ticks(y_scale):
    y = y_scale(value)
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="rule"))
    parts.append(tag("text", tick_label(100 * value if percent else value), x=LEFT - 6, y=y + 4, text_anchor="end"))
  for value in _ticks(x_scale, whole):
    parts.append(tag("text", tick_label(value), x=x_scale(value), y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
  middle = (LEFT + WIDTH - RIGHT) / 2
  scale_note = " · log scale" if y_scale.log else ""
  unit = " · y in %" if percent else ""
  parts.append(tag("text", f"{x_label}{unit}{scale_note}", x=middle, y=HEIGHT - 3, text_anchor="middle", class_="axis"))
  base = HEIGHT - BOTTOM
  parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="base"))
  return tag("g", *parts, class_="axes", aria_hidden="true")


def tick_label(value: int | float) -> str:
  """Short axis label: `12000 -> 12k`, `0.25 -> 0.25`, `1e-06 -> 1e-6`."""
  size = abs(value)
  for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
    if limit <= size < 1e15:
      return f"{value / (1e3 if suffix == 'k' else limit):g}{suffix}"
  short = f"{size:.6g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
  return f"\N{MINUS SIGN}{short}" if value < 0 else short


def _curve(line: Line, x_scale: _Scale, y_scale: _Scale) -> Markup:
  style = f"--c:var(--line-{line.colour % COLOURS})"
  dash = DASHES[line.dash % len(DASHES)] or None
  parts = [tag("title", line.label)]
  if line.low is not None and line.high is not None:
    parts.append(tag("path", d=_band(line.xs, line.low, line.high, x_scale, y_scale), class_="band"))
  smooth = line.smooth and len(line.xs) >= 40 and _is_noisy(line.ys)
  class_ = "raw" if smooth else "line"
  parts.append(tag("path", d=_path(line.xs, line.ys, x_scale, y_scale), class_=class_, stroke_dasharray=dash))
  if smooth:
    mean = running_mean(line.ys, max(2, len(line.ys) // 20))
    parts.append(tag("path", d=_path(line.xs, mean, x_scale, y_scale), class_="line", stroke_dasharray=dash))
  drawable = _drawable(line.ys, y_scale)
  if drawable.sum() <= 16:
    dots = zip(line.xs[drawable], line.ys[drawable], strict=True)
    parts.extend(tag("circle", cx=x_scale(x), cy=y_scale(y), r=2.4) for x, y in dots)
  return tag("g", *parts, class_="curve", style=style)


def _is_noisy(ys: Float[np.ndarray, " points"]) -> bool:
  """True when a curve goes up and down so much that a running mean says more than it hides."""
  finite = ys[np.isfinite(ys)]
  return finite.size > 1 and bool(np.abs(np.diff(finite)).sum() > 2.5 * np.ptp(finite))


def _drawable(ys: Float[np.ndarray, " points"], y_scale: _Scale) -> np.ndarray:
  return np.isfinite(ys) & (ys > 0 if y_scale.log else True)


def _path(xs: Float[np.ndarray, " points"], ys: Float[np.ndarray, " points"], x_scale: _Scale, y_scale: _Scale) -> str:
  parts, pen = [], "M"
  for x, y, draw in zip(xs, ys, _drawable(ys, y_scale), strict=True):
    if draw:
      parts.append(f"{pen}{x_scale(float(x)):g} {y_scale(float(y)):g}")
    pen = "L" if draw else "M"
  return "".join(parts)


def _band(
  xs: Float[np.ndarray, " points"],
  low: Float[np.ndarray, " points"],
  high: Float[np.ndarray, " points"],
  x_scale: _Scale,
  y_scale: _Scale,
) -> str:
  keep = _drawable(high, y_scale) & np.isfinite(low)
  floor = np.maximum(low[keep], y_scale.low)  # a band that reaches below a log axis is cut there
  corners = [*zip(xs[keep], high[keep], strict=True), *zip(xs[keep][::-1], floor[::-1], strict=True)]
  return "M" + "L".join(f"{x_scale(float(x)):g} {y_scale(float(y)):g}" for x, y in corners) + "Z" if corners else ""


def _legend(lines: Sequence[Line]) -> Markup | None:
  if len(lines) < 2:
    return None
  items = []
  for line in lines:
    dash = DASHES[line.dash % len(DASHES)] or None
    stroke = tag("line", x1=1, x2=21, y1=5, y2=5, class_="line", stroke_dasharray=dash)
    colour = f"--c:var(--line-{line.colour % COLOURS})"
    swatch = tag("svg", stroke, viewBox="0 0 22 10", aria_hidden="true", style=colour)
    items.append(tag("li", swatch, tag("span", line.label)))
  return tag("ul", *items, class_="legend")


def _summary(title: str, lines: Sequence[Line], x_label: str, percent: bool) -> str:
  parts = [f"{title} against {x_label}."]
  for line in lines[:8]:
    keep = np.isfinite(line.ys)
    if keep.any():
      first, last = (markup.format_number(float(line.ys[keep][i]), percent) for i in (0, -1))
      parts.append(f"{line.label}: from {first} to {last}." if keep.sum() > 1 else f"{line.label}: {first}, one point.")
  return " ".join(parts) + (f" {len(lines) - 8} more lines." if len(lines) > 8 else "")


def _numbers_for_cursor(lines: Sequence[Line], x_scale: _Scale, y_scale: _Scale, percent: bool) -> Markup:
  data = []
  for line in lines:
    keep = _drawable(line.ys, y_scale)
    points = [
      [x_scale(float(x)), y_scale(float(y)), float(f"{x:.6g}"), float(f"{y:.5g}")]
      for x, y in zip(line.xs[keep], line.ys[keep], strict=True)
    ]
    data.append({"label": line.label, "colour": line.colour % COLOURS, "points": points})
  return markup.embed_json({"percent": percent, "top": TOP, "bottom": HEIGHT - BOTTOM, "lines": data})


def _table(title: str, lines: Sequence[Line], x_label: str, percent: bool) -> Markup:
  """The chart as numbers, for readers who cannot use the picture; long curves are sampled evenly, ends included."""
  xs = np.unique(np.concatenate([line.xs for line in lines]))
  chosen = xs[np.unique(np.linspace(0, len(xs) - 1, min(len(xs), TABLE_ROWS)).astype(int))]
  lookups = [dict(zip(line.xs.tolist(), line.ys.tolist(), strict=True)) for line in lines]
  rows = [[markup.number(x), *(markup.number(values.get(x), percent) for values in lookups)] for x in chosen.tolist()]
  header = [x_label, *(line.label for line in lines)]
  numbers = markup.table(f"{title}: sampled values", header, rows)
  return tag("details", tag("summary", "Numbers"), numbers)
