"""The training loop: dispatch a step, read back the one before, write, save and evaluate when due.

Order of one turn, step k counting finished steps:
  1. fetch batch(k) (built and placed ahead) and dispatch the step; the device works while the host goes on
  2. read back the metrics of the step before (never of the one in flight)
  3. every `logging.every` steps: write scalars
  4. save, when due, before every evaluation, and when asked to stop
  5. evaluate, when due; every `logging.diagnostics_every` steps: mixer diagnostics
Everything random is a function of (seed, step) and the data position is the step, so a restart at a checkpoint repeats
the run bit for bit. A restart at k begins with turn k's evaluation if that was not finished.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import pathlib
import time
from typing import Any, Protocol, runtime_checkable

import jax

from jpmhc_jax.config import schema
from jpmhc_jax.connections.diagnostics import alarms
from jpmhc_jax.core import places
from jpmhc_jax.core.files import storing, sync_folder
from jpmhc_jax.core.metrics import larger_is_better
from jpmhc_jax.core.terminal import duration
from jpmhc_jax.data import Dataset, loading
from jpmhc_jax.data.loading import DevicePrefetcher
from jpmhc_jax.training import inherit, lease, nonfinite, progress
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.checkpoint import Checkpoints, Restored
from jpmhc_jax.training.hosts import distributed
from jpmhc_jax.training.interrupts import Interrupted, Interrupts
from jpmhc_jax.training.mesh import share_of
from jpmhc_jax.training.nonfinite import NonFiniteLossError, Policy, RollBack
from jpmhc_jax.training.optimizer import config_schedule
from jpmhc_jax.training.state import Setup, TrainState
from jpmhc_jax.training.step import make_train_step, Metrics, OF_THE_STEP, StepFunction
from jpmhc_jax.training.telemetry import Telemetry
from jpmhc_jax.training.workdir import claim_workdir, claimed, describe_environment, save_environment
from jpmhc_jax.training.writers import Writers

__all__ = ["claim_workdir", "claimed", "Diagnose", "Evaluate", "Interrupted", "NonFiniteLossError", "Run", "train"]


@runtime_checkable
class Evaluate(Protocol):
  """Evaluates a state, writes evaluation/step_N.json and returns its scalar metrics."""

  main_metric: str
  higher_is_better: bool

  def __call__(self, state: TrainState, step: int) -> dict[str, float]: ...


Diagnose = Callable[[TrainState], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run, built once from config, data and workdir."""

  setup: Setup
  dataset: Dataset
  workdir: pathlib.Path
  evaluate: Evaluate
  diagnose: Diagnose | None
  profile: range = range(0)  # steps to trace
  quiet: bool = False  # prints nothing

  @property
  def config(self) -> schema.Config:
    """The resolved config of the run."""
    return self.setup.config


def train(run: Run, command: list[str]) -> TrainState:
  """Trains to `config.steps`, resuming from the newest intact checkpoint of the workdir. Returns the final state.

  Raises NonFiniteLossError when the loss is no number and `optimizer.nonfinite` does not let the run go on, Interrupted
  after SIGTERM or SIGINT (both leave a checkpoint to resume from), StorageError when something cannot be written,
  CheckpointError when a checkpoint does not fit, WorkdirError when another process trains in the workdir.
  """
  with claimed(run.config, run.workdir):
    return _train(run, command)


def _train(run: Run, command: list[str]) -> TrainState:
  config = run.config
  asked, main = config.checkpoint.best_metric, run.evaluate.main_metric
  checkpoints = Checkpoints(
    run.workdir / "checkpoints",
    keep=config.checkpoint.keep,
    best_metric=asked or main,
    higher_is_better=run.evaluate.higher_is_better if asked in ("", main) else larger_is_better(asked),
  )
  step_function, policy = make_train_step(run.setup), Policy(config.optimizer)
  offset: int | None = None
  try:
    with Interrupts() as interrupts:
      while True:
        try:
          return _attempt(run, command, checkpoints, step_function, policy, interrupts, offset)
        except RollBack as fault:
          offset = fault.offset
  finally:
    checkpoints.close()


