"""Line charts as inline SVG: axes, legend, gaps where a value is not finite, and the numbers for the page's script.

A `Chart` says what is drawn; `draw` makes HTML of it, `figures.draw` a figure for print. The drawing is complete
without JavaScript; the script adds a cursor, zoom, a switch to the other scale, lines to hide, and downloads.
"""

from collections.abc import Sequence
import dataclasses
import math

from jaxtyping import Float
import numpy as np

from jpmhc_jax.reporting import markup
from jpmhc_jax.reporting.lines import constant, finite_values, Line, smoothed, thinned
from jpmhc_jax.reporting.markup import join, Markup, tag
from jpmhc_jax.reporting.scales import Scale, tick_label, x_range, y_range

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 20, 34
COLOURS = 8  # page.css defines --line-0 .. --line-7
DASHES = ("", "5 3", "1.5 2.5", "8 3 2 3")
TABLE_ROWS = 10
DECADES = 100.0  # from this ratio of the largest and the smallest value on, an axis is logarithmic


@dataclasses.dataclass(frozen=True)
class Chart:
  """What a chart shows.

  about: a sentence for readers who do not know the quantity. better: which way is good, in words, or nothing.
  linear_y: no logarithmic axis, whatever the values. dots: points without lines between them. tolerance: see
  `lines.constant`.
  """

  title: str
  lines: Sequence[Line]
  x_label: str = "step"
  about: str = ""
  better: str = ""
  percent: bool = False
  log_x: bool = False
  linear_y: bool = False
  dots: bool = False
  tolerance: float | None = None

  @property
  def log_y(self) -> bool:
    """Whether the values span more than `DECADES` and are all positive."""
    values = finite_values(self.lines)
    return not self.linear_y and bool(values.size and values.min() > 0 and values.max() / values.min() > DECADES)

  @property
  def constant(self) -> str | None:
    """'1 to 6e-7' where all values are one up to rounding; None where they are not."""
    return constant(self.lines, self.tolerance)

  @property
  def counted(self) -> bool:
    """Whether x counts something, so that only whole numbers stand on its axis."""
    return self.dots or all(bool((line.xs == np.round(line.xs)).all()) for line in self.lines)

  @property
  def unit(self) -> str:
    """Of the y axis: '%', or what the title has in parentheses."""
    return "%" if self.percent else self.title[:-1].rpartition("(")[2] if self.title.endswith(")") else ""


def gallery(charts: Sequence[Chart], first: int = 6) -> Markup | None:
  """The charts side by side, those after the `first` folded; what is constant up to rounding is said, not drawn."""
  constants = {chart.title: chart for chart in charts if chart.constant}
  shown = [chart for chart in charts if chart.title not in constants]
  parts = [tag("div", *map(draw, shown[:first]), class_="charts")] if shown else []
  if constants:
    words = join(tag("li", tag("strong", c.title), f": {c.constant}", title=c.about) for c in constants.values())
    parts.append(tag("div", "Constant throughout: ", tag("ul", words), class_="constants"))
  if rest := shown[first:]:
    names = f"{len(rest)} more chart{'s' * (len(rest) > 1)}: {', '.join(chart.title for chart in rest)}"
    parts.append(tag("details", tag("summary", names), tag("div", *map(draw, rest), class_="charts"), class_="more"))
  return join(parts) if parts else None


def chart(
  title: str, lines: Sequence[Line], x_label: str, percent: bool = False, log_x: bool = False, linear_y: bool = False
) -> Markup:
  """`draw` of a chart without words."""
  return draw(Chart(title, lines, x_label, percent=percent, log_x=log_x, linear_y=linear_y))


