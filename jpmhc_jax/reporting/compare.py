"""Several runs side by side: table of runs, mean and spread over seeds, curves, configurations."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

import numpy as np

from jpmhc_jax.core.names import short_fields
from jpmhc_jax.reporting import choice, curves, depth, markup
from jpmhc_jax.reporting.charts import Chart, gallery
from jpmhc_jax.reporting.lead import status_badge
from jpmhc_jax.reporting.lines import Line
from jpmhc_jax.reporting.markup import Cell, join, Markup, number, tag
from jpmhc_jax.reporting.sections import Section
from jpmhc_jax.reporting.statistics import differing_fields, Group, group_runs, Spread, spread, welch_p_values
from jpmhc_jax.reporting.workdir import Run, Series

Reader = Callable[[Run], Series | None]


def comparison_sections(runs: Sequence[Run]) -> list[Section]:
  """Everything that compares the runs with each other."""
  groups = group_runs(runs)
  metric, chosen = headline_of(runs), choice.comparison(runs)
  return [
    Section("runs", "Runs", runs_table(runs, metric)),
    Section("groups", "Mean and spread over seeds", groups_table(groups, metric)),
    Section("comparison", "Curves", comparison_charts(groups, metric)),
    Section("depth", "Over depth", over_depth(groups)),
    *([Section("choice", "Chosen families", chosen)] if chosen else []),
    Section("differences", "Differences in configuration", differences_table(runs)),
  ]


def headline_of(runs: Sequence[Run]) -> tuple[str, bool] | None:
  """The headline metric that most runs have, and whether larger is better."""
  choices = [choice for run in runs if (choice := run.headline())]
  return max(dict.fromkeys(choices), key=choices.count) if choices else None


def runs_table(runs: Sequence[Run], metric: tuple[str, bool] | None) -> Markup:
  """One row a run, the best last metric first; names link to the runs' own parts of the page, rows to themselves."""
  fields = differing_fields(runs)
  short, name = short_fields(fields), metric[0] if metric else ""
  measured = [f"best {name}", "at step", f"last {name}"] if metric else []
  header = [
    "run",
    "state",
    "seed",
    *measured,
    "last train loss",
    "steps done",
    "step ms",
    "time",
    *(tag("span", short[f], title=f) for f in fields),
  ]
  rows = []
  for run in ranked(runs, metric):
    name_link = tag("a", run.name, href=f"#run-{run.anchor}", id=f"row-{run.anchor}")
    row_link = tag("a", href=f"#row-{run.anchor}", aria_label=f"Link to the row of {run.name}", class_="anchor")
    link = join([name_link, row_link])
    elapsed = curves.wall_seconds(run)
    rows.append(
      [
        Cell(link, run.name),
        Cell(status_badge(run), run.status),
        number(run.config.get("seed")),
        *(_scores(run, metric) if metric else []),
        number(_last(run, "train/loss")),
        number(run.last_step),
        number(_median(run, "time/step_ms")),
        number(None) if elapsed is None else Cell(curves.duration(elapsed), elapsed, "number"),
        *(_setting(run.config.get(field)) for field in fields),
      ]
    )
  filters = tag("form", markup.search("Filter", "any cell"), tag("output", class_="quiet"), class_="filters")
  order = f", by the last {name}, the {'largest' if metric[1] else 'smallest'} first" if metric else ""
  return tag("div", filters, markup.table(f"Runs{order}", header, rows, class_="sortable"), class_="filterable")


def ranked(runs: Sequence[Run], metric: tuple[str, bool] | None) -> list[Run]:
  """The runs by their last evaluation, the best first; those without a number come last, in the order given."""
  if metric is None:
    return list(runs)
  name, larger = metric
  last = {run.anchor: series.last() for run in runs if (series := run.evaluation_series(name))}
  return sorted(runs, key=lambda run: _order(last.get(run.anchor, math.nan), larger))


def groups_table(groups: Sequence[Group], metric: tuple[str, bool] | None) -> Markup:
  """Mean ± standard deviation of best and last headline metric over seeds, and a test against the best group."""
  if metric is None:
    return markup.note("No run has an evaluation yet, so there is nothing to average.")
  name, larger = metric
  best = [[e.metrics[name] for run in g.judged() if (e := run.best(metric))] for g in groups]
  last = [[s.last() for run in g.judged() if (s := run.evaluation_series(name))] for g in groups]
  spreads = [spread(sample) for sample in last]
  order = sorted(range(len(groups)), key=lambda i: _order(spreads[i].mean, larger))
  tested = next((i for i in order if spreads[i].count > 1), order[0])  # the best one of which a spread is known
  p_values = welch_p_values(last, tested)
  share = curves.is_share(name)
  rows = [
    [
      Cell(groups[i].label),
      _seeds_cell(groups[i]),
      _spread_cell(spreads[i], share),
      _spread_cell(spread(best[i]), share),
      Cell("the reference", class_="number") if i == tested else _p_cell(p_values[i]),
    ]
    for i in order
  ]
  header = ["setting", "seeds", f"last {name}", f"best {name}", f"p against {groups[tested].label}"]
  table = markup.table(f"{name}: mean ± standard deviation over seeds", header, rows, class_="sortable")
  return join([table, tag("p", significance_note(spreads, p_values), class_="quiet")])


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


