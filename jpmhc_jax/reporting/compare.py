"""Several runs side by side: table of runs, mean and spread over seeds, curves, configurations."""

from collections.abc import Sequence
import math
from typing import Any

from jpmhc_jax.core.names import short_fields
from jpmhc_jax.core.terminal import duration
from jpmhc_jax.reporting import charged, choice, curves, depth, group_curves, markup, ranking
from jpmhc_jax.reporting.charts import gallery
from jpmhc_jax.reporting.lead import status_badge
from jpmhc_jax.reporting.markup import Cell, join, Markup, number, tag
from jpmhc_jax.reporting.ranking import headline_of, in_order, Metric, ranked
from jpmhc_jax.reporting.sections import Section
from jpmhc_jax.reporting.statistics import differing_fields, Group, group_runs, Spread, spread, welch_p_values
from jpmhc_jax.reporting.tables import Table
from jpmhc_jax.reporting.workdir import Run

LEADING = 2  # charts of the first screen beside that of the seeds


def comparison_sections(runs: Sequence[Run]) -> list[Section]:
  """Everything that compares the runs with each other."""
  groups = group_runs(runs)
  metric, chosen = headline_of(runs), choice.comparison(runs)
  return [
    Section("summary", "Summary", lead(runs, groups, metric)),
    Section("groups", "Mean and spread over seeds", groups_part(groups, metric)),
    Section("runs", "Runs", runs_part(runs, metric)),
    Section("comparison", "Curves", curves_part(groups, metric)),
    Section("depth", "Over depth", over_depth(groups)),
    *([Section("choice", "Chosen families", chosen)] if chosen else []),
    Section("differences", "Differences in configuration", differences_table(runs)),
  ]


def lead(runs: Sequence[Run], groups: Sequence[Group], metric: Metric | None) -> Markup:
  """What speaks against a ranking, the verdict, and the charts that matter most: seeds, headline metric, loss."""
  dots = group_curves.seeds(groups, metric)
  drawn = [*([dots] if dots else []), *group_curves.comparison(groups, metric, "step")[:LEADING]]
  words = [ranking.verdict(groups, metric), charged.remark(groups, metric) if metric else ""]
  verdict = tag("p", " ".join(filter(None, words)), class_="verdict")
  return join([ranking.warnings(runs), verdict, gallery(drawn, len(drawn)) or markup.note("No curve was recorded.")])


def tables(runs: Sequence[Run]) -> dict[str, Table]:
  """Every run, and every setting with its spread over seeds where there is an evaluation: file name -> table."""
  groups, metric = group_runs(runs), headline_of(runs)
  settings = groups_table(groups, metric) if metric else None
  return {"runs": runs_table(runs, metric)} | ({"settings": settings} if settings and len(runs) > 1 else {})


def runs_part(runs: Sequence[Run], metric: Metric | None) -> Markup:
  """The table of runs with a filter."""
  filters = tag("form", markup.search("Filter", "any cell"), tag("output", class_="quiet"), class_="filters")
  return tag("div", filters, runs_table(runs, metric).html(class_="sortable"), class_="filterable")


def runs_table(runs: Sequence[Run], metric: Metric | None) -> Table:
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
    "diagnostics",
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
        number(charged.step_ms(run)),
        number(charged.diagnostics_share(run), True),
        number(None) if elapsed is None else Cell(duration(elapsed), elapsed, "number"),
        *(_setting(run.config.get(field)) for field in fields),
      ]
    )
  order = f", by the last {name}, the {'largest' if metric[1] else 'smallest'} first" if metric else ""
  return Table(f"Runs{order}", header, rows)


def groups_part(groups: Sequence[Group], metric: Metric | None) -> Markup:
  """The table of settings, and what it allows to be said."""
  if metric is None:
    return markup.note("No run has an evaluation yet, so there is nothing to average.")
  _, spreads, p_values = _tested(groups, metric)
  note = tag("p", ranking.significance_note(spreads, p_values), class_="quiet")
  return join([groups_table(groups, metric).html(class_="sortable"), note])


def groups_table(groups: Sequence[Group], metric: Metric) -> Table:
  """Mean ± standard deviation of best and last headline metric over seeds, and a test against the best group."""
  name, share = metric[0], curves.is_share(metric[0])
  tested, spreads, p_values = _tested(groups, metric)
  best = [[e.metrics[name] for run in g.judged() if (e := run.best(metric))] for g in groups]
  equal = charged.at_equal_time(groups, metric)
  rows = [
    [
      Cell(groups[i].label),
      _seeds_cell(groups[i]),
      _spread_cell(spreads[i], share),
      _spread_cell(spread(best[i]), share),
      Cell("the reference", class_="number") if i == tested else _p_cell(p_values[i]),
      *([number(equal.step_ms[i]), _spread_cell(spread(equal.values[i]), share)] if equal else []),
    ]
    for i, _ in in_order(groups, metric)
  ]
  header = ["setting", "seeds", f"last {name}", f"best {name}", f"p against {groups[tested].label}"]
  header += ["step ms", f"{name} after {duration(equal.seconds)} of steps"] if equal else []
  return Table(f"{name}: mean ± standard deviation over seeds", header, rows)


def _tested(groups: Sequence[Group], metric: Metric) -> tuple[int, list[Spread], list[float]]:
  """The group that the others are tested against, the best one of which a spread is known; spreads; p-values."""
  ordered = in_order(groups, metric)
  last = [values for _, values in sorted(ordered)]
  spreads = [spread(sample) for sample in last]
  tested = next((i for i, _ in ordered if spreads[i].count > 1), ordered[0][0])
  return tested, spreads, welch_p_values(last, tested)


def curves_part(groups: Sequence[Group], metric: Metric | None) -> Markup:
  """The other charts by step, and those by wall time and by arithmetic."""
  parts = []
  for axis, title in curves.AXES.items():
    drawn = group_curves.comparison(groups, metric, axis)[LEADING if axis == "step" else 0 :]
    if drawn:
      parts += [tag("h3", title), gallery(drawn, 6 if axis == "step" else 3)]
  if not parts:
    return markup.note("No other curve was recorded.")
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
    [Cell(markup.field(field)), *(_setting(group.runs[0].config.get(field)) for group in groups)] for field in fields
  ]
  return markup.table("Only what differs", ["field", *(group.label for group in groups)], rows)


def _scores(run: Run, metric: Metric) -> list[Cell]:
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


def _setting(value: Any) -> Cell:
  return (
    number(value)
    if value is None or isinstance(value, int | float) and not isinstance(value, bool)
    else Cell(str(value), str(value))
  )


def _last(run: Run, name: str) -> float | None:
  return run.series[name].last() if name in run.series else None
