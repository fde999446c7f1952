"""The parts of the page that describe one run: summary, evaluations, grids, mixers, configuration, environment."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from typing import Any

from jpmhc_jax.config import load as configs
from jpmhc_jax.core.terminal import duration
from jpmhc_jax.reporting import charts, choice, classes, curves, depth, latents, markup, spectra
from jpmhc_jax.reporting.examples import draw_example, DRAWINGS
from jpmhc_jax.reporting.lead import CHARTS, lead
from jpmhc_jax.reporting.markup import Cell, join, Markup, number, tag
from jpmhc_jax.reporting.workdir import Evaluation, fields_of, Run

SHOWN = 12  # answers that are seen before a reader asks for all; page.css and page.js count to it


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
    ("summary", "Summary", lead(run)),
    *([("latents", "Latents", body)] if (body := latents.section(run)) else []),
    ("mixers", "Mixers", mixers(run)),
    ("depth", "Over depth", over_depth(run)),
    ("examples", "Answers", example_gallery(run, examples)),
    ("evaluation", "Evaluation", evaluation_tables(run)),
    *([("classes", "Classes", body)] if (body := classes.section(run)) else []),
    ("curves", "More of training", learning_curves(run)),
    *([("spectra", "Jacobian spectra", body)] if (body := spectra.section(run)) else []),
    ("config", "Configuration", configuration(run)),
    ("environment", "Environment", environment(run)),
  ]
  return [Section(f"{run.anchor}-{anchor}", title, body) for anchor, title, body in parts]


def learning_curves(run: Run) -> Markup:
  """Everything over the steps that the first screen does not show; then loss and headline over time and arithmetic."""
  more = curves.learning_charts(run)[CHARTS:]
  parts = [charts.gallery(more, 3) or markup.note("No other training metrics were recorded.")]
  for title, listed in curves.other_axes(run).items():
    parts.append(
      tag("details", tag("summary", f"{title}: {', '.join(c.title for c in listed)}"), charts.gallery(listed))
    )
  return join(parts)


def over_depth(run: Run) -> Markup:
  """Profiles over the depth of the network at the first record, half-way and at the last."""
  varied = [chart for chart in depth.run_charts(run) if not chart.constant]  # those are said of the mixers
  return charts.gallery(varied, 3) or markup.note("Nothing was recorded for several depths.")


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
  parts += [task_table(last), cost_words(last)]
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
  words = (
    "Fractional: a task scores the share of its test inputs that are solved. Strict: all of them must be. Outputs: the "
    "share of all test inputs, which with two attempts is the score of the ARC Prize."
  )
  return join(
    [markup.table(caption, ["", *map(curves.kind_words, kinds)], rows), tag("p", remark + words, class_="quiet")]
  )


def task_table(evaluation: Evaluation) -> Markup | None:
  """Every task's test inputs, solved shares and votes, folded; None of an evaluation that scored no tasks."""
  tasks = {name: scores for name, scores in evaluation.tasks.items() if isinstance(scores, Mapping)}
  names = list(dict.fromkeys(name for scores in tasks.values() for name in scores))
  if not names:
    return None
  rows = [
    [task, *(number(scores.get(name), curves.is_share(name)) for name in names)] for task, scores in tasks.items()
  ]
  heads = {"outputs/pass@1": "one attempt", "outputs/pass@2": "two attempts", "augmentations_voted": "votes an input"}
  caption = f"Every task of the evaluation at step {evaluation.step}"
  table = markup.table(caption, ["task", *(heads.get(name, name) for name in names)], rows, class_="sortable")
  return tag("details", tag("summary", f"{len(tasks)} tasks, one by one"), table)


