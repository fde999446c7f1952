"""The first screen of a run's page: what was trained, how well it does in a sentence, figures and three charts."""

from collections.abc import Mapping
import math
import shlex
from typing import Any

import numpy as np

from jpmhc_jax.connections.diagnostics import alarms
from jpmhc_jax.core.terminal import duration
from jpmhc_jax.reporting import charged, charts, curves, markup
from jpmhc_jax.reporting.markup import join, Markup, tag
from jpmhc_jax.reporting.workdir import Evaluation, Run

CHARTS = 3
WORDS = {"trm": "TRM", "vit": "ViT", "arc": "ARC", "cpu": "CPU"}


def lead(run: Run) -> Markup:
  """Facts, verdict, figures, what is wrong, and the charts that matter most."""
  shown = curves.learning_charts(run)[:CHARTS]
  figures = charts.gallery(shown, CHARTS) or markup.note("No training metrics were recorded.")
  return join(
    [tag("p", verdict(run), class_="verdict"), facts(run), markup.definitions(tiles(run)), problems(run), figures]
  )


def verdict(run: Run) -> Markup:
  """How good the run is, on what, and at which step; then whatever speaks against trusting the number."""
  sentences = [_score(run), _gap(run), _average(run), *_alarms(run)]
  return join([status_badge(run), " ", " ".join(filter(None, sentences))])


def _score(run: Run) -> str:
  judged, best = run.headline(), run.best()
  if judged is None or best is None:
    return "Nothing was evaluated yet, so the run cannot be judged."
  name, last = judged[0], run.evaluations[-1]
  if name not in last.metrics:
    return f"{_valued(name, best)}."
  sentence = f"{_valued(name, last)}, its last evaluation"
  if math.isfinite(last.metrics[name]) and best.metrics[name] == last.metrics[name]:
    return f"{sentence} and its best."
  share = curves.is_share(name)
  return f"{sentence}; best {markup.format_number(best.metrics[name], share)} at step {best.step}{best.remark}."


def _valued(name: str, evaluation: Evaluation) -> str:
  value = markup.format_number(evaluation.metrics[name], curves.is_share(name))
  count = evaluation.metrics.get("examples")
  on = f" on {markup.format_number(count)} held-out examples" if count else ""
  return f"{name} is {value}{on} at step {evaluation.step}{evaluation.remark}"


def _gap(run: Run) -> str:
  """How much better the run does on what it trains on, where that is more than 5 points."""
  judged = run.headline()
  trained = run.training_series(judged[0]) if judged else None
  if judged is None or trained is None or not run.evaluations or not curves.is_share(judged[0]):
    return ""
  recent = trained.values[np.isfinite(trained.values)][-5:]
  gap = float(recent.mean()) - run.evaluations[-1].metrics.get(judged[0], math.nan) if recent.size else math.nan
  return f"On training data it is {100 * gap:.0f} points higher." if gap > 0.05 else ""


def _average(run: Run) -> str:
  """Which parameters are evaluated, and how the others do where both were."""
  decay, judged = run.config.get("optimizer.ema"), run.headline()
  if not isinstance(decay, float) or not decay or not run.evaluations:
    return ""
  name = judged[0] if judged else ""
  raw = run.evaluations[-1].metrics.get(f"unaveraged/{name}")
  beside = (
    "" if raw is None else f"; the parameters themselves reach {markup.format_number(raw, curves.is_share(name))}"
  )
  return f"Evaluated is the running average of the parameters (EMA {decay:g}){beside}."


def _alarms(run: Run) -> list[str]:
  """One sentence an alarm, however many connections it is on for."""
  on = [text.partition(": ") for text in alarms({name: series.last() for name, series in run.series.items()})]
  advice = dict.fromkeys(words for _, _, words in on)
  places = {words: [name.split("/")[1] for name, _, other in on if other == words] for words in advice}
  return [f"Alarm in {', '.join(names)}: {words}." for words, names in places.items()]


def facts(run: Run) -> Markup:
  """Model, mixer, data, device, date and command, as far as they are recorded."""
  rows = {"Model": _model(run), "Mixer": _mixer(run), "Data": _data(run), "Device": _device(run), "Date": _date(run)}
  items = [tag("div", tag("dt", name), tag("dd", words)) for name, words in rows.items() if words]
  command = run.environment.get("command")
  if command:
    words = [shlex.quote(str(word)) for word in command] if isinstance(command, list) else [str(command)]
    copy = tag("button", "Copy", type="button", class_="copy", hidden=True)
    line = join(part for word in words for part in (tag("span", word), " "))  # broken between words
    code = tag("div", tag("code", line, tabindex="0"), copy, class_="command")
    items.append(tag("div", tag("dt", "Command"), tag("dd", code), class_="wide"))
  return tag("dl", *items, class_="facts")


