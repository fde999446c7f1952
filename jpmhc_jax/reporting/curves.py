"""Which scalars of a run are drawn together: learning curves, pass@k, timings, mixer diagnostics."""

from collections.abc import Iterable, Sequence
import dataclasses
import re

import numpy as np

from jpmhc_jax.core.metrics import HEADLINES
from jpmhc_jax.reporting.charts import Chart
from jpmhc_jax.reporting.glossary import meaning
from jpmhc_jax.reporting.lines import Line
from jpmhc_jax.reporting.workdir import Run, Series

PASS_NAME = re.compile(r"(?:(?P<kind>.+)/)?pass@(?P<k>\d+)")
COMPOSITE = "composite"  # the product of all mixers, logged like a connection
TOGETHER = (("loss", "lm_loss"), ("halt_loss", "q_halt_loss"), ("accuracy", "exact_accuracy"))
FAMILIES_OF_SCALARS = (
  ("Gradient norm by layer", "gradient_norm/", "A layer far above or below the others trains at another speed."),
  ("Update over parameter norm by layer", "update_ratio/", "About 1e-3 is usual; 0 does not move, 1 starts anew."),
  ("Share of the wall time", "goodput/", "Where the time went: the share of steps is what training gets."),
)
LEADING = ("difference_energy", "singular_value", "angle_deg")  # of the mixers: drawn first
WALL = "seconds, compilation and evaluations included"
AXES = {"step": "By step", WALL: "By wall time", "FLOP": "By arithmetic"}


