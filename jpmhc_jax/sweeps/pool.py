"""A pool of jobs, several at a time, each watched to its end: retries, stops, adoption of jobs that run already.

A grid runs every point of a space once in it: what is done is skipped, what failed is tried again, the rest goes on.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import datetime
import signal
import threading
import time
from typing import Any

from jpmhc_jax.config import load as configs
from jpmhc_jax.core.errors import UserError
from jpmhc_jax.core.terminal import duration
from jpmhc_jax.sweeps import executors, job, ledger
from jpmhc_jax.sweeps.plan import Planned

Say = Callable[[str], None]
HOPELESS = (job.BAD_INPUT, job.DIVERGED)  # the same command ends the same way


@dataclasses.dataclass
class _Active:
  run: Planned
  record: ledger.Record
  slot: int
  handle: Any  # a submitit job; None for a run that another sweep started
  stopping: bool = False


class Pool:
  """At most `jobs` runs at once (0 = no limit). A run that fails for no reason of its own is started again."""

  def __init__(self, executor: executors.Executor, book: ledger.Ledger, *, jobs: int, retries: int, say: Say):
    self.executor, self.book, self.jobs, self.retries, self.say = executor, book, jobs, retries, say
    self.active: list[_Active] = []
    self.expected, self.over = 0, 0  # runs that are to end, 0 where that is not known; those that have
    self.seconds = list[float]()  # that each of these took

  @property
  def has_room(self) -> bool:
    """Whether another run may start now."""
    return not self.jobs or len(self.active) < self.jobs

  def start(self, run: Planned) -> None:
    """Starts a run, or waits for it where it is on already."""
    record = self.book.record(run, executors.command(self.executor.config, run))
    if job.is_running(run.workdir):
      self.say(f"{run.name}: is running already, waiting for it")
      self.active.append(_Active(run, record, -1, None))
      record.state, record.attempts = ledger.RUNNING, 1
    else:
      record.attempts = 0
      queued = self.executor.queued(record.job_id) if record.state == ledger.RUNNING else None
      self._submit(run, record, queued)
    self.book.save()

  def _submit(self, run: Planned, record: ledger.Record, queued: Any = None) -> None:
    slot = executors.free_slot([active.slot for active in self.active])
    if queued is None:
      job.prepare(run.workdir)
      record.attempts += 1
      self.say(f"{run.name}: started" if record.attempts == 1 else f"{run.name}: started again")
    handle = queued or self.executor.submit(run, slot)
    record.state, record.job_id, record.exit_code, record.message = ledger.RUNNING, str(handle.job_id), None, ""
    self.active.append(_Active(run, record, slot, handle))

  def poll(self) -> list[tuple[Planned, ledger.Record]]:
    """Runs that ended since the last call, for good: those worth another attempt are started again instead."""
    over = [active for active in self.active if self._is_over(active)]
    ended = []
    for active in over:
      self.active.remove(active)
      run, record = active.run, active.record
      ledger.judge(run.workdir, record)
      again = record.state in (ledger.FAILED, ledger.INTERRUPTED) and record.exit_code not in HOPELESS
      if again and not active.stopping and record.attempts <= self.retries:
        self.say(f"{run.name}: {record.state} {record.message}".rstrip())
        self._submit(run, record)
      else:
        self.seconds += _seconds(record)
        self.say(", ".join(filter(None, (_farewell(run, record, self.book.metric), self._outlook()))))
        ended.append((run, record))
    if over:
      self.book.save()
    return ended

  def _outlook(self) -> str:
    """'2 of 6 over, about 4 min 10 s left': what is left takes as long as what has ended, as many at a time."""
    if not self.expected:
      return ""
    self.over += 1
    remaining = self.expected - self.over
    if not remaining or not self.seconds:
      return f"{self.over} of {self.expected} over"
    at_once = min(self.jobs or remaining, remaining)
    about = sum(self.seconds) / len(self.seconds) * -(-remaining // at_once)
    return f"{self.over} of {self.expected} over, about {duration(about)} left"

  def stop(self, run: Planned) -> None:
    """Asks a run to save and end."""
    for active in self.active:
      if active.run.key == run.key and not active.stopping:
        active.stopping = True
        job.ask_to_stop(run.workdir)
        if active.handle is not None and not job.is_running(run.workdir):
          active.handle.cancel(check=False)  # still waiting in a queue

  def stop_all(self) -> None:
    """Asks every run to save and end, and waits until all have."""
    for active in list(self.active):
      self.stop(active.run)
    while self.active:
      self.poll()
      time.sleep(job.POLL_S)

  def _is_over(self, active: _Active) -> bool:
    # The lock has the last word: a training may outlive its job, when that alone is killed.
    ended = active.handle is None or self.executor.has_ended(active.handle, active.run.workdir)
    return ended and not job.is_running(active.run.workdir)


def _farewell(run: Planned, record: ledger.Record, metric: str) -> str:
  """'mixer=iso: done, step 400, exact_accuracy 0.95, 1 min 30 s'."""
  code = f" (exit code {record.exit_code})" if record.exit_code else ""
  reason = f": {record.message}" if record.message else ""
  scores = ledger.scores(run.workdir, metric)
  score = f"step {scores[2][-1][0]}, {scores[0]} {scores[2][-1][1]:.4g}" if scores else ""
  took = "".join(duration(seconds) for seconds in _seconds(record))
  return ", ".join(filter(None, (f"{record.name}: {record.state}{code}{reason}", score, took)))


def _seconds(record: ledger.Record) -> list[float]:
  """How long the last attempt took; nothing where its job left no word of that."""
  if not (record.started and record.ended):
    return []
  started, ended = (datetime.datetime.fromisoformat(moment) for moment in (record.started, record.ended))
  return [(ended - started).total_seconds()]


class Signals:
  """SIGINT and SIGTERM as a flag that the sweep looks at; a second one has its usual effect."""

  def __init__(self) -> None:
    self.received: signal.Signals | None = None
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> "Signals":
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._stack.callback(signal.signal, number, signal.signal(number, self._note))
    return self

  def _note(self, number: int, frame: Any) -> None:
    self.received = signal.Signals(number)
    self._stack.close()

  def __exit__(self, *exception: object) -> None:
    self._stack.close()


@dataclasses.dataclass(frozen=True)
class Ending:
  """How a start of a sweep ended: every run with its record, and the signal that cut it off."""

  runs: Sequence[tuple[Planned, ledger.Record]]
  signal: str = ""
  refused: int = 0  # points of a search that no run could be made of

  @property
  def exit_code(self) -> int:
    """0 when all runs are done, 75 after a signal, 2 when no point of a search could run, else 1."""
    if self.signal:
      return job.INTERRUPTED
    if self.refused and not self.runs:
      return job.BAD_INPUT
    return 0 if not self.refused and all(record.state in ledger.OVER for _, record in self.runs) else 1


def run_all(pool: Pool, runs: Sequence[Planned]) -> Ending:
  """Runs what is not done yet, `pool.jobs` at a time. No failure stops the others."""
  records = [refresh(pool, run) for run in runs]
  waiting = [run for run, record in zip(runs, records, strict=True) if record.state not in ledger.OVER]
  skipped = len(runs) - len(waiting)
  pool.expected = len(waiting)
  pool.say(f"{len(runs)} runs" + (f", {skipped} done already" if skipped else ""))
  with Signals() as signals:
    while (waiting or pool.active) and not signals.received:
      while waiting and pool.has_room:
        pool.start(waiting.pop(0))
      pool.poll()
      time.sleep(job.POLL_S)
    if signals.received:
      pool.say(f"{signals.received.name}: asking the running jobs to save and end; start the same sweep to go on")
      pool.stop_all()
  return Ending(list(zip(runs, records, strict=True)), signals.received.name if signals.received else "")


def refresh(pool: Pool, run: Planned) -> ledger.Record:
  """The run's record, brought up to date with what its job left on disk while no sweep was watching.

  Raises UserError when the run's folder belongs to something else.
  """
  path = run.workdir / "config.json"
  changed = configs.differences(configs.restore(path), run.config) if path.is_file() else []
  if changed:
    rows = ", ".join(f"{name}: {old!r} there, {new!r} now" for name, old, new in changed)
    raise UserError(f"{run.workdir} holds another run ({rows}); use a new --workdir for this sweep")
  record = pool.book.record(run, executors.command(pool.executor.config, run))
  unseen = record.state in (ledger.RUNNING, ledger.PENDING) and job.outcome(run.workdir) is not None
  if unseen and not job.is_running(run.workdir):
    ledger.judge(run.workdir, record)
  return record
