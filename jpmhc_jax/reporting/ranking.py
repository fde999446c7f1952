"""Which setting is best, how surely, and what speaks against ranking the runs at all."""

from collections.abc import Sequence
import math

from jpmhc_jax.reporting import curves, markup
from jpmhc_jax.reporting.markup import Markup, tag
from jpmhc_jax.reporting.statistics import FAIRNESS, Group, smallest_difference, Spread, spread, welch_p_values
from jpmhc_jax.reporting.workdir import Run

Metric = tuple[str, bool]  # its name, and whether larger is better
LEVEL = 0.05


def headline_of(runs: Sequence[Run]) -> tuple[str, bool] | None:
  """The headline metric that most runs have, and whether larger is better."""
  choices = [choice for run in runs if (choice := run.headline())]
  return max(dict.fromkeys(choices), key=choices.count) if choices else None


def ranked(runs: Sequence[Run], metric: tuple[str, bool] | None) -> list[Run]:
  """The runs by their last evaluation, the best first; those without a number come last, in the order given."""
  if metric is None:
    return list(runs)
  name, larger = metric
  last = {run.anchor: series.last() for run in runs if (series := run.evaluation_series(name))}
  return sorted(runs, key=lambda run: _order(last.get(run.anchor, math.nan), larger))


def in_order(groups: Sequence[Group], metric: Metric) -> list[tuple[int, list[float]]]:
  """(index of the group, last values of its runs), the best mean first; groups without a value come last."""
  name, larger = metric
  values = [[s.last() for run in g.judged() if (s := run.evaluation_series(name))] for g in groups]
  order = sorted(range(len(groups)), key=lambda i: _order(spread(values[i]).mean, larger))
  return [(i, values[i]) for i in order]


def warnings(runs: Sequence[Run]) -> Markup | None:
  """What the runs differ in that makes a ranking unfair; None where nothing does."""
  recorded = [run for run in runs if run.config and run.recorded]
  items = []
  for field in FAIRNESS:
    values = list(dict.fromkeys(str(run.config.get(field)) for run in recorded))
    items += [tag("li", tag("code", field), f": {_listed(values)}")] if len(values) > 1 else []
  ends = sorted({run.last_step for run in recorded if run.last_step})
  if len(ends) > 1 and len({run.config.get("steps") for run in recorded}) == 1:
    items.append(tag("li", f"steps done: {ends[0]} to {ends[-1]}, of the same number planned"))
  if not items:
    return None
  head = tag("strong", "No fair race: these runs differ in more than what is compared")
  return tag("div", head, tag("ul", *items), class_="warning", role="note")


def _listed(values: Sequence[str]) -> str:
  more = f" and {len(values) - 4} more" if len(values) > 4 else ""
  return ", ".join(values[:4]) + more


def verdict(groups: Sequence[Group], metric: Metric | None) -> str:
  """The best setting, which others are clearly behind it, and the smallest difference that the seeds can show."""
  if metric is None:
    return "No run has an evaluation yet, so nothing can be ranked."
  ranks = [(groups[i].label, spread(values)) for i, values in in_order(groups, metric)]
  ranks = [(label, sample) for label, sample in ranks if sample.count]
  if not ranks:
    return f"No run has a finite {metric[0]}, so nothing can be ranked."
  label, best = ranks[0]
  sentence = f"{label} has the best last {metric[0]}: {_mean(best, metric)}"
  if len(ranks) == 1:
    return f"{sentence}. There is no second setting to compare it with."
  ahead = _difference(abs(best.mean - ranks[1][1].mean), metric)
  return f"{sentence}, {ahead} ahead of {ranks[1][0]}. " + _certainty(groups, metric)


def _certainty(groups: Sequence[Group], metric: Metric) -> str:
  ordered = in_order(groups, metric)
  samples = [values for _, values in ordered]
  spreads = [spread(sample) for sample in samples]
  tested = [k for k in range(1, len(samples)) if min(spreads[0].count, spreads[k].count) > 1]
  if not tested:
    return "No comparison with the best has two seeds on both sides: this may be chance. Run more seeds."
  p_values = welch_p_values(samples, 0)
  names = {k: groups[ordered[k][0]].label for k in tested}
  behind = [names[k] for k in tested if p_values[k] < LEVEL]
  level = [names[k] for k in tested if not p_values[k] < LEVEL]
  least = min(smallest_difference(spreads[0], spreads[k], LEVEL / len(tested)) for k in tested)
  parts = [f"Clearly behind it (p < {LEVEL:g}): {_listed(behind)}." if behind else ""]
  parts.append(f"Within chance of it: {_listed(level)}." if level else "")
  if least > 0:
    parts.append(f"The seeds show differences from {_difference(least, metric)} on (four times in five).")
  return " ".join(filter(None, parts))


def _mean(sample: Spread, metric: Metric) -> str:
  mean = markup.format_number(sample.mean, curves.is_share(metric[0]))
  return f"{mean} (mean of {sample.count} seeds)" if sample.count > 1 else f"{mean} (one seed)"


def _difference(value: float, metric: Metric) -> str:
  return f"{100 * value:.2g} points" if curves.is_share(metric[0]) else f"{value:.2g}"


def significance_note(spreads: Sequence[Spread], p_values: Sequence[float]) -> str:
  """What the table allows to be said, in words."""
  tested = [p for p in p_values if math.isfinite(p)]
  if len(spreads) < 2:
    return "All runs share one configuration: there is nothing to compare."
  if not tested:
    return "No comparison has two seeds on both sides, so differences cannot be told from chance. Run more seeds."
  clear = sum(p < 0.05 for p in tested)
  few = min(s.count for s in spreads if s.count) < 5
  counts = sorted({s.count for s in spreads if s.count})
  words = f"n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds a setting. "
  words += "p: two-sided Welch test on the last evaluation, seeds taken as independent, "
  words += f"Holm-corrected for {len(tested)} comparison{'s' * (len(tested) > 1)}; {clear} below 0.05."
  return words + (
    " With fewer than 5 seeds the test has little power, and the spread itself is uncertain." if few else ""
  )


def _order(mean: float, larger: bool) -> float:
  return math.inf if not math.isfinite(mean) else -mean if larger else mean
