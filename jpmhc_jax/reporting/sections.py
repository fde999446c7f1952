"""The parts of the page that describe one run: summary, evaluations, grids, mixers, configuration, environment."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import shlex
from typing import Any

import numpy as np

from jpmhc_jax.config import load as configs
from jpmhc_jax.reporting import choice, curves, depth, markup, spectra
from jpmhc_jax.reporting.examples import draw_example, DRAWINGS
from jpmhc_jax.reporting.markup import Cell, join, Markup, number, tag
from jpmhc_jax.reporting.workdir import Evaluation, fields_of, Run


@dataclasses.dataclass(frozen=True)
class Section:
  """One part of the page: its anchor, its heading and its body."""

  anchor: str
  title: str
  body: Markup

  def render(self, level: int) -> Markup:
    """The section as HTML, its heading of a level from 1 to 6."""
    heading = tag(f"h{level}", self.title, id=f"{self.anchor}-title")
    return tag("section", heading, self.body, id=self.anchor, aria_labelledby=f"{self.anchor}-title")


def run_sections(run: Run, examples: int = 1000) -> list[Section]:
  """All sections of one run, with at most `examples` answers drawn; one that has nothing to show says why."""
  parts = [
    ("summary", "Summary", summary(run)),
    ("curves", "Learning curves", learning_curves(run)),
    ("evaluation", "Evaluation", evaluation_tables(run)),
    ("examples", "Answers", example_gallery(run, examples)),
    ("depth", "Over depth", depth.run_charts(run)),
    ("mixers", "Mixers", mixers(run)),
    *([("spectra", "Jacobian spectra", body)] if (body := spectra.section(run)) else []),
    ("config", "Configuration", configuration(run)),
    ("environment", "Environment and reproduction", environment(run)),
  ]
  return [Section(f"{run.anchor}-{anchor}", title, body) for anchor, title, body in parts]


def learning_curves(run: Run) -> Markup:
  """Everything over the steps; then loss and headline metric over time and arithmetic."""
  over_steps = curves.learning_charts(run) or markup.note("No training metrics were recorded.")
  return join([over_steps, curves.other_axes(run)])


def summary(run: Run) -> Markup:
  """Headline figures, state of the run, and everything that could not be read."""
  tiles: dict[str, Any] = {"State": status_badge(run), "Steps": markup.format_number(run.last_step)}
  judged_by, best = run.headline(), run.best()
  if judged_by and best:
    metric = judged_by[0]
    share = curves.is_share(metric)
    tiles[f"Best {metric}"] = _figure(best.metrics[metric], share, f"at step {best.step}{best.remark}")
    last = run.evaluations[-1]
    if metric in last.metrics:
      tiles[f"Last {metric}"] = _figure(last.metrics[metric], share, f"at step {last.step}{last.remark}")
  loss = run.series.get("train/loss")
  if loss is not None:
    tiles["Last train loss"] = _figure(loss.last(), False, f"at step {int(loss.steps[-1])}")
  clock = run.series.get("time/step_ms")
  if clock is not None and np.isfinite(clock.values).any():
    tiles["Step time"] = _figure(float(np.nanmedian(clock.values)), False, "ms, median")
  compile_time = run.series.get("time/compile_s")
  if compile_time is not None:
    tiles["Compile time"] = curves.duration(float(np.nansum(compile_time.values)))
  seconds = curves.wall_seconds(run)
  if seconds is not None:
    tiles["Wall time"] = curves.duration(seconds)
  return join([markup.definitions(tiles), problems(run)])


def problems(run: Run) -> Markup | None:
  """What is missing or unreadable in the run folder; None when all is well."""
  if not run.problems:
    return None
  items = tag("ul", *(tag("li", problem) for problem in run.problems))
  return tag("div", tag("strong", "Incomplete record"), items, class_="warning", role="note")


def status_badge(run: Run) -> Markup:
  """The state of a run in words, coloured."""
  kind = "good" if run.status == "complete" else "bad" if run.fate in ("failed", "diverged") else "open"
  return tag("span", run.status, class_=f"badge {kind}")


def evaluation_tables(run: Run) -> Markup:
  """pass@k of the best and the last evaluation, then every evaluation; those of more or fewer examples come last."""
  title = "Evaluations of more or fewer examples than the config asks for"
  others = [_evaluations_table(title, run.others, covered=True)] if run.others else []
  if not run.evaluations:
    return join([markup.note("No evaluation was recorded."), *others])
  last, best = run.evaluations[-1], run.best()
  shown = [("Last", last)] if best is None or best.step == last.step else [("Best", best), ("Last", last)]
  parts = [pass_table(title, evaluation) for title, evaluation in shown]
  if last.coverage:
    parts.insert(0, markup.note(f"Partial: the run was evaluated on {last.coverage}, as its config asks for."))
  return join([*parts, _evaluations_table("Every evaluation", run.evaluations, covered=bool(last.coverage)), *others])


def _evaluations_table(caption: str, evaluations: Sequence[Evaluation], covered: bool) -> Markup:
  """Every metric of every evaluation, folded where there are many; with `covered` also what each is about."""
  names = list(dict.fromkeys(name for e in evaluations for name in e.metrics))
  rows = []
  for evaluation in evaluations:
    part = [Cell(f"partial: {evaluation.coverage}" if evaluation.coverage else "all examples")] if covered else []
    values = [number(evaluation.metrics.get(name), curves.is_share(name)) for name in names]
    rows.append([number(evaluation.step), *part, *values])
  table = markup.table(caption, ["step", *(["evaluated"] if covered else []), *names], rows, class_="sortable")
  return table if len(names) <= 8 else tag("details", tag("summary", f"{caption}, every metric"), table)


def pass_table(title: str, evaluation: Evaluation) -> Markup | None:
  """pass@k: rows k, columns fractional / strict / pooled; None when the task is not scored by pass@k."""
  kinds = curves.pass_names(evaluation.metrics)
  if not kinds:
    return None
  ks = sorted({k for listed in kinds.values() for k in listed})
  rows = [
    [Cell(f"pass@{k}"), *(number(evaluation.metrics.get(curves.pass_name(kind, k)), percent=True) for kind in kinds)]
    for k in ks
  ]
  caption = f"{title} evaluation, step {evaluation.step}{evaluation.remark}"
  voted = evaluation.metrics.get("augmentations_voted")
  remark = f"{markup.format_number(voted)} augmented copies voted on each test input, on average. " if voted else ""
  words = "Fractional: a task scores the share of its test inputs that are solved. Strict: all of them must be."
  return join(
    [markup.table(caption, ["", *map(curves.kind_words, kinds)], rows), tag("p", remark + words, class_="quiet")]
  )


def example_gallery(run: Run, limit: int = 1000) -> Markup:
  """Input, truth and ranked answers of the last evaluation that kept examples, with a filter."""
  evaluation = next((e for e in reversed(run.evaluations) if e.examples), None)
  if evaluation is None:
    return markup.note("No example was recorded.")
  examples = evaluation.examples[:limit]
  count = len(examples)
  solved = sum(example.get("solved_at") is not None for example in examples)
  choose = _solved_filter(run.anchor, count, solved) if any("solved_at" in example for example in examples) else None
  large = tag("label", tag("input", type="checkbox", class_="large"), " Large")
  filters = tag("form", choose, markup.search("Task", "id"), large, tag("output", class_="quiet"), class_="filters")
  shown = f"{count} of {len(evaluation.examples)}" if count < len(evaluation.examples) else count
  drawing = DRAWINGS.get(str(examples[0].get("kind", "arc")) if examples else "")
  legend = drawing.legend if drawing else ""
  words = f"{shown} recorded examples of the evaluation at step {evaluation.step}{evaluation.remark}. {legend}"
  intro = tag("p", words, class_="quiet")
  cards = map(draw_example, examples)
  return tag("div", intro, filters, tag("div", *cards, class_="cards"), class_="gallery")


def _solved_filter(anchor: str, count: int, solved: int) -> Markup:
  options = (
    ("all", f"all {count}"),
    ("solved", f"solved {solved}"),
    ("unsolved", f"not solved {count - solved}"),
  )
  radios = [
    tag(
      "label",
      tag("input", type="radio", name=f"{anchor}-filter", value=value, checked=value == "all"),
      tag("span", words),
    )  # fmt: skip
    for value, words in options
  ]
  return tag("fieldset", tag("legend", "Show", class_="hidden"), *radios)


def mixers(run: Run) -> Markup:
  """Mixer diagnostics over training, and their latest values as a table."""
  figures, chosen = curves.mixer_charts(run), choice.section(run)
  if figures is None and chosen is None:
    return markup.note("No mixer diagnostics were recorded: the run has no hyper-connections or logs none.")
  connections = curves.mixer_connections(run)
  latest = {(c, d): run.series[name].last() for c, d, name in curves.mixer_names(run) if not choice.is_weight(d)}
  diagnostics = list(dict.fromkeys(d for _, d in latest))
  rows = [[c, *(number(latest.get((c, d))) for d in diagnostics)] for c in connections]
  header = ["connection", *(d.replace("_", " ") for d in diagnostics)]
  values = markup.table("Latest value of every diagnostic", header, rows, class_="sortable")
  return join([chosen, figures, tag("details", tag("summary", "Latest values"), values)])


def configuration(run: Run) -> Markup:
  """Fields that differ from the defaults, with their meaning; then the whole configuration."""
  if not run.config:
    return markup.note("The configuration was not recorded.")
  known = dict(configs.schema_fields(fields_of(run.config)))
  changed = {k: v for k, v in run.config.items() if k not in known or _plain(known[k].default) != _plain(v)}
  rows = [
    [
      Cell(tag("code", k)),
      _value(v),
      _value(known[k].default) if k in known else "–",
      known[k].metadata["doc"] if k in known else "–",
    ]
    for k, v in changed.items()
  ]
  parts = [
    markup.table(
      f"Changed from the defaults: {len(changed)} of {len(run.config)} fields",
      ["field", "value", "default", "meaning"],
      rows,
    )
  ]
  every = markup.table(
    "All fields", ["field", "value"], [[Cell(tag("code", k)), _value(v)] for k, v in run.config.items()]
  )
  return join([*parts, tag("details", tag("summary", "Whole configuration"), every)])


def environment(run: Run) -> Markup:
  """The command to run again, and what it ran on."""
  if not run.environment:
    return markup.note("The environment was not recorded.")
  command = run.environment.get("command")
  parts = []
  if command:
    words = shlex.join(map(str, command)) if isinstance(command, list) else str(command)
    copy = tag("button", "Copy", type="button", class_="copy", hidden=True)
    parts += [
      tag("p", "Command of this run:"),
      tag("div", tag("pre", tag("code", words), tabindex="0"), copy, class_="command"),
    ]
  rows = [
    [Cell(name), _value(value)] for name, value in run.environment.items() if name not in ("command", "earlier_starts")
  ]
  return join([*parts, markup.table("Environment", ["item", "value"], rows), earlier_starts(run)])


def earlier_starts(run: Run) -> Markup | None:
  """When and how the run was started before it was resumed; None for a run in one piece."""
  starts = run.environment.get("earlier_starts")
  starts = [start for start in starts if isinstance(start, Mapping)] if isinstance(starts, list) else []
  if not starts:
    return None
  names = ("started", "git_revision", "command")
  rows = [[Cell(number_of), *(_value(start.get(name)) for name in names)] for number_of, start in enumerate(starts, 1)]
  return markup.table("Earlier starts of this run", ["start", *names], rows)


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value


def _value(value: Any) -> Cell:
  words = value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False, default=str)
  return Cell(tag("code", words) if words else tag("span", "empty", class_="quiet"), words)


def _figure(value: float, share: bool, remark: str) -> Markup:
  shown = tag("data", markup.format_number(value, share), value=repr(value))
  return join([shown, tag("small", remark)])