def draw(chart: Chart) -> Markup:
  """A figure with one chart, or with a remark when no line has a finite value. Lines longer than needed are thinned."""
  finite = finite_values(chart.lines)
  head = tag("figcaption", chart.title, _direction(chart.better))
  if not finite.size:
    empty = markup.note("Nothing finite was recorded." if chart.lines else "Nothing was recorded.")
    return tag("figure", head, empty, class_="chart")
  averaged, span = smoothed(chart.lines)
  lines = thinned(averaged)
  x_scale, y_scale = _scales(chart, lines)
  drawing = tag(
    "svg",
    tag("title", _summary(chart, lines)),
    _axes(chart, x_scale, y_scale),
    *(_curve(line, x_scale, y_scale, chart.dots) for line in lines),
    tag("g", class_="cursor"),
    viewBox=f"0 0 {WIDTH} {HEIGHT}",
    role="img",
  )
  plot = tag(
    "div", drawing, tag("div", class_="tip", role="status"), _numbers_for_script(chart, lines),
    class_="plot", data_log="true" if y_scale.log else "false", tabindex="0", role="group",
    aria_label=f"{chart.title}: left and right arrow keys read the values, + and − zoom, 0 shows all",
  )  # fmt: skip
  words = " ".join(filter(None, (chart.about, _means(chart, span), _omissions(chart.lines, lines))))
  about = tag("p", words, class_="about") if words else None
  return tag("figure", head, about, _legend(lines), plot, _table(chart, lines), class_="chart")


def _scales(chart: Chart, lines: Sequence[Line]) -> tuple[Scale, Scale]:
  finite = finite_values(lines)
  xs = np.concatenate([line.xs for line in lines])
  bands = [band[np.isfinite(band)] for line in lines for band in (line.low, line.high) if band is not None]
  low, high = y_range(np.concatenate([finite, *bands]), float(finite.min()), chart.log_y)
  high = min(high, 1.0) if chart.percent and finite.max() <= 1 else high  # no room above 100 %
  ends = (float(xs.min()) - 0.5, float(xs.max()) + 0.5) if chart.dots else x_range(xs, chart.log_x)
  x_scale = Scale(*ends, LEFT, WIDTH - RIGHT, chart.log_x)
  return x_scale, Scale(low, high, HEIGHT - BOTTOM, TOP, chart.log_y)


def _direction(better: str) -> Markup | None:
  if not better:
    return None
  return tag("small", f"{'↑' if better.startswith('higher') else '↓'} {better}", class_="direction")


def _means(chart: Chart, span: float) -> str:
  unit = "steps" if chart.x_label == "step" else chart.x_label.partition(",")[0]
  return f"Bold: running mean over ±{float(f'{span:.2g}'):g} {unit}." if span else ""


def _omissions(lines: Sequence[Line], drawn: Sequence[Line]) -> str:
  points, shown = (sum(len(line.xs) for line in each) for each in (lines, drawn))
  return f"{shown} of {points} points are drawn." if shown < points else ""


def _axes(chart: Chart, x_scale: Scale, y_scale: Scale) -> Markup:
  """Rules and labels; each axis carries what it shows: the unit above y, the quantity below x."""
  parts = []
  for value in y_scale.ticks():
    y = y_scale(value)
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="rule"))
    shown = tick_label(float(f"{100 * value:.10g}") if chart.percent else value)
    parts.append(tag("text", shown, x=LEFT - 6, y=y + 4, text_anchor="end"))
  for value in x_scale.ticks(chart.counted):
    parts.append(tag("text", tick_label(value), x=x_scale(value), y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
  y_label = " · ".join(filter(None, (chart.unit, "log scale" if y_scale.log else "")))
  if y_label:
    parts.append(tag("text", y_label, x=4, y=11, class_="axis"))
  x_label = f"{chart.x_label} · log scale" if x_scale.log else chart.x_label
  parts.append(tag("text", x_label, x=WIDTH - RIGHT, y=HEIGHT - 3, text_anchor="end", class_="axis"))
  base = HEIGHT - BOTTOM
  parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="base"))
  return tag("g", *parts, class_="axes", aria_hidden="true")


def _curve(line: Line, x_scale: Scale, y_scale: Scale, dots: bool) -> Markup:
  dash = DASHES[line.dash % len(DASHES)] or None
  parts = [tag("title", line.label)]
  if line.low is not None and line.high is not None:
    parts.append(tag("path", d=_band(line, x_scale, y_scale), class_="band"))
  class_ = "line" if line.mean is None else "raw"
  if not dots:
    parts.append(tag("path", d=_path(line.xs, line.ys, x_scale, y_scale), class_=class_, stroke_dasharray=dash))
  if line.mean is not None:
    parts.append(tag("path", d=_path(line.xs, line.mean, x_scale, y_scale), class_="line", stroke_dasharray=dash))
  drawable = _drawable(line.ys, y_scale)
  if dots or drawable.sum() <= 16:
    places = zip(line.xs[drawable], line.ys[drawable], strict=True)
    parts.extend(tag("circle", cx=x_scale(x), cy=y_scale(y), r=3.5 if dots else 2.4) for x, y in places)
  return tag("g", *parts, class_="curve", style=f"--c:var(--line-{line.colour % COLOURS})")


