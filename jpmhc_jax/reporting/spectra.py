"""Jacobian spectra: the section of the page with predicted beside measured ones, and stand-alone figures (SVG)."""

from collections.abc import Iterable, Mapping, Sequence
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.files import write_atomically
from jpmhc_jax.core.reading import read_json
from jpmhc_jax.reporting import markup
from jpmhc_jax.reporting.charts import chart, Line
from jpmhc_jax.reporting.markup import Cell, join, Markup, number, tag
from jpmhc_jax.reporting.style import report_style
from jpmhc_jax.reporting.workdir import LIMIT, Run

FILE = "spectrum.json"
SERIES = {"recursion": "network call", "layer": "layer", "block": "block"}  # scale -> one of many in a row
PREDICTIONS = ("predicted", "independent", "rotated")
STATISTICS = (
  ("condition", "condition number"), ("largest", "largest"), ("stalled", "stalled"), ("mean_log", "mean log"),
  ("spread_log", "spread of log"),
)  # fmt: skip


def section(run: Run) -> Markup | None:
  """Charts and table of workdir/spectrum.json; a remark when it cannot be read, None when there is none."""
  path = run.path / FILE
  if not path.is_file():
    return None
  try:
    content = read_json(path, limit=LIMIT)
    return join([_intro(content), tag("div", *_charts(content["sites"]), class_="charts"), _table(content)])
  except (DataError, OSError, ValueError, KeyError, TypeError) as error:
    return markup.note(f"{FILE} cannot be read ({error!r}); write it again with jpmhc spectrum.", kind="warning")


# For a reader who has not met such spectra before.
_MEANING = (
  "A singular value of a part's Jacobian is the factor by which the gradient of one direction grows or fades on its "
  "way through that part. Near 1 every direction learns; far under 1 directions are lost (stalled), and a large "
  "condition number, the 99 % over the 1 % quantile, means that no learning rate suits all. Against lost directions "
  "take a mixer that keeps norms or fewer calls, against large values a smaller scale of the sub-layers or mixers that "
  "turn from call to call. "
)


def _intro(content: Mapping[str, Any]) -> Markup:
  words = _MEANING + (
    f"Singular values of the Jacobian of the checkpoint at step {content['step']}, at a real batch: measured, and "
    "predicted by free probability from the mixers, reads, writes and sub-layers seen there; calls that share their "
    "weights are taken so, and beside it as if every call had weights of its own (independent). Of all calls together "
    "there is a third curve (rotated): the sub-layers' own Jacobians, all turned by one random rotation, which is what "
    "the theory supposes without its Gaussian form. W1 is the mean "
    "distance in log singular value that mass would have to be moved; ± is what the random probes alone leave of it. "
    "The largest value is an outlier that no average predicts: it is measured (top). Values under the floor count as "
    "the floor in both."
  )
  if not content.get("complete", True):
    words += " The measurement was interrupted: what was done until then is shown."
  return tag("p", words, class_="quiet")


def _charts(sites: Sequence[Mapping[str, Any]]) -> Iterable[Markup]:
  for site in _shown(sites):
    s = np.array(site["singular_values"], np.float64)
    lines = [Line("measured", s, np.array(site["measured_density"], np.float64), colour=0)]
    for index, side in enumerate(PREDICTIONS, 1):
      if site.get(f"{side}_density") is not None:
        lines.append(Line(side, s, np.array(site[f"{side}_density"], np.float64), colour=index, dash=index))
    # The tails of a density fall over tens of decades, which would be all that a logarithmic axis shows.
    yield chart(f"Density of log singular values: {site['name']}", lines, "singular value", log_x=True, linear_y=True)
  calls = [site for site in sites if site["scale"] in SERIES]
  if not calls:  # interrupted before the first of them
    return
  noun = SERIES[calls[0]["scale"]]
  steps = np.array([site["calls"] for site in calls], np.float64)
  for key, words in STATISTICS:
    sides = (("measured", 0, 0), ("predicted", 1, 1))
    lines = [
      Line(side, steps, np.array([(c[side] or {}).get(key) for c in calls], np.float64), colour, dash)
      for side, colour, dash in sides
    ]
    yield chart(f"Every {noun}: {words}", lines, noun)