def _attempt(
  run: Run,
  command: list[str],
  checkpoints: Checkpoints,
  step_function: StepFunction,
  policy: Policy,
  interrupts: Interrupts,
  offset: int | None,
) -> TrainState:
  """From the newest checkpoint, or from nothing, to the end or a fault. offset: batches to skip, if not as saved."""
  config, console = run.config, progress.output(run.quiet)
  with progress.working(console, "restoring" if checkpoints.steps() else "making the first state"):
    restored, facts = _start(run, checkpoints)
    start = restored.step
    clock = restored.clock if offset is None else restored.clock | {"offset": offset}
    observer = Telemetry(run.setup, run.dataset, run.workdir, start, run.profile)
  if distributed.is_primary():
    described = describe_environment(config, command) | observer.facts() | facts
    with storing(str(run.workdir / "environment.json")):
      save_environment(described, run.workdir / "environment.json")
  share = share_of(meshes.batch_sharding(run.setup.mesh), config.batch_size)
  stream = loading.load(run.dataset, start + clock["offset"], share.rows, config.data.prefetch, config.data.workers)
  with (
    contextlib.closing(observer),
    contextlib.closing(Writers(run.workdir, config, start)) as writers,
    contextlib.closing(DevicePrefetcher(stream, share.place, threads=config.data.prefetch > 0)) as batches,
    progress.ProgressBar(config.steps, start, console, config.logging.every) as bar,
  ):
    for note in restored.notes:
      bar.say(note)
    if start:
      bar.say(f"resuming at step {start:,}" if start < config.steps else f"finished at step {start:,} already")
    if 0 < run.profile.stop <= start:
      bar.say(f"--profile: steps {run.profile.start} to {run.profile.stop - 1} are done already; nothing is traced")
    loop = _Loop(run, step_function, policy, checkpoints, writers, bar, interrupts, clock, observer)
    return loop.run(restored.state, start, batches)


def fresh_clock() -> dict[str, Any]:
  """What the host knows before the first step: seconds trained, batches skipped, metrics since the last log line."""
  return {"seconds": 0.0, "offset": 0, "window": []}


def _start(run: Run, checkpoints: Checkpoints) -> tuple[Restored, dict[str, Any]]:
  """(the state to go on from, what environment.json says of it)."""
  config, clock = run.config, fresh_clock()
  if checkpoints.steps():
    restored = checkpoints.restore(run.setup, run.dataset)
    notes = (*restored.notes, *_continued(run.setup, restored.step, restored.planned))
    return dataclasses.replace(restored, notes=notes), {}
  if not config.init_from:
    return Restored(0, run.setup.create(), clock, config.steps), {}
  source = inherit.read_source(places.stored(config.init_from))
  state, inheritance = inherit.started(run.setup, run.dataset, source)
  facts = {"init_from": dataclasses.asdict(inheritance)}
  return Restored(0, state, clock, config.steps, inheritance.sentences()), facts


def _continued(setup: Setup, step: int, planned: int) -> tuple[str, ...]:
  """What it means that the run is longer now than when its checkpoint was written."""
  config = setup.config
  if config.steps == planned:
    return ()
  was, now = (float(config_schedule(config.optimizer, steps)(step)) for steps in (planned, config.steps))
  rate = f"{now:.3g}, which was {was:.3g} in the shorter run" if was != now else f"{now:.3g} as before"
  return (
    f"steps was {planned:,} and is {config.steps:,}: schedule and annealing are those of the longer run from here on; "
    f"the next learning rate is {rate}",
  )


@dataclasses.dataclass(frozen=True)
class _Dispatched:
  """A step that the devices may still be working on."""

  finished: int  # steps, this one included
  metrics: Metrics
  batch: dict[str, jax.Array]