def cost_words(evaluation: Evaluation) -> Markup | None:
  """What the evaluation took; None where it was not recorded."""
  seconds, each = (evaluation.cost.get(name) for name in ("seconds", "seconds_per_task"))
  if not isinstance(seconds, int | float) or not isinstance(each, int | float):
    return None
  took = f"It took {duration(seconds)} on {evaluation.cost.get('devices')}"
  return tag("p", f"{took}, {duration(each)} a {'task' if evaluation.tasks else 'example'}.", class_="quiet")


def example_gallery(run: Run, limit: int = 1000) -> Markup:
  """Input, truth and ranked answers of the last evaluation that kept examples, with a filter."""
  evaluation = next((e for e in reversed(run.evaluations) if e.examples), None)
  if evaluation is None:
    return markup.note("No example was recorded.")
  examples = evaluation.examples[:limit]
  shown = (
    f"{len(examples)} of {len(evaluation.examples)}" if len(examples) < len(evaluation.examples) else len(examples)
  )
  words = f"{shown} recorded examples of the evaluation at step {evaluation.step}{evaluation.remark}."
  return gallery(examples, run.anchor, words)


def gallery(examples: Sequence[Mapping[str, Any]], anchor: str, words: str) -> Markup:
  """Every example as a card, below `words` and the legend of their kind, with a filter."""
  count = len(examples)
  solved = sum(example.get("solved_at") is not None for example in examples)
  choose = _solved_filter(anchor, count, solved) if any("solved_at" in example for example in examples) else None
  switches = [
    tag("label", tag("input", type="checkbox", class_=name), f" {words}")
    for name, words in (("large", "Large"), *([("every", f"Show all {count}")] if count > SHOWN else []))
  ]
  filters = tag("form", choose, markup.search("Task", "id"), *switches, tag("output", class_="quiet"), class_="filters")
  drawing = DRAWINGS.get(str(examples[0].get("kind", "arc")) if examples else "")
  intro = tag("p", f"{words} {drawing.legend if drawing else ''}", class_="quiet")
  cards = map(draw_example, examples)
  return tag("div", intro, filters, tag("div", *cards, class_="cards"), class_="gallery", data_shown=SHOWN)


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
  drawn = [*choice.charts(run), *curves.mixer_charts(run)]
  if not drawn:
    return markup.note("No mixer diagnostics were recorded: the run has no hyper-connections or logs none.")
  connections = curves.mixer_connections(run)
  latest = {(c, d): run.series[name].last() for c, d, name in curves.mixer_names(run) if not choice.is_weight(d)}
  diagnostics = list(dict.fromkeys(d for _, d in latest))
  rows = [[c, *(number(latest.get((c, d))) for d in diagnostics)] for c in connections]
  header = ["connection", *(d.replace("_", " ") for d in diagnostics)]
  values = markup.table("Latest value of every diagnostic", header, rows, class_="sortable")
  return join([choice.table(run), charts.gallery(drawn, 3), tag("details", tag("summary", "Latest values"), values)])


def configuration(run: Run) -> Markup:
  """Fields that differ from the defaults, with their meaning; then the whole configuration."""
  if not run.config:
    return markup.note("The configuration was not recorded.")
  known = dict(configs.schema_fields(fields_of(run.config)))
  changed = {k: v for k, v in run.config.items() if k not in known or _plain(known[k].default) != _plain(v)}
  rows = [
    [
      Cell(markup.field(k)),
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
    "All fields", ["field", "value"], [[Cell(markup.field(k)), _value(v)] for k, v in run.config.items()]
  )
  return join([*parts, tag("details", tag("summary", "Whole configuration"), every)])


def environment(run: Run) -> Markup:
  """Where the run happened, and how it was started before it was resumed."""
  if not run.environment:
    return markup.note("The environment was not recorded.")
  rows = [
    [Cell(markup.field(name)), _value(value)]
    for name, value in run.environment.items()
    if name not in ("command", "earlier_starts")
  ]
  every = tag("details", tag("summary", f"{len(rows)} items"), markup.table("Environment", ["item", "value"], rows))
  return join([every, earlier_starts(run)])


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
