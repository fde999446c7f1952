"""Charts that compare settings: every seed as a dot, and curves as means over seeds with a band."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from jpmhc_jax.reporting import curves, depth
from jpmhc_jax.reporting.charts import Chart
from jpmhc_jax.reporting.lines import Line
from jpmhc_jax.reporting.ranking import in_order, Metric
from jpmhc_jax.reporting.statistics import Group
from jpmhc_jax.reporting.workdir import Run, Series

Reader = Callable[[Run], Series | None]
APART = 0.08  # of one seed's dot and the next, where settings are 1 apart


def comparison(groups: Sequence[Group], metric: Metric | None, axis: str) -> list[Chart]:
  """Headline metric, main metrics and gradient norm for every group by one axis, with a band over seeds."""
  names = curves.main_metrics([run for group in groups for run in group.runs])
  headline: dict[str, Reader] = {metric[0]: functools.partial(_evaluated, metric[0])} if metric else {}
  evaluated: dict[str, Reader] = {name: functools.partial(_evaluated, name) for name in names}
  trained = {f"train/{name}": functools.partial(_trained, name) for name in (*names, "gradient_norm")}
  wanted = headline | (evaluated if axis == "step" else {}) | trained
  charts = [chart for name, reader in wanted.items() if (chart := _group_chart(groups, name, reader, axis))]
  return charts + (_pass_by_k(groups) if axis == "step" else [])


def seeds(groups: Sequence[Group], metric: Metric | None) -> Chart | None:
  """The last headline metric of every run, one column a setting, the best first; None without an evaluation."""
  if metric is None:
    return None
  lines = []
  for rank, (i, values) in enumerate(in_order(groups, metric)[: depth.LINES], start=1):
    places = rank + APART * (np.arange(len(values)) - (len(values) - 1) / 2)
    lines += [Line(f"{rank}: {groups[i].label}", places, np.array(values), i, i // 8)] if values else []
  chart = curves.chart_of(metric[0], lines, "setting, the best mean first", f"Last {metric[0]}")
  words = f"Every dot is one seed. {chart.about}"
  return dataclasses.replace(chart, about=words, dots=True, linear_y=True) if lines else None


def _group_chart(groups: Sequence[Group], name: str, reader: Reader, axis: str) -> Chart | None:
  lines = [line for i, group in enumerate(groups[: depth.LINES]) for line in _group_line(group, reader, axis, i)]
  if curves.is_share(name):
    lines = [dataclasses.replace(line, low=_in_unit(line.low), high=_in_unit(line.high)) for line in lines]
  return curves.chart_of(name, lines, axis, name) if lines else None


def _group_line(group: Group, reader: Reader, axis: str, i: int) -> list[Line]:
  """Mean over the runs of a group at the steps they share; runs without a common step are drawn one by one."""
  read = [(run, series) for run in group.judged() if (series := reader(run)) is not None]
  read = [(run, series) for run, series in read if curves.axis_values(run, axis, series.steps) is not None]
  if not read:
    return []
  steps = sorted(set.intersection(*(set(series.steps.tolist()) for _, series in read)))
  if not steps:
    return [line for run, _ in read for line in _group_line(Group(run.name, {}, [run]), reader, axis, i)]
  values = np.stack([_at(series, steps) for _, series in read])
  xs = np.mean([x for run, _ in read if (x := curves.axis_values(run, axis, steps)) is not None], axis=0)
  mean = values.mean(0)
  style: dict[str, Any] = {"colour": i, "dash": i // 8, "smooth": True}
  if len(read) == 1:
    return [Line(group.label, xs, mean, **style)]
  deviation = values.std(0, ddof=1)
  return [Line(f"{group.label} (n={len(read)})", xs, mean, low=mean - deviation, high=mean + deviation, **style)]


def _in_unit(band: np.ndarray | None) -> np.ndarray | None:
  """A band around a share ends where shares do."""
  return None if band is None else np.clip(band, 0.0, 1.0)


def _evaluated(name: str, run: Run) -> Series | None:
  return run.evaluation_series(name)


def _trained(name: str, run: Run) -> Series | None:
  return run.training_series(name)


def _at(series: Series, steps: Sequence[float]) -> np.ndarray:
  return series.values[np.searchsorted(series.steps, steps)]


def _pass_by_k(groups: Sequence[Group]) -> list[Chart]:
  lines = []
  for i, group in enumerate(groups[: depth.LINES]):
    curves_of_runs = []
    for run in group.judged():
      metrics = run.evaluations[-1].metrics if run.evaluations else {}
      ks = curves.pass_names(metrics).get("", [])
      curves_of_runs.append({k: metrics[curves.pass_name("", k)] for k in ks})
    common = sorted(set.intersection(*(set(c) for c in curves_of_runs)))
    if len(common) > 1:
      mean = np.mean([[c[k] for k in common] for c in curves_of_runs], axis=0)
      lines.append(Line(group.label, np.array(common, np.float64), mean, i, i // 8))
  title, axis = "pass@k by k, last evaluation, fractional", "k, answers allowed"
  return [dataclasses.replace(curves.chart_of("pass@k", lines, axis, title), log_x=True)] if lines else []