class _Loop:
  """State of the host side between two steps: metric window, clock, the step in flight."""

  def __init__(
    self,
    run: Run,
    step_function: StepFunction,
    policy: Policy,
    checkpoints: Checkpoints,
    writers: Writers,
    bar: progress.ProgressBar,
    interrupts: Interrupts,
    clock: dict[str, Any],
    observer: Telemetry,
  ):
    self.parts, self.step_function, self.policy = run, step_function, policy
    self.checkpoints, self.writers, self.bar, self.interrupts = checkpoints, writers, bar, interrupts
    self.clock, self.observer = clock, observer
    self.began = time.monotonic()
    self.window: list[dict[str, float]] = list(clock["window"])
    self.pending: _Dispatched | None = None
    self.over = False

  def run(self, state: TrainState, start: int, batches: DevicePrefetcher) -> TrainState:
    config, goodput, profiler = self.parts.config, self.observer.goodput, self.observer.profiler
    self.over = self._is_over(start)
    if start and not self.checkpoints.evaluated(start):
      self._look(state, start)
    goodput.switch("compile")
    if not self.over:
      self.bar.say("compiling the step …")
      self.bar.begin("compiling")
    turns = zip(range(start, start if self.over else config.steps), batches, strict=False)
    for step, (_, batch) in goodput.waiting(turns, self._devices_busy):
      with jax.transfer_guard("disallow"), profiler.step(step):
        state, metrics = self.step_function(state, batch)
      batches.begin()
      if step == start:
        jax.block_until_ready(state.step)
        seconds = time.monotonic() - self.began
        self.writers.write(step + 1, {"time/compile_s": seconds})
        self.bar.end()
        self.bar.say(f"compiled in {duration(seconds)}; the first step is done")
        goodput.switch("step")
      profiler.finish(step, metrics)
      self._read_back(state)
      self.pending = _Dispatched(step + 1, metrics, batch)
      self.bar.advance(step)
      done, stopping = step + 1, self.interrupts.requested()
      self.over = self._is_over(done)
      if stopping or self._due(done, config.evaluation.every) or self._due(done, config.checkpoint.every):
        self._read_back(state)
        self._save(state, done)
      if stopping:
        raise Interrupted(f"{self.interrupts.name} at step {done}: saved; run the same command to resume")
      self._look(state, done)
      if self.over:
        break
    self._conclude(int(state.step))
    return state

  def _evaluated(self, metrics: Mapping[str, float], averaged: bool) -> str:
    """What the evaluation says, and of which parameters."""
    run, name = self.parts, self.parts.evaluate.main_metric
    if name not in metrics:
      return "answered the test inputs; no outputs are known, so nothing is scored"
    coverage = run.dataset.coverage(run.config.evaluation.max_examples)
    remark = f" (PARTIAL: {coverage})" if coverage.partial else ""
    raw = metrics.get(f"unaveraged/{name}")
    beside = "" if raw is None else f"; {raw:.4g} of the parameters themselves"
    return f"{name} {metrics[name]:.4g}{' of the averaged parameters' if averaged else ''}{beside}{remark}"

  def _conclude(self, step: int) -> None:
    """The last lines: how long it took and what was best."""
    seconds = self.observer.goodput.seconds
    parts = ", ".join(f"{name} {duration(seconds[name])}" for name in ("compile", "step", "evaluate", "save"))
    self.bar.say(f"step {step:,} of {self.parts.config.steps:,} after {duration(self._elapsed())} ({parts})")
    if best := self.checkpoints.best():
      (number, score), checkpoints = best, self.checkpoints
      folder = checkpoints.folder / str(number)
      self.writers.keep(folder)
      self.bar.say(f"best       {checkpoints.best_metric} {score:.4g} at step {number:,}: {folder}")

  def _elapsed(self) -> float:
    """Seconds of this run, all its starts together."""
    return self.clock["seconds"] + time.monotonic() - self.began

  def _is_over(self, step: int) -> bool:
    config = self.parts.config
    if step >= config.steps or not config.budget_seconds:
      return step >= config.steps
    # Clocks differ, and all processes must stop at the same step; asking costs a collective, so not at every step.
    if jax.process_count() > 1 and step % max(config.logging.every, 1):
      return False
    return distributed.from_primary(lambda: config.budget_seconds <= self._elapsed())

  def _due(self, step: int, every: int) -> bool:
    return self.over or (every > 0 and step % every == 0)

  def _devices_busy(self) -> bool:
    return self.pending is not None and not self.pending.metrics.values.is_ready()  # type: ignore[attr-defined]

  def _read_back(self, state: TrainState) -> None:
    if self.pending is None:
      return
    pending, self.pending = self.pending, None
    values = pending.metrics.scalars()
    if values["finite"]:
      self.policy.passed()
      self.window.append(values)
    else:
      self._not_finite(pending, values, state)
      self.window.append({"finite": 0.0})
    self.observer.finished(pending.finished)
    if self._due(pending.finished, self.parts.config.logging.every):
      self._log(pending.finished, pending.metrics.layer_norms)

  def _not_finite(self, pending: _Dispatched, values: Mapping[str, float], state: TrainState) -> None:
    run, step = self.parts, pending.finished
    what = f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']}"
    saved = max(self.checkpoints.steps(), default=0)
    verdict = self.policy.judge(saved)
    if verdict == "rollback":
      self.bar.say(f"{what}: back to step {saved}; the batches of steps {saved + 1} to {step} are skipped")
      raise RollBack(step + self.clock["offset"] - saved)
    if verdict == "stop":
      diagnosis = nonfinite.diagnose(run.setup, state, pending.batch, run.diagnose)
      raise NonFiniteLossError(f"{what}. {diagnosis}. The last checkpoint is intact. {nonfinite.REMEDY}")
    self.bar.say(f"{what}: update dropped")

  def _log(self, step: int, norms: jax.Array) -> None:
    lease.check()
    config = self.parts.config
    good = [values for values in self.window if values["finite"]]
    scalars: dict[str, float] = {}
    if good:
      sums = {name: sum(v[name] for v in good) for name in good[0] if name not in OF_THE_STEP}
      means = self.parts.setup.task.summarise(sums, config.batch_size * len(good))
      scalars |= {f"train/{name}": value for name, value in means.items()}
      scalars["train/gradient_norm"] = good[-1]["gradient_norm"]
    if len(good) < len(self.window):
      scalars["train/skipped_steps"] = float(len(self.window) - len(good))
    scalars["time/elapsed_s"] = self._elapsed()
    scalars["train/learning_rate"] = self.parts.setup.learning_rate(step - 1)
    scalars |= self.observer.scalars(step, norms)
    if config.budget_seconds and "time/eta_s" in scalars:
      scalars["time/eta_s"] = min(scalars["time/eta_s"], max(config.budget_seconds - self._elapsed(), 0.0))
    self.writers.write(step, scalars)
    self.bar.show(step, scalars)
    self.window = []

  def _save(self, state: TrainState, step: int) -> None:
    """Blocks until it is on disk: the next step donates the state's buffers.

    So is all that it covers, before it counts: a restart here writes no earlier line of the run again.
    """
    lease.confirm()
    self._settle(step)
    run, clock = self.parts, self.clock | {"seconds": self._elapsed(), "window": self.window}
    with self.observer.goodput("save"):
      self.checkpoints.save(step, state, config=run.config, dataset=run.dataset, clock=clock)
    self.observer.paused()

  def _settle(self, step: int) -> None:
    self.writers.sync()
    self.observer.goodput.save(step, durable=True)
    with storing(str(self.parts.workdir)):
      sync_folder(self.parts.workdir)

  def _look(self, state: TrainState, step: int) -> None:
    """Evaluation and mixer diagnostics, when due."""
    run, goodput = self.parts, self.observer.goodput
    metrics: dict[str, float] = {}
    if self._due(step, run.config.evaluation.every):
      began = time.monotonic()
      with goodput("evaluate"), self.bar.during("evaluating"):
        metrics = run.evaluate(state, step)
      self.observer.evaluated(time.monotonic() - began)
      self.writers.write(step, {f"evaluation/{name}": value for name, value in metrics.items()})
      self.writers.show(step)
      self.bar.say(f"step {step}: evaluation {self._evaluated(metrics, averaged=state.ema is not None)}")
    if run.diagnose and (metrics or self._due(step, run.config.logging.diagnostics_every)):
      began = time.monotonic()
      with goodput("diagnose"):
        values = run.diagnose(state)
        self.writers.write(step, values)
      self.observer.diagnosed(step, time.monotonic() - began)
      self.bar.warn(step, alarms(values, run.setup.task.alarms))
      self.observer.paused()
    if metrics:
      self.writers.sync()
      if run.evaluate.main_metric in metrics:  # else nothing could be scored
        self.checkpoints.rank(step, metrics)
      self.observer.paused()
