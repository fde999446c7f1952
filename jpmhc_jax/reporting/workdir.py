"""Reads a run folder as far as it goes: whatever is missing or broken is listed, never fatal."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from jaxtyping import Float
import numpy as np

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.core.metrics import headline, judged_by
from jpmhc_jax.core.reading import check_regular, read_json
from jpmhc_jax.data.dataset import Coverage
from jpmhc_jax.reporting.markup import slug

LIMIT = 2**30  # bytes of a file of a run: half a million steps, or 60 examples of large images, take a quarter of it
HALTED_ONLY = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")


@dataclasses.dataclass(frozen=True)
class Series:
  """One scalar over training."""

  steps: Float[np.ndarray, " points"]
  values: Float[np.ndarray, " points"]

  def last(self) -> float:
    """The value of the last step."""
    return float(self.values[-1])


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One `evaluation/step_N.json`; `coverage` is set where it is about a part of the held-out examples."""

  step: int
  metrics: Mapping[str, float]
  examples: Sequence[Mapping[str, Any]] = ()
  coverage: Coverage | None = None
  judged_by: tuple[str, bool] | None = None  # the main metric of the run's task, and whether larger is better
  answers: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # name -> one value an example
  tasks: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # id -> scores of the task
  cost: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # seconds, seconds_per_task, devices
  latents: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of a map between spaces: points, histograms

  @property
  def remark(self) -> str:
    """Behind the step of a partial evaluation: ', partial: the first 2 of 8 held-out examples'."""
    return f", partial: {self.coverage}" if self.coverage else ""


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run folder holds. `config` and `environment` are flat: dotted name -> value.

  evaluations: of as many examples as the config asks for; the run is judged by them. others: of more or fewer.
  """

  name: str
  anchor: str  # unique on the page, for links
  path: Path
  config: Mapping[str, Any]
  environment: Mapping[str, Any]
  series: Mapping[str, Series]
  evaluations: Sequence[Evaluation]
  problems: Sequence[str]
  others: Sequence[Evaluation] = ()
  asked: str = ""  # the metric that the sweep is judged by, if it names one
  fate: str = ""  # what the sweep says of a run that is not done: failed, diverged, pruned, pending, …

  @property
  def recorded(self) -> bool:
    """Whether the folder holds anything of a run, were it only its configuration."""
    return bool(self.config or self.environment or self.series or self.evaluations or self.others)

  @property
  def last_step(self) -> int:
    """The last step that was logged or evaluated; 0 without one."""
    logged = [int(s.steps[-1]) for s in self.series.values()] + [e.step for e in self.evaluations]
    return max(logged, default=0)

  @property
  def status(self) -> str:
    """'complete', 'partial: 300 of 1000 steps', 'failed: 2 of 1000 steps', 'failed', or 'no steps recorded'."""
    planned = self.config.get("steps")
    if not self.last_step:
      return self.fate or "no steps recorded"
    if self._spent():
      return "complete"
    if isinstance(planned, int) and self.last_step < planned:
      return f"{self.fate or 'partial'}: {self.last_step} of {planned} steps"
    return "complete" if isinstance(planned, int) else f"{self.last_step} steps, length not known"

  def _spent(self) -> bool:
    """Whether a run with a budget of seconds has used it up, which is its end whatever `steps` says."""
    budget, elapsed = self.config.get("budget_seconds"), self.series.get("time/elapsed_s")
    return isinstance(budget, float) and budget > 0 and elapsed is not None and elapsed.last() >= budget

  def training_series(self, name: str) -> Series | None:
    """`train/<name>`; metrics over halted sequences are left out where none had halted, as they mean nothing there."""
    series, count = self.series.get(f"train/{name}"), self.series.get("train/count")
    if series is None or count is None or name not in HALTED_ONLY:
      return series
    empty = np.isin(series.steps, count.steps[count.values == 0])
    return Series(series.steps[~empty], series.values[~empty]) if not empty.all() else None

  def evaluation_series(self, name: str) -> Series | None:
    """One metric over the evaluations; `evaluation/<name>` of metrics.jsonl fills in where no file was kept."""
    logged = self.series.get(f"evaluation/{name}")
    points = dict(zip(logged.steps.tolist(), logged.values.tolist(), strict=True)) if logged else {}
    points |= {float(e.step): e.metrics[name] for e in self.evaluations if name in e.metrics}
    return _sorted_series(points) if points else None

  def headline(self) -> tuple[str, bool] | None:
    """Name of the metric this run is judged by, and whether larger is better."""
    recorded = {name for evaluation in self.evaluations for name in evaluation.metrics}
    asked = self.asked if self.asked in recorded else self.config.get("checkpoint.best_metric", "")
    main = next((e.judged_by for e in reversed(self.evaluations) if e.judged_by), None)
    return headline(recorded, asked, main)

  def best(self, by: tuple[str, bool] | None = None) -> Evaluation | None:
    """The best evaluation by the headline metric, or by another; the first of equals, None without a finite one."""
    choice = by or self.headline()
    if choice is None:
      return None
    metric, larger = choice
    scored = [e for e in self.evaluations if math.isfinite(e.metrics.get(metric, math.nan))]
    return max(scored, key=lambda e: e.metrics[metric] if larger else -e.metrics[metric], default=None)


def read_runs(
  workdirs: Sequence[Path],
  endings: Mapping[Path, tuple[str, str]] | None = None,
  metrics: Mapping[Path, str] | None = None,
) -> list[Run]:
  """Reads every folder; names are folder names, with as many parents as it takes to tell them apart.

  `endings`: what a sweep knows of the runs in it that are not done, (state, remark) by resolved folder; `metrics`: the
  metric that it asks for.
  """
  paths = [workdir.resolve() for workdir in workdirs]
  depth = 1
  while depth < 8 and len({p.parts[-depth:] for p in paths}) < len(set(paths)):
    depth += 1
  names = {path: "/".join(path.parts[-depth:]) for path in paths}
  anchors: dict[str, Path] = {}
  for path, name in names.items():
    anchor = slug(name)
    while anchor in anchors:
      anchor += "-x"
    anchors[anchor] = path
  runs = [read_run(path, names[path], anchor) for anchor, path in anchors.items()]
  runs = [dataclasses.replace(run, asked=(metrics or {}).get(run.path, "")) for run in runs]
  return [_with_ending(run, *endings[run.path]) if endings and run.path in endings else run for run in runs]


def folders_inside(path: Path) -> list[Path]:
  """Folders of runs and of sweeps up to two levels below; of a sweep, not those of its runs."""
  candidates = (
    file.parent
    for below in ("*", "*/*")
    for name in ("sweep.json", "config.json")
    for file in path.glob(f"{below}/{name}")
  )
  folders: list[Path] = []
  for folder in dict.fromkeys(candidates):
    folders += [] if folder.parent in folders else [folder]
  return sorted(folders)


def _with_ending(run: Run, state: str, remark: str) -> Run:
  return dataclasses.replace(run, fate=state, problems=(remark, *run.problems))


def read_run(path: Path, name: str, anchor: str) -> Run:
  """Reads one folder. Everything that could not be read ends up in `problems`, in words."""
  if not path.is_dir():
    return Run(name, anchor, path, {}, {}, {}, (), (f"the folder {path.name} does not exist",))
  problems: list[str] = []
  config = flatten(configs.upgraded(_object(path / "config.json", problems)))
  # A field that an older version of the code did not know had what is its default now.
  config |= {name: default for name, default in _defaults(config, problems).items() if config and name not in config}
  environment = flatten(_object(path / "environment.json", problems))
  series = _series(path / "metrics.jsonl", problems)
  evaluations = _evaluations(path / "evaluation", problems)
  own = [evaluation for evaluation in evaluations if _is_own(evaluation, config.get("evaluation.max_examples", 0))]
  others = [evaluation for evaluation in evaluations if evaluation not in own]
  if not own:
    problems.append("there is no evaluation yet")
  return Run(name, anchor, path, config, environment, series, own, tuple(problems), others)


def _is_own(evaluation: Evaluation, asked: Any) -> bool:
  """Whether it is about as many examples as the config's evaluation.max_examples asks for; 0 asks for all."""
  if evaluation.coverage:
    return evaluation.coverage.examples == asked
  return not isinstance(asked, int) or not 0 < asked < evaluation.metrics.get("examples", 0)


