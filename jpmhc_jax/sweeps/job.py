"""One run as a job: the train command in its own process, its log, its lock and its outcome on disk.

Everything that a later start must know lies in the run's folder, written by the job itself, so it survives the death of
the process that started the sweep: `job.lock` (held while the run is on), `outcome.json` (how it ended), `log.txt`.
A file `stop` asks the job to end: the training gets SIGTERM, saves its state and exits with 75.
"""

from collections.abc import Iterator, Mapping
import contextlib
import datetime
import fcntl
import os
import pathlib
import shlex
import subprocess
import time
from typing import Any, IO

import submitit

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.files import Staged, to_json, write_atomically
from jpmhc_jax.core.objects import ObjectPath
from jpmhc_jax.core.reading import read_json
from jpmhc_jax.training import lease

DONE, BAD_INPUT, DIVERGED, INTERRUPTED = 0, 2, 3, 75
POLL_S, STORE_POLL_S = 0.2, 5.0


class TrainJob:
  """A picklable job: a command, and what it changes in the process's environment (None unsets a variable)."""

  def __init__(self, workdir: pathlib.Path, command: tuple[str, ...], environment: Mapping[str, str | None]):
    self.workdir, self.command, self.environment = workdir, command, dict(environment)
    self._process: subprocess.Popen[bytes] | None = None

  def __call__(self) -> int:
    """Runs the command to its end and returns its exit code. One run is in one place at a time."""
    self.workdir.mkdir(parents=True, exist_ok=True)
    if submitit.JobEnvironment().global_rank:
      return self._run(())  # the first process of a multi-process run keeps the books
    with lock(self.workdir) as held:
      if held is None:
        return INTERRUPTED  # it is on elsewhere, and whoever waits for its outcome will find it
      started = _now()
      code = self._run((held.fileno(),))
      record = {"exit_code": code, "stopped": _stop_file(self.workdir).exists(), "started": started, "ended": _now()}
      write_atomically(self.workdir / "outcome.json", to_json(record, indent=2) + "\n")
    return code

  def checkpoint(self) -> submitit.helpers.DelayedSubmission:
    """SLURM preempts the job or its time is up: the training saves, and the same job is queued again."""
    if self._process is not None:
      self._process.terminate()
      self._process.wait()
    return submitit.helpers.DelayedSubmission(TrainJob(self.workdir, self.command, self.environment))

  def _run(self, kept: tuple[int, ...]) -> int:
    """`kept`: the lock's descriptor, which the training holds too, so that the lock outlives a killed job."""
    environment = {name: value for name, value in {**os.environ, **self.environment}.items() if value is not None}
    with contextlib.closing(Log(self.workdir)) as log:
      log.file.write(f"\n# {_now()}: {shlex.join(self.command)}\n".encode())
      log.file.flush()
      self._process = subprocess.Popen(
        self.command, stdout=log.file, stderr=log.file, env=environment, pass_fds=kept, start_new_session=True
      )
      asked = False
      while self._process.poll() is None:
        if not asked and _stop_file(self.workdir).exists():
          self._process.terminate()
          asked = True
        time.sleep(_poll_s(self.workdir))
        log.send()
    return self._process.returncode


class Log:
  """log.txt of a run, to add to: a store gets the whole of it whenever it has grown."""

  def __init__(self, workdir: pathlib.Path):
    self._staged, path = Staged(workdir), workdir / "log.txt"
    here = self._staged.here / "log.txt"
    if here != path and path.is_file():
      here.write_bytes(path.read_bytes())
    self.file, self._size = here.open("ab"), 0

  def send(self) -> None:
    """Brings what was written to the run's folder."""
    size = os.fstat(self.file.fileno()).st_size
    if size > self._size:
      self._staged.send()
      self._size = size

  def close(self) -> None:
    """The same a last time."""
    self.file.close()
    self._staged.close()


def _poll_s(workdir: pathlib.Path) -> float:
  return STORE_POLL_S if isinstance(workdir, ObjectPath) else POLL_S


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[IO[bytes] | None]:
  """Holds the run's lock inside the block and yields its file; yields None when another process holds it.

  In a store the lease of the training itself is the lock, and the file an empty one.
  """
  if isinstance(workdir, ObjectPath):
    with open(os.devnull, "rb") as file:
      yield file
    return
  with (workdir / "job.lock").open("ab") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield None
      return
    yield file


def is_running(workdir: pathlib.Path) -> bool:
  """Whether a process holds the run's lock."""
  if isinstance(workdir, ObjectPath):
    return lease.is_held(workdir)
  if not (workdir / "job.lock").exists():
    return False
  with lock(workdir) as held:
    return held is None


def outcome(workdir: pathlib.Path) -> dict[str, Any] | None:
  """How the last job of the run ended; None when none has, or what it wrote is damaged."""
  try:
    record = read_json(workdir / "outcome.json")
  except (FileNotFoundError, DataError):
    return None
  return record if isinstance(record, dict) and set(record) >= {"exit_code", "stopped", "started", "ended"} else None


def ask_to_stop(workdir: pathlib.Path) -> None:
  """The job's training will save and end."""
  _stop_file(workdir).touch()


def prepare(workdir: pathlib.Path) -> None:
  """Forgets how the run ended last and that it was asked to stop, before it is started again."""
  workdir.mkdir(parents=True, exist_ok=True)
  _stop_file(workdir).unlink(missing_ok=True)
  (workdir / "outcome.json").unlink(missing_ok=True)


def last_words(workdir: pathlib.Path, lines: int = 1) -> str:
  """The end of the run's log: where an error message stands."""
  path = workdir / "log.txt"
  if not path.is_file():
    return ""
  with path.open("rb") as file:
    file.seek(max(0, path.stat().st_size - 20_000))
    written = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
  return "\n".join(written[-lines:])


def _stop_file(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / "stop"


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