def _shown(sites: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Parts, the first and the last call or layer, and the whole maps."""
  calls = [site for site in sites if site["scale"] in SERIES]
  ends = calls[:1] + calls[1:][-1:]
  return [site for site in sites if site["scale"] not in SERIES or site in ends]


def _table(content: Mapping[str, Any]) -> Markup:
  rows = []
  for site in content["sites"]:
    row = [
      Cell(site["name"]),
      number(site["size"]),
      Cell("exact" if site["exact"] else "Lanczos"),
      number(site["floor"]),
      number(site.get("top")),
    ]
    for key, _ in STATISTICS:
      row += [number(side and side[key], percent=key == "stalled") for side in (site["measured"], site["predicted"])]
    rows.append(
      [*row, number(site["w1"]), number(site["chance"])]
      + [number(site.get("independent_w1")), number(site.get("rotated_w1")), number(site["residual"])]
    )
  pairs = [f"{words}, {side}" for _, words in STATISTICS for side in ("measured", "predicted")]
  header = [
    "Jacobian of",
    "inputs",
    "method",
    "floor",
    "top, measured",
    *pairs,
    "W1",
    "±",
    "W1, independent",
    "W1, rotated",
    "residual",
  ]
  return markup.table("Measured and predicted singular values", header, rows, class_="sortable")


BANDS = ((0.01, 0.99), (0.1, 0.9))  # quantiles between which a prediction's picture is filled


@report_style()
def draw_predictions(predictions: Sequence[Mapping[str, Any]], path: Path) -> None:
  """One panel a mixer: the middle 98 % and 80 % of its singular values and their median, over depth."""
  from matplotlib.figure import Figure  # not pyplot: no window system, no global state

  names = list(dict.fromkeys(row["mixer"] for row in predictions))
  if not names:
    return
  columns = min(4, len(names))
  figure = Figure(figsize=(3 * columns + 0.6, 2.8 * -(-len(names) // columns)), layout="constrained")
  axes = figure.subplots(-(-len(names) // columns), columns, squeeze=False, sharex=True, sharey=True).ravel()
  for axis in axes[len(names) :]:
    axis.set_axis_off()
  for axis, name in zip(axes, names, strict=False):
    rows = sorted((row for row in predictions if row["mixer"] == name), key=lambda row: row["depth"])
    _draw_bands(axis, [row["depth"] for row in rows], [_quantiles(row) for row in rows])
    axis.set(title=name, yscale="log", xlabel="layers")
  for axis in axes[::columns]:
    axis.set_ylabel("singular value s (gradient factor)")
  axes[0].legend()
  _save(figure, path)


def _quantiles(row: Mapping[str, Any]) -> np.ndarray:
  """(1, 10, 50, 90, 99 %) of a predicted density of log s."""
  s, density = (np.array(row[key], np.float64) for key in ("singular_values", "log_density"))
  mass = np.cumsum(np.maximum(density, 0) * np.gradient(np.log(s)))
  low, high = zip(*BANDS, strict=True)
  return np.exp(np.interp((*low, 0.5, *high), mass / max(mass[-1], 1e-300), np.log(s)))


def _draw_bands(axis: Any, depths: Sequence[int], quantiles: Sequence[np.ndarray]) -> None:
  low, high = np.array(quantiles).T[: len(BANDS)], np.array(quantiles).T[-len(BANDS) :]
  for index, (below, above) in enumerate(BANDS):
    label = f"middle {above - below:.0%}"
    axis.fill_between(depths, low[index], high[index], alpha=0.2, color="C0")
    axis.vlines(depths, low[index], high[index], color="C0", linewidth=2 + 4 * index, alpha=0.5, label=label)
  axis.plot(depths, np.array(quantiles)[:, len(BANDS)], "o-", color="C1", markersize=4, label="median")
  axis.axhline(1, color="grey", linewidth=0.6)


def draw_sites(sites: Sequence[Mapping[str, Any]], path: Path) -> None:
  """Measured and predicted density of log s of every part, the first and last call or layer and the whole maps."""
  panels = []
  for site in _shown(sites):
    curves = [("measured", site["singular_values"], site["measured_density"], "-")]
    for side, style in zip(PREDICTIONS, ("--", ":", "-."), strict=True):
      if site.get(f"{side}_density") is not None:
        curves.append((side, site["singular_values"], site[f"{side}_density"], style))
    panels.append((site["name"], curves))
  _draw(panels, path)


@report_style()
def _draw(panels: Sequence[tuple[str, Sequence[tuple[str, Any, Any, str]]]], path: Path) -> None:
  from matplotlib.figure import Figure  # not pyplot: no window system, no global state

  if not panels:
    return  # a figure needs something to show
  columns = min(4, len(panels))
  rows = -(-len(panels) // columns)
  figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for axis in axes[len(panels) :]:
    axis.set_axis_off()
  for axis, (title, curves) in zip(axes, panels, strict=False):
    for label, x, density, style in curves:
      axis.plot(x, density, style, label=label, linewidth=1.3)
    axis.set(title=title, xscale="log", xlabel="singular value s (factor on the gradient)", ylabel="density of ln s")
    axis.set_ylim(bottom=0)
    _label_few_decades(axis)
  axes[0].legend()
  _save(figure, path)


def _save(figure: Any, path: Path) -> None:
  image = io.BytesIO()
  figure.savefig(image, format="svg", metadata={"Date": None})
  write_atomically(path, image.getvalue())


def _label_few_decades(axis: Any) -> None:
  """Labels 1, 2 and 5 where the axis holds fewer than two powers of ten: matplotlib's own labels overlap there."""
  low, high = axis.get_xlim()
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
  if sum(low <= 10.0**power <= high for power in powers) < 2:
    ticks = [m * 10.0**power for power in powers for m in (1, 2, 5) if low <= m * 10.0**power <= high]
    axis.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
