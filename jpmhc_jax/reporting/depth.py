"""Profiles over depth: gradient norms of the layers, diversity of the streams, and what the mixers do."""

from collections.abc import Mapping, Sequence
import math
import re

import numpy as np

from jpmhc_jax.reporting import choice, curves
from jpmhc_jax.reporting.charts import Chart
from jpmhc_jax.reporting.glossary import meaning
from jpmhc_jax.reporting.lines import Line
from jpmhc_jax.reporting.statistics import Group
from jpmhc_jax.reporting.workdir import Run, Series

LINES = 24  # groups drawn on one chart; the tables hold all of them
X_LABEL = "position, from the input on"
STREAMS = ("cosine", "effective_rank", "difference_energy")  # how different the streams are: drawn first
# "block3.features", "block3.tokens.mlp", or "blocks.features[3]" for parameters stacked over layers.
_LAYER = re.compile(r"[a-z]+(?P<a>\d+)\.(?P<part>\w+)(?:\.[\w.]+)?|\w+\.(?P<stacked>\w+)(?:\.[\w.]+)?\[(?P<b>\d+)\]")

Profile = Mapping[str, Series]  # place -> its values over training; places in order of depth


def profiles(run: Run) -> dict[tuple[str, str], Profile]:
  """Everything that a run recorded for several depths: (title, name of the scalar) -> profile."""
  titles: dict[tuple[str, str], dict[str, Series]] = {}
  for (_, _, place), series in sorted(_gradient_norms(run).items(), key=lambda item: item[0]):
    title = "Gradient norm of the connections over depth" if "connect" in place else "Gradient norm over depth"
    titles.setdefault((title, "layer_norm"), {})[place] = series
  depths = curves.mixer_depths(run)
  named = [(d, c, name) for c, d, name in curves.mixer_names(run) if c in depths and not choice.is_weight(d)]
  for diagnostic, connection, name in sorted(named, key=lambda item: (item[0] not in STREAMS, depths.index(item[1]))):
    title = f"{meaning(diagnostic).title} over depth"
    titles.setdefault((title, diagnostic), {})[connection] = run.series[name]
  return {key: profile for key, profile in titles.items() if len(profile) > 1}


def run_charts(run: Run) -> list[Chart]:
  """One chart a profile with three lines: at the first record, half-way and at the last."""
  charts = []
  for (title, name), profile in profiles(run).items():
    steps = np.unique(np.concatenate([series.steps for series in profile.values()]))
    moments = dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1]))
    lines = [
      Line(f"step {moment:g}", _positions(profile), _values(profile, moment), i, 0) for i, moment in enumerate(moments)
    ]
    charts.append(curves.chart_of(name, lines, X_LABEL, title))
  return charts


def group_charts(groups: Sequence[Group]) -> list[Chart]:
  """One chart a profile, one line a group: the mean over its runs of the last values."""
  of_runs = [[profiles(run) for run in group.judged()] for group in groups[:LINES]]
  keys = dict.fromkeys(key for of_run in of_runs for each in of_run for key in each)
  charts = []
  for key in keys:
    lines = []
    for i, (group, of_run) in enumerate(zip(groups, of_runs, strict=False)):
      listed = [each[key] for each in of_run if key in each]
      if listed:
        lines.append(_mean_line(group.label, listed, i))
    alone = f", {lines[0].label}" if len(lines) == 1 < len(groups) else ""  # one line has no legend
    charts.append(curves.chart_of(key[1], lines, X_LABEL, key[0] + alone))
  return charts


def _mean_line(label: str, listed: Sequence[Profile], i: int) -> Line:
  longest = max(listed, key=len)
  values = [_values(profile, math.inf) for profile in listed if len(profile) == len(longest)]
  return Line(label, _positions(longest), np.mean(values, axis=0), i, i // 8)


def _positions(profile: Profile) -> np.ndarray:
  return np.arange(1.0, len(profile) + 1)


def _values(profile: Profile, step: float) -> np.ndarray:
  """The value of every place at a step, the last one before it where none was recorded then."""
  values = []
  for series in profile.values():
    at = int(np.searchsorted(series.steps, step, side="right")) - 1
    values.append(float(series.values[at]) if at >= 0 else math.nan)
  return np.array(values)


def _gradient_norms(run: Run) -> dict[tuple[int, str, str], Series]:
  """(layer, rank of the sub-layer, place) -> norm of the gradient of all its parameters together.

  Inside a layer the sub-layer that mixes positions comes first.
  """
  norms: dict[tuple[int, str, str], Series] = {}
  for name, series in run.series.items():
    match = _LAYER.fullmatch(name.removeprefix("gradient_norm/"))
    if not name.startswith("gradient_norm/") or match is None:
      continue
    layer, part = int(match["a"] or match["b"]), match["part"] or match["stacked"]
    key = (layer, part.replace("tokens", "0").replace("attention", "0"), f"{layer}.{part}")
    known = norms.get(key)
    if known is not None and np.array_equal(known.steps, series.steps):
      series = Series(series.steps, np.hypot(known.values, series.values))
    norms[key] = series
  return norms