def learning_charts(run: Run) -> list[Chart]:
  """Loss, headline metric and gradient norm; then every other scalar of training, pass@k, layers and time."""
  charts: dict[str, Chart] = {}
  drawn = {"train/count", "time/eta_s", "time/elapsed_s"}
  for names in TOGETHER:
    lines = []
    for i, name in enumerate(names):
      drawn |= {f"train/{name}"}
      lines += _line(f"{name}, train", run.training_series(name), i, smooth=True)
      lines += _line(f"{name}, evaluation", run.evaluation_series(name), i, dash=1)
    charts |= dict.fromkeys(names, chart_of(names[0], lines)) if lines else {}
  charts |= _pass_charts(run)
  # What is learned stands before what it costs.
  for name in sorted(natural_order(run.series), key=lambda name: not name.startswith("train/")):
    once = name.startswith("time/") and len(run.series[name].steps) == 1  # a duration, not a curve
    if name.startswith(("train/", "map/", "time/", "memory/")) and name not in drawn and not once:
      charts[name.removeprefix("train/")] = chart_of(name, _trained_and_evaluated(run, name))
  for title, prefix, about in FAMILIES_OF_SCALARS:
    ordered = [name for name in natural_order(run.series) if name.startswith(prefix)]
    lines = [
      line for i, n in enumerate(ordered) for line in _line(n.removeprefix(prefix), run.series[n], i, dash=i // 8)
    ]
    charts |= {title: Chart(title, lines, about=about)} if lines else {}
  headline = run.headline()
  leading = [charts[name] for name in ("loss", headline[0] if headline else "", "gradient_norm") if name in charts]
  return list({id(chart): chart for chart in (*leading, *charts.values())}.values())


def chart_of(name: str, lines: Sequence[Line], x_label: str = "step", title: str = "") -> Chart:
  """A chart of one scalar, with what the glossary says of it."""
  known = meaning(name)
  return Chart(
    title or known.title, lines, x_label, known.words, known.better, is_share(name), tolerance=known.tolerance
  )


def _trained_and_evaluated(run: Run, name: str) -> list[Line]:
  """One scalar of training, and beside it the metric of that name in the evaluations, if there is one."""
  metric = name.removeprefix("train/")
  if metric == name:
    return _line(name, run.series[name], 0, smooth=True)
  evaluated = _line(f"{metric}, evaluation", run.evaluation_series(metric), 0, dash=1)
  return _line(f"{metric}, train" if evaluated else name, run.training_series(metric), 0, smooth=True) + evaluated


def main_metrics(runs: Iterable[Run]) -> list[str]:
  """Loss, and what else training and evaluation are judged by: known main metrics first, then other accuracies."""
  recorded = dict.fromkeys(
    name.removeprefix("train/") for run in runs for name in run.series if name.startswith("train/")
  )
  known = ("loss", *(name for name, _ in HEADLINES if name != "loss"))
  others = [name for name in natural_order(recorded) if is_share(name) and not name.startswith("q_")]
  return [name for name in dict.fromkeys((*known, *others)) if name in recorded]


def other_axes(run: Run) -> dict[str, list[Chart]]:
  """Loss and headline metric by wall time and by arithmetic, as far as they are known."""
  by_axis: dict[str, list[Chart]] = {}
  choice = run.headline()
  names = ["loss", *([choice[0]] if choice and choice[0] != "loss" else [])]
  for axis in (axis for axis in AXES if axis != "step"):
    charts = []
    for name in names:
      drawn = (
        (f"{name}, train", run.training_series(name), 0),
        (f"{name}, evaluation", run.evaluation_series(name), 1),
      )
      lines = [
        Line(label, xs, series.values, 0, dash, smooth=not dash)
        for label, series, dash in drawn
        if series is not None and (xs := axis_values(run, axis, series.steps)) is not None
      ]
      charts += [chart_of(name, lines, axis)] if lines else []
    by_axis |= {AXES[axis]: charts} if charts else {}
  return by_axis


def mixer_charts(run: Run) -> list[Chart]:
  """One chart a diagnostic, one line a connection; its numbered entries (`..._0`, `..._1`) share its colour.

  What the streams and the mixers are stands before how they answer their logits.
  """
  by_diagnostic: dict[str, list[Line]] = {}
  connections = mixer_connections(run)
  for connection, diagnostic, name in mixer_names(run):
    if "/" in diagnostic:  # the weights of a choice have their own charts
      continue
    base, index = _entry(diagnostic)
    label = connection if index is None else f"{connection} [{index}]"
    line = _line(label, run.series[name], connections.index(connection), dash=index or 0)
    by_diagnostic.setdefault(base, []).extend(line)
  ordered = sorted(by_diagnostic, key=lambda name: LEADING.index(name) if name in LEADING else len(LEADING))
  return [chart_of(name, sorted(by_diagnostic[name], key=lambda line: line.colour)) for name in ordered]


def mixer_names(run: Run) -> list[tuple[str, str, str]]:
  """(connection, diagnostic, full name) of every `mixer/<connection>/<diagnostic>`, in reading order."""
  parts = ((name.split("/", 2), name) for name in natural_order(run.series) if name.startswith("mixer/"))
  return [(split[1], split[2], name) for split, name in parts if len(split) == 3]


def mixer_connections(run: Run) -> list[str]:
  """Connections with diagnostics in order of depth, composite last: block2 before block10, tokens before features, and
  all of one call (block0.tokens.call2) before those of the next."""
  names = dict.fromkeys(connection for connection, _, _ in mixer_names(run))
  # Files hold the names in alphabetical order; inside a block the sub-layer that mixes positions comes first.
  position = {name: _call_first(name.replace("tokens", "0").replace("attention", "0")) for name in names}
  ranked = natural_order(position.values())
  return sorted(names, key=lambda name: (name == COMPOSITE, ranked.index(position[name])))


def _call_first(name: str) -> str:
  place, _, call = name.partition(".call")
  return f"call{call or 0}.{place}"


def mixer_depths(run: Run) -> list[str]:
  """Connections in order of depth: all but the product over the network, which has no depth."""
  return [connection for connection in mixer_connections(run) if connection != COMPOSITE]


def pass_names(names: Iterable[str]) -> dict[str, list[int]]:
  """Kinds of pass@k among metric names -> their k in order: {'': [1, 2], 'strict': [1, 2], ...}."""
  kinds: dict[str, list[int]] = {}
  for name in names:
    if match := PASS_NAME.fullmatch(name):
      kinds.setdefault(match["kind"] or "", []).append(int(match["k"]))
  return {kind: sorted(ks) for kind, ks in kinds.items()}


def pass_name(kind: str, k: int) -> str:
  """'strict', 2 -> 'strict/pass@2'."""
  return f"{kind}/pass@{k}" if kind else f"pass@{k}"


def is_share(name: str) -> bool:
  """True for metrics in [0, 1] that read best as percentages."""
  return "accuracy" in name or "pass@" in name or "recall@" in name


def natural_order(names: Iterable[str]) -> list[str]:
  """Sorts so that numbers inside names count as numbers."""
  return sorted(
    names, key=lambda name: [(not p.isdigit(), int(p) if p.isdigit() else p) for p in re.split(r"(\d+)", name)]
  )


def _line(label: str, series: Series | None, colour: int, dash: int = 0, smooth: bool = False) -> list[Line]:
  return [] if series is None else [Line(label, series.steps, series.values, colour, dash, smooth)]


def _pass_charts(run: Run) -> dict[str, Chart]:
  kinds = pass_names(dict.fromkeys(name for e in run.evaluations for name in e.metrics))
  charts: dict[str, Chart] = {}
  for kind, ks in kinds.items():
    lines = [
      line for i, k in enumerate(ks) for line in _line(f"pass@{k}", run.evaluation_series(pass_name(kind, k)), i)
    ]
    if len(ks) > 1 and any(len(line.xs) > 1 for line in lines):
      chart = chart_of("pass@k", lines, title=f"pass@k, {kind_words(kind)}")
      charts |= dict.fromkeys((pass_name(kind, k) for k in ks), chart)
  if len(run.evaluations) and any(len(ks) > 1 for ks in kinds.values()):
    charts["pass@k by k"] = _pass_by_k(run, kinds)
  return charts


def _pass_by_k(run: Run, kinds: dict[str, list[int]]) -> Chart:
  metrics, lines = run.evaluations[-1].metrics, []
  for i, (kind, ks) in enumerate((kind, ks) for kind, ks in kinds.items() if len(ks) > 1):
    values = np.array([metrics.get(pass_name(kind, k), np.nan) for k in ks])
    lines.append(Line(kind_words(kind), np.array(ks, np.float64), values, i))
  chart = chart_of("pass@k", lines, "k, answers allowed", "pass@k by k, last evaluation")
  return dataclasses.replace(chart, log_x=True)


def kind_words(kind: str) -> str:
  """Column heads for kinds of pass@k: '' is fractional credit."""
  return {"": "fractional", "unaugmented": "un-augmented input only"}.get(kind, kind.replace("/", ", "))


def _entry(diagnostic: str) -> tuple[str, int | None]:
  match = re.fullmatch(r"(.*\D)_(\d+)", diagnostic)
  return (match[1], int(match[2])) if match else (diagnostic, None)


def axis_values(run: Run, axis: str, steps: Sequence[int | float] | np.ndarray) -> np.ndarray | None:
  """Positions of steps on an axis; None when the run did not record what it takes.

  axis: 'step'; WALL, from `time/elapsed_s` or by summing `time/step_ms`; 'FLOP', from `flops_per_step`
  of the environment.
  """
  steps = np.asarray(steps, np.float64)
  if axis == "step":
    return steps
  if axis == "FLOP":
    cost = run.environment.get("flops_per_step")
    return steps * cost if isinstance(cost, int | float) else None
  elapsed = run.series.get("time/elapsed_s")
  if elapsed is not None:
    return np.interp(steps, elapsed.steps, elapsed.values)
  clock = run.series.get("time/step_ms")
  if clock is None:
    return None
  # A line stands for all steps since the line before it.
  seconds = np.cumsum(np.diff(clock.steps, prepend=0.0) * np.nan_to_num(clock.values) / 1e3)
  return np.interp(steps, np.concatenate([[0.0], clock.steps]), np.concatenate([[0.0], seconds]))


def wall_seconds(run: Run) -> float | None:
  """Wall time of the whole run, all its starts together; None when it is not known."""
  seconds = axis_values(run, WALL, [run.last_step])
  return float(seconds[0]) if seconds is not None and np.isfinite(seconds[0]) else None
