"""What steps cost: settings compared at equal time, by the step times that were measured, and not by steps or FLOPs."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from jpmhc_jax.core.terminal import duration
from jpmhc_jax.reporting import curves, markup
from jpmhc_jax.reporting.ranking import Metric
from jpmhc_jax.reporting.statistics import Group, spread
from jpmhc_jax.reporting.workdir import Run


class EqualTime(NamedTuple):
  """Every setting after the same time of steps; evaluations, checkpoints and compilation are not counted."""

  seconds: float  # what the setting that was through first took for its steps
  step_ms: list[float]  # of every setting; NaN where none was recorded
  values: list[list[float]]  # the metric of its runs at their last evaluation within the time


def step_ms(run: Run) -> float | None:
  """The run's median step time in milliseconds; None where none was recorded."""
  series = run.series.get("time/step_ms")
  return float(np.nanmedian(series.values)) if series is not None and np.isfinite(series.values).any() else None


def diagnostics_share(run: Run) -> float | None:
  """What mixer diagnostics add to a step, as a share of its time; None where fewer than two were made."""
  series, step = run.series.get("time/diagnostics_ms"), step_ms(run)
  return series.last() / step if series is not None and step else None


def at_equal_time(groups: Sequence[Group], metric: Metric) -> EqualTime | None:
  """None where fewer than two settings have a step time."""
  clocks = [_median([ms for run in group.judged() if (ms := step_ms(run))]) for group in groups]
  times = [ms * max(run.last_step for run in g.judged()) / 1e3 for ms, g in zip(clocks, groups, strict=True)]
  known = [time for time in times if time > 0]  # false for NaN
  if len(known) < 2:
    return None
  values = [
    [_within(run, metric[0], min(known) * 1e3 / ms) for run in group.judged()] if math.isfinite(ms) else []
    for ms, group in zip(clocks, groups, strict=True)
  ]
  return EqualTime(min(known), clocks, values)


def remark(groups: Sequence[Group], metric: Metric) -> str:
  """A sentence of who is ahead at equal time, and how much dearer a step of the others is; empty where nothing can
  be said."""
  equal = at_equal_time(groups, metric)
  means = [] if equal is None else [spread(values).mean for values in equal.values]
  ranked = sorted((k for k, mean in enumerate(means) if math.isfinite(mean)), key=means.__getitem__, reverse=metric[1])
  if equal is None or len(ranked) < 2:
    return ""
  fastest = min(equal.step_ms[k] for k in ranked)
  score = markup.format_number(means[ranked[0]], curves.is_share(metric[0]))
  return (
    f"At equal time ({duration(equal.seconds)} of steps) {groups[ranked[0]].label} is ahead with {score}; its step "
    f"takes {equal.step_ms[ranked[0]] / fastest:.2f} times as long as the fastest one."
  )


def _median(values: Sequence[float]) -> float:
  return float(np.median(values)) if values else math.nan


def _within(run: Run, name: str, steps: float) -> float:
  """The metric at the last evaluation up to a step; NaN without one."""
  series = run.evaluation_series(name)
  if series is None:
    return math.nan
  before = np.flatnonzero(series.steps <= steps * (1 + 1e-9))
  return float(series.values[before[-1]]) if before.size else math.nan
