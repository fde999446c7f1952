"""Runs that differ only in their seed, their mean and spread, and how surely two such groups differ."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

import numpy as np
from scipy import stats

from jpmhc_jax.core.names import distinguishing
from jpmhc_jax.reporting.workdir import Run

SEED_FIELDS = ("seed",)
# Fields that decide how long a run trained, how it is judged and on what; runs that differ in one are no fair race.
FAIRNESS = (
  "steps", "budget_seconds", "batch_size", "optimizer.ema", "evaluation.max_examples", "data.kind",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs with equal configurations up to the seed. `setting` holds the fields in which the groups of a page differ."""

  label: str
  setting: Mapping[str, Any]
  runs: Sequence[Run]

  def judged(self) -> Sequence[Run]:
    """The complete runs; all runs when none is complete. A partial run would pull the mean of its group down."""
    return [run for run in self.runs if run.status == "complete"] or self.runs


@dataclasses.dataclass(frozen=True)
class Spread:
  """A sample over seeds: how many, mean, and standard deviation (n - 1 in the denominator; NaN for one value)."""

  count: int
  mean: float
  deviation: float


def differing_fields(runs: Sequence[Run]) -> list[str]:
  """Configuration fields that are not the same in all runs, the seed left out. A field that some run lacks differs."""
  configs = [run.config for run in runs if run.config]
  names = dict.fromkeys(name for config in configs for name in config)
  return [
    n for n in names if n not in SEED_FIELDS and len({_freeze(config.get(n, _MISSING)) for config in configs}) > 1
  ]


def group_runs(runs: Sequence[Run]) -> list[Group]:
  """Groups runs by configuration up to the seed, in the order given. A run without a configuration stands alone."""
  fields = sorted(differing_fields(runs), key=FAIRNESS.__contains__)  # labels drop the last ones first
  grouped: dict[tuple, list[Run]] = {}
  for run in runs:
    key = tuple(_freeze(run.config.get(name, _MISSING)) for name in fields) if run.config else (run.anchor,)
    grouped.setdefault(key, []).append(run)
  settings = [{name: m[0].config[name] for name in fields if name in m[0].config} for m in grouped.values()]
  labels = _rounded(_without_the_usual(distinguishing(settings)))
  return [
    Group(_label(label, members[0], len(grouped)), setting, members)
    for label, setting, members in zip(labels, settings, grouped.values(), strict=True)
  ]


def spread(values: Sequence[float]) -> Spread:
  """Mean and standard deviation of the finite values."""
  finite = np.array([v for v in values if math.isfinite(v)], np.float64)
  mean = float(finite.mean()) if finite.size else math.nan
  return Spread(finite.size, mean, float(finite.std(ddof=1)) if finite.size > 1 else math.nan)


def welch_p_values(samples: Sequence[Sequence[float]], reference: int) -> list[float]:
  """Two-sided Welch p-values of every sample against the reference, corrected by Holm for their number.

  NaN for the reference itself and for samples of fewer than two values (nothing can be said then).
  Source: Welch 1947; Holm 1979. Equal constant samples give 1, different constant samples 0.
  """
  clean = [np.array([v for v in sample if math.isfinite(v)], np.float64) for sample in samples]
  raw = [math.nan if i == reference else _welch(clean[i], clean[reference]) for i in range(len(clean))]
  tested = sorted((i for i, p in enumerate(raw) if math.isfinite(p)), key=lambda i: raw[i])
  corrected, floor = [math.nan] * len(raw), 0.0
  for rank, i in enumerate(tested):
    floor = max(floor, min(1.0, raw[i] * (len(tested) - rank)))
    corrected[i] = floor
  return corrected


def smallest_difference(a: Spread, b: Spread, level: float = 0.05, power: float = 0.8) -> float:
  """The difference of means that a two-sided Welch test at `level` finds with probability `power`.

  (t(1 − level/2) + t(power)) · √(s_a²/n_a + s_b²/n_b), t with Welch's degrees of freedom; NaN for fewer than two values
  on a side.
  """
  if min(a.count, b.count) < 2:
    return math.nan
  parts = [sample.deviation**2 / sample.count for sample in (a, b)]
  if not sum(parts):
    return 0.0
  freedom = sum(parts) ** 2 / sum(part**2 / (sample.count - 1) for part, sample in zip(parts, (a, b), strict=True))
  return float((stats.t.ppf(1 - level / 2, freedom) + stats.t.ppf(power, freedom)) * math.sqrt(sum(parts)))


_MISSING = object()


def _freeze(value: Any) -> str:
  return "missing" if value is _MISSING else json.dumps(value, sort_keys=True, default=str)


def _without_the_usual(labels: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
  """Leaves a value out where most settings share it, as long as every setting still says something of its own."""
  for name in dict.fromkeys(name for label in labels for name in label):
    values = [_freeze(label.get(name, _MISSING)) for label in labels]
    usual = max(values, key=values.count)
    if values.count(usual) * 3 < len(values) * 2:
      continue
    shorter = [
      {k: v for k, v in label.items() if k != name or value != usual}
      for label, value in zip(labels, values, strict=True)
    ]
    if all(shorter) and len({_freeze(label) for label in shorter}) == len({_freeze(label) for label in labels}):
      labels = shorter
  return labels


def _label(telling_values: Mapping[str, Any], run: Run, groups: int) -> str:
  if groups == 1 or not telling_values:
    return run.name
  if len(telling_values) == 1 and isinstance(word := next(iter(telling_values.values())), str):
    return word
  return ", ".join(f"{name}={value}" for name, value in telling_values.items())


def _rounded(labels: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
  """Drawn numbers have seventeen digits; four of them, as long as that tells the settings apart."""
  shorter = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in label.items()} for label in labels]
  return shorter if len({_freeze(label) for label in shorter}) == len({_freeze(label) for label in labels}) else labels


def _welch(a: np.ndarray, b: np.ndarray) -> float:
  if min(a.size, b.size) < 2:
    return math.nan
  if a.std() == 0 and b.std() == 0:
    return 1.0 if a.mean() == b.mean() else 0.0
  return float(stats.ttest_ind(a, b, equal_var=False).pvalue)