def _model(run: Run) -> str:
  kind, count = run.config.get("model.kind"), run.environment.get("parameters")
  width, layers, loops = (run.config.get(f"model.{name}") for name in ("width", "layers", "loops"))
  words = [WORDS.get(str(kind), str(kind)) if kind else ""]
  words += [
    f"width {width}" if width else "",
    f"{layers} layer{'s' * (layers != 1)}" if isinstance(layers, int) else "",
    f"{loops} loops" if isinstance(loops, int) and loops > 1 else "",
  ]
  words.append(f"{markup.format_number(count)} parameters" if isinstance(count, int) else "")
  return ", ".join(filter(None, words))


def _mixer(run: Run) -> str:
  streams = run.config.get("connection.streams")
  if not isinstance(streams, int):
    return ""
  if streams == 1:
    return "none: one stream, plain residual connections"
  options = run.config.get("connection.options")
  return f"{run.config.get('connection.mixer')}{f' ({options})' if options else ''}, {streams} streams"


def _data(run: Run) -> str:
  kind, known = run.config.get("data.kind"), run.environment
  parts = [WORDS.get(str(kind), str(kind)) if kind else ""]
  for side, words in (("train", "to train on"), ("evaluation", "held out")):
    counts = {unit: known.get(f"data.{side}_{unit}") for unit in ("examples", "puzzles")}
    named = [f"{markup.format_number(count)} {unit}" for unit, count in counts.items() if isinstance(count, int)]
    parts.append(f"{' of '.join(named)} {words}" if named else "")
  return ", ".join(filter(None, parts))


def _device(run: Run) -> str:
  listed = run.environment.get("devices")
  kinds = [str(d.get("kind")) if isinstance(d, Mapping) else str(d) for d in listed] if isinstance(listed, list) else []
  names = [f"{kinds.count(kind)} × {WORDS.get(kind, kind)}" for kind in dict.fromkeys(kinds)]
  cores = run.environment.get("cpu_cores")
  names += [f"{cores} CPU cores"] if kinds == ["cpu"] and cores else []
  jax = run.environment.get("packages.jax")
  return ", ".join([*names, *([f"JAX {jax}"] if jax else [])])


def _date(run: Run) -> str:
  started, seconds = run.environment.get("started"), curves.wall_seconds(run)
  words = [str(started).replace("T", " ").removesuffix("+00:00") + " UTC" if started else ""]
  return ", ".join(filter(None, [*words, f"took {duration(seconds)}" if seconds is not None else ""]))


def tiles(run: Run) -> dict[str, Any]:
  """Headline figures: label -> value with its remark."""
  shown: dict[str, Any] = {"Steps": markup.format_number(run.last_step)}
  judged_by, best = run.headline(), run.best()
  if judged_by and best:
    metric = judged_by[0]
    share = curves.is_share(metric)
    shown[f"Best {metric}"] = _figure(best.metrics[metric], share, f"at step {best.step}{best.remark}")
    last = run.evaluations[-1]
    if metric in last.metrics:
      shown[f"Last {metric}"] = _figure(last.metrics[metric], share, f"at step {last.step}{last.remark}")
  loss = run.series.get("train/loss")
  if loss is not None:
    shown["Last train loss"] = _figure(loss.last(), False, f"at step {int(loss.steps[-1])}")
  clock = run.series.get("time/step_ms")
  if clock is not None and np.isfinite(clock.values).any():
    added = charged.diagnostics_share(run)
    more = "" if added is None else f"; diagnostics add {markup.format_number(added, True)}"
    shown["Step time"] = _figure(float(np.nanmedian(clock.values)), False, f"ms, median{more}")
  compile_time = run.series.get("time/compile_s")
  if compile_time is not None:
    shown["Compile time"] = duration(float(np.nansum(compile_time.values)))
  return shown


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


def _figure(value: float, share: bool, remark: str) -> Markup:
  shown = tag("data", markup.format_number(value, share), value=repr(value))
  return join([shown, tag("small", remark)])
