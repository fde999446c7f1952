"""How long the rest of a sweep takes: by what its runs have recorded, else by the first steps of one of them, here."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.reading import json_line
from jpmhc_jax.core.terminal import duration
from jpmhc_jax.sweeps import executors, job, ledger
from jpmhc_jax.sweeps.plan import Planned

STEPS, PATIENCE_S = 8, 300.0  # that are measured; in which the first must come
# Of a run that is watched for its first steps: a line each, and nothing else is done.
_BARE = (
  "logging.every=1", "logging.diagnostics_every=0", "logging.tensorboard=False", "logging.wandb=False",
  "evaluation.every=0", "checkpoint.every=0",
)  # fmt: skip
_PROGRAM = (sys.executable, "-m", "jpmhc_jax")


@dataclasses.dataclass(frozen=True)
class Pace:
  """Seconds until the first step, and of every step; `source` says where they are from."""

  start: float
  step: float
  source: str

  def seconds(self, run: Planned) -> float:
    """Of a whole run at this pace."""
    return min(self.start + self.step * run.config.steps, run.config.budget_seconds or math.inf)


def estimate(
  runs: Sequence[Planned], records: Mapping[str, ledger.Record], config: str, executor: str, jobs: int
) -> str:
  """'4 of 6 runs to train, about 5 min 20 s one after the other: …'. jobs: runs at a time, 0 for all.

  Where no run has recorded a step, one is started in a temporary folder, here, unless the runs train elsewhere.
  """
  pending = [run for run in runs if run.key not in records or records[run.key].state not in ledger.OVER]
  words = f"{len(pending)} of {len(runs)} runs to train"
  if not pending:
    return words
  pace = recorded(runs)
  if pace is None and executor != "local":
    return f"{words}; no step has been recorded in this --workdir, and they train elsewhere: start one, and ask again"
  try:
    pace = pace or measured(pending[0], config)
  except DataError as error:
    return f"{words}; {error}"
  except KeyboardInterrupt:
    return f"{words}; interrupted before a step was measured"
  at_once = min(jobs or len(pending), len(pending))
  total = sum(map(pace.seconds, pending)) / at_once
  order = f"{at_once} at a time" if at_once > 1 else "one after the other"
  return f"{words}, about {duration(total)} {order}: {duration(pace.step)} a step, {pace.source}"


def recorded(runs: Sequence[Planned]) -> Pace | None:
  """The mean over the runs that have recorded steps, all that they did in them included; None without one."""
  known = [seconds for run in runs if (seconds := ledger.seconds_per_step(run.workdir)) is not None]
  return Pace(0.0, statistics.mean(known), f"measured in {len(known)} of them") if known else None


def measured(run: Planned, config: str, program: tuple[str, ...] = _PROGRAM, patience: float = PATIENCE_S) -> Pace:
  """The first steps of a run, which is then stopped. Raises DataError, with the reason, where none came."""
  print(f"measuring the first steps of {run.name} …", file=sys.stderr, flush=True)
  with tempfile.TemporaryDirectory() as name:
    folder, began = pathlib.Path(name), time.monotonic()
    bare = tuple(f"--config.{field}" for field in (*_BARE, f"budget_seconds={patience}"))
    watched = dataclasses.replace(run, workdir=folder, overrides=(*run.overrides, *bare))
    with _training((*program, *executors.arguments(config, watched)), folder) as process:
      while len(_steps(folder)) < STEPS and process.poll() is None and time.monotonic() < began + patience:
        time.sleep(job.POLL_S)
      lines, code, waited = _steps(folder), process.poll(), time.monotonic() - began
    if not lines:
      raise DataError(job.last_words(folder) if code else f"{run.name} came to no second step in {duration(patience)}")
  step = statistics.median(line["time/step_ms"] for line in lines) / 1e3
  return Pace(max(waited - step * len(lines), 0.0), step, f"measured in {run.name}; evaluations come on top")


def _steps(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl that hold the time of a step."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
  return [values for line in lines if "time/step_ms" in (values := json_line(line))]


@contextlib.contextmanager
def _training(command: tuple[str, ...], folder: pathlib.Path) -> Iterator[subprocess.Popen[bytes]]:
  """The process inside the block; its output is the folder's log.txt."""
  with (folder / "log.txt").open("ab") as log:
    process = subprocess.Popen(command, stdout=log, stderr=log)
  try:
    yield process
  finally:
    process.kill()
    process.wait()