def _defaults(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  leaves = configs.leaves(fields_of(config, problems)())
  return {name: list(value) if isinstance(value, tuple) else value for name, value in leaves}


def fields_of(config: Mapping[str, Any], problems: list[str] | None = None) -> type[schema.Config]:
  """The class of a run's flat config; without the fields of plugins where one cannot be imported, which is said."""
  try:
    return configs.class_of_stored(config)
  except ConfigError as error:
    if problems is not None:
      problems.append(f"the fields of plugins have no meaning here: {error}")
    return schema.Config


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{'a': {'b': 1}} -> {'a.b': 1}. Lists are values."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
  try:
    value = read_json(path, limit=LIMIT)
  except FileNotFoundError:
    problems.append(f"{path.name} is missing")
    return {}
  except (OSError, DataError) as error:
    problems.append(f"{path.name} cannot be read: {error}")
    return {}
  if not isinstance(value, dict):
    problems.append(f"{path.name} holds a {type(value).__name__}, expected an object")
    return {}
  return value


def _series(path: Path, problems: list[str]) -> dict[str, Series]:
  try:
    check_regular(path, LIMIT)
    lines = path.open(encoding="utf-8", errors="replace")
  except FileNotFoundError:
    problems.append(f"{path.name} is missing")
    return {}
  except (OSError, DataError) as error:
    problems.append(f"{path.name} cannot be read: {error}")
    return {}
  points: dict[str, dict[float, float]] = {}
  unread = []
  with lines:
    for i, line in enumerate(lines, start=1):
      try:
        record = json.loads(line)
        step = float(record["step"])
        int(step)  # neither NaN nor infinite
      except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        unread.append(i)  # the last line of a killed run is often cut short
        continue
      for name, value in record.items():
        if name != "step" and _is_number(value):
          # A resumed run repeats the steps after its checkpoint: the later line is the one that counts.
          points.setdefault(name, {})[step] = _float(value)
  if unread:
    problems.append(f"{path.name}: {len(unread)} unreadable line(s) skipped, the first is line {unread[0]}")
  return {name: _sorted_series(by_step) for name, by_step in points.items()}


def _sorted_series(by_step: Mapping[float, float]) -> Series:
  steps = sorted(by_step)
  return Series(np.array(steps, np.float64), np.array([by_step[s] for s in steps], np.float64))


def _evaluations(folder: Path, problems: list[str]) -> list[Evaluation]:
  evaluations = []
  for path in sorted(folder.glob("step_*.json")):
    record = _object(path, problems)
    if not record:
      continue
    step, metrics = record.get("step"), record.get("metrics")
    if not isinstance(step, int) or not isinstance(metrics, dict):
      problems.append(f"evaluation/{path.name} lacks an integer 'step' or an object 'metrics'; skipped")
      continue
    numbers = {name: _float(value) for name, value in flatten(metrics).items() if _is_number(value)}
    listed = record.get("examples")
    listed = listed if isinstance(listed, list) else []
    examples = tuple(e for e in listed if isinstance(e, Mapping))
    if len(examples) != len(listed):
      problems.append(f"evaluation/{path.name}: {len(listed) - len(examples)} unreadable example(s) skipped")
    answers, tasks, latents = (
      part if isinstance(part := record.get(name), dict) else {} for name in ("answers", "tasks", "latents")
    )
    took = path.with_name(path.name.replace("step", "cost", 1))
    cost = _object(took, problems) if took.is_file() else {}
    covered, judge = _coverage(record.get("partial")), judged_by(record)
    evaluations.append(Evaluation(step, numbers, examples, covered, judge, answers, tasks, cost, latents))
  return sorted(evaluations, key=lambda evaluation: evaluation.step)


def _coverage(partial: Any) -> Coverage | None:
  counts = [partial.get(name) for name in ("examples", "held_out")] if isinstance(partial, Mapping) else [None]
  return Coverage(*counts) if all(isinstance(count, int) for count in counts) else None


def _is_number(value: Any) -> bool:
  return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _float(value: int | float | None) -> float:
  return math.nan if value is None else float(value)