def comparison_charts(groups: Sequence[Group], metric: tuple[str, bool] | None) -> Markup:
  """Headline metric, main metrics and gradient norm for every group, by every axis, with a band over seeds."""
  names = curves.main_metrics([run for group in groups for run in group.runs])
  headline: dict[str, Reader] = {metric[0]: functools.partial(_evaluated, metric[0])} if metric else {}
  evaluated: dict[str, Reader] = {name: functools.partial(_evaluated, name) for name in names}
  trained = {f"train/{name}": functools.partial(_trained, name) for name in (*names, "gradient_norm")}
  parts = []
  for axis in curves.AXES:
    wanted = headline | (evaluated if axis == "step" else {}) | trained
    charts = [chart for name, reader in wanted.items() if (chart := _group_chart(groups, name, reader, axis))]
    if axis == "step":
      charts += _pass_by_k(groups)
    if charts:
      parts += [tag("h3", curves.AXES[axis]), gallery(charts)]
  if not parts:
    return markup.note("No curve was recorded.")
  shown = "Metrics without train/ in front are those of evaluations. "
  shown += "Lines are means over seeds, bands reach one standard deviation to either side. "
  shown += "A partial run is drawn only where its setting has no complete one."
  cut = f" The first {depth.LINES} of {len(groups)} settings are drawn." if len(groups) > depth.LINES else ""
  return join([tag("p", shown + cut, class_="quiet"), *parts])


def over_depth(groups: Sequence[Group]) -> Markup:
  """Profiles over the depth of the network, one line a setting: the last values, mean over seeds."""
  return gallery(depth.group_charts(groups)) or markup.note("No run recorded anything for several depths.")


def differences_table(runs: Sequence[Run]) -> Markup:
  """Fields that differ between the runs (the seed aside), one column a setting."""
  groups = group_runs(runs)
  fields = differing_fields(runs)
  if not fields:
    return markup.note("The recorded configurations differ in nothing but the seed.")
  rows = [
    [Cell(tag("code", field)), *(_setting(group.runs[0].config.get(field)) for group in groups)] for field in fields
  ]
  return markup.table("Only what differs", ["field", *(group.label for group in groups)], rows)


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


def _scores(run: Run, metric: tuple[str, bool]) -> list[Cell]:
  name = metric[0]
  share, known, series = curves.is_share(name), run.best(metric), run.evaluation_series(name)
  return [
    number(known.metrics[name] if known else None, share),
    Cell(f"{markup.format_number(known.step)}{known.remark}", known.step, "number") if known else number(None),
    number(series.last() if series else None, share),
  ]


def _seeds_cell(group: Group) -> Cell:
  complete = sum(run.status == "complete" for run in group.runs)
  partial = len(group.runs) - complete
  remark = "" if not partial else f" complete, {partial} partial" if complete else " partial"
  return Cell(f"{complete or partial}{remark}", len(group.judged()), "number")


def _spread_cell(value: Spread, share: bool) -> Cell:
  if not value.count:
    return number(None)
  mean = markup.format_number(value.mean, share)
  if not math.isfinite(value.deviation):
    return Cell(mean, value.mean, "number")
  shown = f"{mean} ± {value.deviation:.2g}"
  if share:  # one unit for both numbers
    shown = f"{100 * value.mean:.2f} ± {100 * value.deviation:.2g}\N{NARROW NO-BREAK SPACE}%"
  return Cell(shown, value.mean, "number")


def _p_cell(p: float) -> Cell:
  return number(None) if not math.isfinite(p) else Cell("< 0.001" if p < 0.001 else f"{p:.3f}", p, "number")


def _order(mean: float, larger: bool) -> float:
  return math.inf if not math.isfinite(mean) else -mean if larger else mean


def _setting(value: Any) -> Cell:
  return (
    number(value)
    if value is None or isinstance(value, int | float) and not isinstance(value, bool)
    else Cell(str(value), str(value))
  )


def _last(run: Run, name: str) -> float | None:
  return run.series[name].last() if name in run.series else None


def _median(run: Run, name: str) -> float | None:
  series = run.series.get(name)
  if series is None or not np.isfinite(series.values).any():
    return None
  return float(np.nanmedian(series.values))
