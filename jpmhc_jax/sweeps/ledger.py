"""`sweep.json`: what a sweep is made of and how far each run is. Written after every change, read at every start."""

from collections.abc import Iterator
import dataclasses
import math
import pathlib
from typing import Any

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.files import storing, sweep, to_json, write_atomically
from jpmhc_jax.core.metrics import headline, judged_by
from jpmhc_jax.core.reading import json_line, read_json
from jpmhc_jax.sweeps import job
from jpmhc_jax.sweeps.plan import Planned
from jpmhc_jax.sweeps.space import SweepError
from jpmhc_jax.training.lease import STALE_S

PENDING, RUNNING, DONE, PRUNED = "pending", "running", "done", "pruned"
FAILED, DIVERGED, INTERRUPTED = "failed", "diverged", "interrupted"
_REMEDY = "restore or delete it: finished runs are kept"
OVER = (DONE, PRUNED)  # what a restart leaves alone


@dataclasses.dataclass
class Record:
  """One run in the ledger. `attempts` counts the starts since it last succeeded or was new."""

  name: str
  key: str
  workdir: str
  command: str
  state: str = PENDING
  attempts: int = 0
  exit_code: int | None = None
  message: str = ""
  started: str = ""
  ended: str = ""
  job_id: str = ""


class Ledger:
  """The records of one sweep folder, by the key of their config."""

  def __init__(self, folder: pathlib.Path, about: dict[str, Any]):
    self.path, self.about = folder / "sweep.json", about
    self.records: dict[str, Record] = {record.key: record for record in read_records(folder)}

  @property
  def names(self) -> dict[str, str]:
    """Key -> name, of every run that was ever planned here."""
    return {record.key: record.name for record in self.records.values()}

  @property
  def metric(self) -> str:
    """The metric that the sweep is judged by; '' for the main one of its runs."""
    return str(self.about.get("metric", ""))

  def record(self, run: Planned, command: str) -> Record:
    """The run's record, new if there is none."""
    fresh = Record(run.name, run.key, run.workdir.name, command)
    record = self.records.setdefault(run.key, fresh)
    record.command = command
    return record

  def begin(self) -> None:
    """Makes the folder this sweep's: saves, and removes what killed writers left there."""
    self.save()
    sweep(self.path.parent, old=self.path.stat().st_mtime - STALE_S)

  def save(self) -> None:
    """Writes the file; readers see the old one or the whole new one."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    content = self.about | {"runs": [dataclasses.asdict(record) for record in self.records.values()]}
    with storing(f"the sweep's ledger {self.path}"):
      write_atomically(self.path, to_json(content, indent=2) + "\n")


def read_records(folder: pathlib.Path) -> list[Record]:
  """The records in a sweep folder; none when it holds no sweep. Raises SweepError for a file that is no ledger."""
  path = folder / "sweep.json"
  try:
    return [Record(**record) for record in read_json(path, remedy=_REMEDY)["runs"]]
  except FileNotFoundError:
    return []
  except DataError as error:
    raise SweepError(str(error)) from error
  except (KeyError, TypeError) as error:
    raise SweepError(f"{path}: not a sweep's ledger ({error}); {_REMEDY}") from error


def judge(workdir: pathlib.Path, record: Record) -> None:
  """Fills in how the run ended from what its job left on disk."""
  outcome = job.outcome(workdir)
  if outcome is None:
    stopped = (workdir / "stop").exists()
    record.state = INTERRUPTED if stopped else FAILED
    record.exit_code, record.message = None, "" if stopped else "the job ended without a word: killed, or out of memory"
    return
  code = outcome["exit_code"]
  record.exit_code, record.started, record.ended = code, outcome["started"], outcome["ended"]
  known = {job.DONE: DONE, job.DIVERGED: DIVERGED, job.INTERRUPTED: INTERRUPTED}
  record.state = known.get(code, INTERRUPTED if outcome["stopped"] else FAILED)
  record.message = "" if record.state in (DONE, INTERRUPTED) else job.last_words(workdir)[:1000]


def scores(workdir: pathlib.Path, asked: str = "") -> tuple[str, bool, list[tuple[int, float]]] | None:
  """(metric, whether larger is better, (step, value) of every evaluation so far); None where none holds the metric.

  asked: the metric; '' takes the main one of those recorded. No other stands in for one that is not recorded.
  """
  evaluations = list(_evaluations(workdir / "metrics.jsonl"))
  recorded = {name for _, values in evaluations for name in values}
  choice = headline(recorded, asked, _main_metric(workdir / "evaluation"))
  if choice is None or (asked and asked not in recorded):
    return None
  return *choice, [(step, values[choice[0]]) for step, values in evaluations if choice[0] in values]


def seconds_per_step(workdir: pathlib.Path) -> float | None:
  """Of all a run has done so far, compilation and evaluations included; None where it has measured none."""
  path, last = workdir / "metrics.jsonl", dict[str, Any]()
  if path.is_file():
    with path.open(encoding="utf-8", errors="replace") as lines:
      for line in lines:
        last = json_line(line) if '"time/elapsed_s"' in line else last
  step, seconds = last.get("step"), last.get("time/elapsed_s")
  return seconds / step if isinstance(step, int) and step > 0 and isinstance(seconds, float) else None


def _main_metric(folder: pathlib.Path) -> tuple[str, bool] | None:
  """What the run's task is judged by, as its evaluations say."""
  path = next(folder.glob("step_*.json"), None)
  try:
    return judged_by(read_json(path)) if path else None
  except (OSError, DataError, AttributeError):
    return None


def _evaluations(path: pathlib.Path) -> Iterator[tuple[int, dict[str, float]]]:
  if not path.is_file():
    return
  with path.open(encoding="utf-8", errors="replace") as lines:
    for line in lines:
      record = json_line(line) if '"evaluation/' in line else {}
      if isinstance(record.get("step"), int):
        values = {name.removeprefix("evaluation/"): value for name, value in record.items() if "evaluation/" in name}
        yield record["step"], {name: math.nan if value is None else value for name, value in values.items()}
