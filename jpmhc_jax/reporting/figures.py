"""Figures and tables for a paper: the charts of a report by matplotlib, its tables as CSV and LaTeX.

Fonts are embedded as text (TrueType in PDF, text elements in SVG), and equal runs give equal files.
"""

from collections.abc import Iterable, Sequence
import io
from pathlib import Path
from typing import Any

import numpy as np

from jpmhc_jax.core.errors import nearest, UserError
from jpmhc_jax.core.files import storing, write_atomically
from jpmhc_jax.reporting import choice, compare, curves, depth, group_curves
from jpmhc_jax.reporting.charts import Chart
from jpmhc_jax.reporting.lines import Line, smoothed
from jpmhc_jax.reporting.markup import slug
from jpmhc_jax.reporting.ranking import headline_of
from jpmhc_jax.reporting.statistics import group_runs
from jpmhc_jax.reporting.style import palette, report_style
from jpmhc_jax.reporting.workdir import Run

DASHES = ("-", "--", ":", "-.")
WIDTH = 3.25  # inches: a column of most two-column papers
ASPECT = 0.66
_DATELESS: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


def write_figures(runs: Sequence[Run], out: Path, format: str = "pdf", width: float = WIDTH) -> list[Path]:
  """Writes one file a chart and, as .csv and .tex, the tables of runs and settings; returns their paths.

  One run: its learning curves, mixers and depth profiles. Several: the comparison over seeds, every setting one line.
  What is constant up to rounding is left out. format: pdf, svg or png. width: of a figure, in inches. Raises UserError
  where nothing was recorded, StorageError where a file cannot be written.
  """
  if not any(run.recorded for run in runs):
    raise UserError(
      f"figures: nothing was recorded in {', '.join(str(run.path) for run in runs)}; name folders of runs"
    )
  files = {f"{name}.{format}": _rendered(chart, format, width) for name, chart in _named(charts_of(runs))}
  for name, table in compare.tables(runs).items():
    files |= {f"{name}.csv": table.csv().encode(), f"{name}.tex": table.latex().encode()}
  with storing(str(out)):
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
      write_atomically(out / name, content)
  return [out / name for name in files]


def charts_of(runs: Sequence[Run]) -> list[Chart]:
  """The charts of one run, or those that compare several; without those that are constant up to rounding."""
  if len(runs) == 1:
    charts = [*curves.learning_charts(runs[0]), *choice.charts(runs[0])]
    charts += [*curves.mixer_charts(runs[0]), *depth.run_charts(runs[0])]
  else:
    groups, metric = group_runs(runs), headline_of(runs)
    dots = group_curves.seeds(groups, metric)
    charts = [*([dots] if dots else []), *group_curves.comparison(groups, metric, "step"), *depth.group_charts(groups)]
  return [chart for chart in charts if chart.lines and not chart.constant]


def plot(runs: Sequence[Run], name: str, axes: Any = None) -> Any:
  """Draws one scalar of runs over their steps, in training and evaluation, and returns the matplotlib axes.

  name: of a metric, such as loss, or the whole name of a recorded scalar, such as time/step_ms. axes: None makes a new
  figure. Raises UserError for a name that no run has recorded.
  """
  lines = [line for i, run in enumerate(runs) for line in _lines(run, name, i, len(runs) > 1)]
  if not lines:
    recorded = sorted({n.removeprefix("train/") for run in runs for n in run.series})
    raise UserError(
      f"{name!r}: no such scalar was recorded; expected one of {', '.join(recorded)}.{nearest(name, recorded)}"
    )
  axes = _figure(WIDTH).subplots() if axes is None else axes
  draw(curves.chart_of(name, lines), axes)
  return axes


def _lines(run: Run, name: str, i: int, several: bool) -> Iterable[Line]:
  front = f"{run.name}, " if several else ""
  sides = {"train": run.training_series(name), "evaluation": run.evaluation_series(name), "": run.series.get(name)}
  for dash, (side, series) in enumerate(sides.items()):
    if series is not None:
      yield Line(f"{front}{side or name}", series.steps, series.values, i, dash % 2, smooth=side != "evaluation")


def draw(chart: Chart, axes: Any) -> None:
  """One chart on matplotlib axes: title, labels, scales, curves with their running means and bands, and the legend."""
  factor = 100.0 if chart.percent else 1.0
  lines, _ = smoothed(chart.lines)
  for line in lines:
    _draw_line(line, factor, axes, chart.dots)
  unit = " (%)" if chart.percent else ""
  axes.set(xlabel=chart.x_label, ylabel=f"{chart.title}{unit}")
  axes.set_xscale("log" if chart.log_x else "linear")
  axes.set_yscale("log" if chart.log_y else "linear")
  if chart.dots:
    axes.set(xticks=range(1, len(lines) + 1), xlim=(0.5, len(lines) + 0.5))
  elif chart.counted and not chart.log_x:
    axes.xaxis.get_major_locator().set_params(integer=True)
  if len(lines) > 1:
    axes.legend(ncols=1 + (len(lines) > 4), fontsize=7 if len(lines) <= 8 else 5)


def _draw_line(line: Line, factor: float, axes: Any, dots: bool) -> None:
  colour, style = palette()[line.colour % len(palette())], DASHES[line.dash % len(DASHES)]
  order = np.argsort(line.xs, kind="stable")
  xs, ys = line.xs[order], factor * line.ys[order]
  if line.low is not None and line.high is not None:
    axes.fill_between(xs, factor * line.low[order], factor * line.high[order], color=colour, alpha=0.16, linewidth=0)
  marker = {"marker": "o", "markersize": 2.5} if dots or len(xs) <= 16 else {}
  bold = {"color": colour, "linestyle": "" if dots else style, "linewidth": 1.2, "label": line.label}
  if line.mean is None:
    axes.plot(xs, ys, **bold, **marker)
  else:
    axes.plot(xs, ys, color=colour, linestyle=style, linewidth=0.6, alpha=0.28)
    axes.plot(xs, factor * line.mean[order], **bold)


def _named(charts: Sequence[Chart]) -> Iterable[tuple[str, Chart]]:
  """File names from titles; a title that is there already gets a number."""
  seen: dict[str, int] = {}
  for chart in charts:
    name = slug(chart.title)
    seen[name] = seen.get(name, 0) + 1
    yield (name if seen[name] == 1 else f"{name}-{seen[name]}"), chart


def _rendered(chart: Chart, format: str, width: float) -> bytes:
  with report_style():
    figure = _figure(width)
    draw(chart, figure.subplots())
    file = io.BytesIO()
    figure.savefig(file, format=format, metadata=_DATELESS[format])
  return file.getvalue()


def _figure(width: float) -> Any:
  from matplotlib.figure import Figure  # not pyplot: no window system, no global state

  return Figure(figsize=(width, ASPECT * width), layout="constrained")
