"""A map between latent spaces: both clouds before and after, recall, plan, singular values, prices of fused maps."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from jpmhc_jax.reporting import charts, curves
from jpmhc_jax.reporting.charts import Chart
from jpmhc_jax.reporting.lines import Line
from jpmhc_jax.reporting.markup import Cell, join, Markup, number, tag
from jpmhc_jax.reporting.tables import Table
from jpmhc_jax.reporting.workdir import Evaluation, Run

SIDE = 200  # of a picture of two clouds
HISTOGRAMS = 5  # evaluations whose histograms share a chart
RECALLS = (1, 5, 10)
TITLES = {
  "singular_values": ("Singular values of the Jacobian", "singular value"),
  "log_volume": ("Log-volume of the Jacobian", "log-volume"),
  "distortion": ("Local distortion along the data", "length of the image of a step over its own"),
}


def section(run: Run) -> Markup | None:
  """None for a run whose task is no map between latent spaces."""
  evaluations = [evaluation for evaluation in run.evaluations if evaluation.latents]
  if not evaluations:
    return None
  drawn = [*recall_charts(run, evaluations[-1]), *histogram_charts(evaluations), *_over_training(run)]
  return join([clouds(evaluations), map_table(evaluations[-1]), charts.gallery(drawn, 6)])


def clouds(evaluations: Sequence[Evaluation]) -> Markup | None:
  """The source in its own main axes beside the target, and the image on the target at the first and the last record."""
  chosen = {evaluation.step: evaluation for evaluation in (evaluations[0], evaluations[-1])}
  pictures = [_picture("Before: the source, in its own main axes", evaluations[0], "source")]
  pictures += [_picture(f"After {step:,} steps: the image", each, "image") for step, each in chosen.items()]
  known = [picture for picture in pictures if picture is not None]
  words = "Filled: the cloud that is mapped. Rings: the target, in its two main axes. Colours are classes, if known."
  return join([tag("div", *known, class_="charts"), tag("p", words, class_="quiet")]) if known else None


def _picture(title: str, evaluation: Evaluation, name: str) -> Markup | None:
  points = evaluation.latents.get("points")
  both = [_plane(points.get(each)) for each in (name, "target")] if isinstance(points, Mapping) else [None]
  if any(cloud is None for cloud in both):
    return None
  moved, target = (np.asarray(cloud) for cloud in both)
  if len(moved) != len(target):
    return None
  labels = points.get("labels") if isinstance(points, Mapping) else None
  classes = labels if isinstance(labels, list) and len(labels) == len(moved) else [0] * len(moved)
  reach = max(float(np.abs(np.concatenate([moved, target])).max()), 1e-12) * 1.05
  scale = SIDE / 2 / reach
  colours = [f"var(--line-{int(label) % charts.COLOURS})" for label in classes]
  dots = [
    _dot(row, scale, r=2.8, style=f"fill:none;stroke:{colour}") for row, colour in zip(target, colours, strict=True)
  ]
  dots += [_dot(row, scale, r=1.8, style=f"fill:{colour}") for row, colour in zip(moved, colours, strict=True)]
  box = f"{-SIDE / 2:g} {-SIDE / 2:g} {SIDE} {SIDE}"
  label = f"{title}: {len(moved)} points and their partners"
  picture = tag("svg", tag("title", label), *dots, viewBox=box, role="img", class_="clouds")
  return tag("figure", tag("figcaption", title), picture)


def _dot(row: np.ndarray, scale: float, **look: Any) -> Markup:
  return tag("circle", cx=f"{scale * row[0]:.4g}", cy=f"{-scale * row[1]:.4g}", **look)


def _plane(rows: Any) -> np.ndarray | None:
  """Points of a plane; None for anything else."""
  try:
    plane = np.asarray(rows, np.float64)
  except (TypeError, ValueError):
    return None
  return plane if plane.ndim == 2 and plane.shape[1] == 2 and len(plane) and np.isfinite(plane).all() else None


def map_table(evaluation: Evaluation) -> Markup | None:
  """The map, its fused forms and baselines by recall, distortion, latency and arithmetic."""
  maps = evaluation.cost.get("maps")
  if not isinstance(maps, Mapping) or not maps:
    return None
  rows = []
  for name, values in maps.items():
    known = values if isinstance(values, Mapping) else {}
    cells = [number(known.get("recall@1"), percent=True)]
    shown = f"{name}: {note}" if (note := known.get("note")) else name
    rows.append([Cell(shown), *cells, *(number(known.get(column)) for column in ("distortion", "ms", "flops"))])
  caption = f"The map, its fused forms, and maps fitted to known pairs, on the held-out source, step {evaluation.step}"
  return Table(caption, ["map", "recall@1", "distortion", "milliseconds", "FLOPs"], rows).html(class_="sortable")


def recall_charts(run: Run, last: Evaluation) -> list[Chart]:
  """Recall over training, and over k at the last evaluation, both ways."""
  by_k = []
  for i, (label, suffix) in enumerate((("source to target", ""), ("target to source", "_back"))):
    values = [last.metrics.get(f"recall@{k}{suffix}", math.nan) for k in RECALLS]
    by_k.append(Line(label, np.array(RECALLS, np.float64), np.array(values), i))
  over = [
    Line(f"recall@{k}", series.steps, series.values, i)
    for i, k in enumerate(RECALLS)
    if (series := run.evaluation_series(f"recall@{k}")) is not None
  ]
  charts_of = [curves.chart_of("recall@1", over, title="Recall over training")] if over else []
  return [*charts_of, curves.chart_of("recall@1", by_k, "k, partners allowed", "Recall by k, last evaluation")]


def histogram_charts(evaluations: Sequence[Evaluation]) -> list[Chart]:
  """Histograms of singular values and of local distortion, one line an evaluation."""
  chosen = [evaluations[i] for i in np.unique(np.linspace(0, len(evaluations) - 1, HISTOGRAMS).astype(int))]
  drawn = []
  for name, (title, x_label) in TITLES.items():
    lines = [line for i, each in enumerate(chosen) if (line := _histogram(each, name, i)) is not None]
    about = "Share of the values in each of equal bins, over all held-out points."
    drawn += [Chart(title, lines, x_label, about, percent=True, linear_y=True)] if lines else []
  return drawn


def _histogram(evaluation: Evaluation, name: str, colour: int) -> Line | None:
  histograms = evaluation.latents.get("histograms")
  histogram = histograms.get(name) if isinstance(histograms, Mapping) else None
  try:
    edges, shares = (np.asarray(histogram[part], np.float64) for part in ("edges", "shares"))  # type: ignore[index]
  except (KeyError, TypeError, ValueError):
    return None
  if shares.ndim != 1 or edges.shape != (len(shares) + 1,):
    return None
  return Line(f"step {evaluation.step}", (edges[1:] + edges[:-1]) / 2, shares, colour)


def _over_training(run: Run) -> list[Chart]:
  """Plan entropy and spread of the slopes over training, as each look has them."""
  drawn = []
  if (entropy := run.series.get("map/plan_entropy")) is not None:
    lines = [Line("batch", entropy.steps, entropy.values, 0)]
    if (held := run.evaluation_series("plan_entropy")) is not None:
      lines.append(Line("held out", held.steps, held.values, 1, dash=1))
    drawn.append(curves.chart_of("plan_entropy", lines, title="Plan entropy over training"))
  low, middle, high = (run.series.get(f"map/distortion_p{p}") for p in (5, 50, 95))
  if low is not None and middle is not None and high is not None:
    band = Line("median, 5 to 95 %", middle.steps, middle.values, 0, low=low.values, high=high.values)
    drawn.append(curves.chart_of("distortion_p50", [band], title="Local distortion over training"))
  return drawn