def _drawable(ys: Float[np.ndarray, " points"], y_scale: Scale) -> np.ndarray:
  return np.isfinite(ys) & (ys > 0 if y_scale.log else True)


def _path(xs: Float[np.ndarray, " points"], ys: Float[np.ndarray, " points"], x_scale: Scale, y_scale: Scale) -> str:
  parts, pen = [], "M"
  for x, y, shown in zip(xs, ys, _drawable(ys, y_scale), strict=True):
    if shown:
      parts.append(f"{pen}{x_scale(float(x)):g} {y_scale(float(y)):g}")
    pen = "L" if shown else "M"
  return "".join(parts)


def _band(line: Line, x_scale: Scale, y_scale: Scale) -> str:
  low, high = np.asarray(line.low), np.asarray(line.high)
  keep = _drawable(high, y_scale) & np.isfinite(low)
  floor = np.maximum(low[keep], y_scale.low)  # a band that reaches below a log axis is cut there
  xs = line.xs[keep]
  corners = [*zip(xs, high[keep], strict=True), *zip(xs[::-1], floor[::-1], strict=True)]
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
  return tag("ul", *items, class_="legend", tabindex="0" if len(lines) > 12 else None)


def _summary(chart: Chart, lines: Sequence[Line]) -> str:
  parts = [f"{chart.title} against {chart.x_label}."]
  for line in lines[:8]:
    keep = np.isfinite(line.ys)
    if keep.any():
      first, last = (markup.format_number(float(line.ys[keep][i]), chart.percent) for i in (0, -1))
      parts.append(f"{line.label}: from {first} to {last}." if keep.sum() > 1 else f"{line.label}: {first}, one point.")
  return " ".join(parts) + (f" {len(lines) - 8} more lines." if len(lines) > 8 else "")


def _numbers_for_script(chart: Chart, lines: Sequence[Line]) -> Markup:
  """What the page's script needs to draw the chart again: geometry, labels and the points in units of the data."""
  look = {
    "title": chart.title, "x": chart.x_label, "unit": chart.unit, "percent": chart.percent, "whole": chart.counted,
    "logX": chart.log_x, "logY": chart.log_y, "dots": chart.dots, "box": [LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM],
  }  # fmt: skip
  return markup.embed_json(look | {"lines": [_columns(line) for line in lines]})


def _columns(line: Line) -> dict[str, object]:
  columns = {"x": line.xs, "y": line.ys, "mean": line.mean, "low": line.low, "high": line.high}
  numbers = {name: _rounded(column, 10 if name == "x" else 6) for name, column in columns.items() if column is not None}
  return {"label": line.label, "dash": DASHES[line.dash % len(DASHES)], "colour": line.colour % COLOURS} | numbers


def _rounded(column: Float[np.ndarray, " points"], digits: int) -> list[float | None]:
  return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in column.tolist()]


def _table(chart: Chart, lines: Sequence[Line]) -> Markup:
  """The chart as numbers, for readers who cannot use the picture; long curves are sampled evenly, ends included."""
  xs = np.unique(np.concatenate([line.xs for line in lines]))
  chosen = xs[np.unique(np.linspace(0, len(xs) - 1, min(len(xs), TABLE_ROWS)).astype(int))]
  lookups = [dict(zip(line.xs.tolist(), line.ys.tolist(), strict=True)) for line in lines]
  rows = [
    [markup.number(x), *(markup.number(values.get(x), chart.percent) for values in lookups)] for x in chosen.tolist()
  ]
  header = [chart.x_label, *(line.label for line in lines)]
  numbers = markup.table(f"{chart.title}: sampled values", header, rows)
  return tag("details", tag("summary", "Numbers"), numbers)
