"""A grid: every point of a space runs once. What is done is skipped, what failed is tried again, the rest goes on."""

from collections.abc import Sequence
import dataclasses
import time

from jpmhc_jax.config import load as configs
from jpmhc_jax.core.errors import UserError
from jpmhc_jax.sweeps import executors, job, ledger
from jpmhc_jax.sweeps.plan import Planned
from jpmhc_jax.sweeps.pool import Pool, Signals


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
