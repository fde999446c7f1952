"""The training loop.

Order of one turn, step k counting finished steps:
  1. fetch batch(k) (prefetched) and dispatch the step; the device works while the host goes on
  2. read back the metrics of the step before (never of the one in flight)
  3. every `logging.every` steps: write scalars; every `logging.diagnostics_every`: mixer diagnostics
  4. evaluate, when due          5. save, when due and after every evaluation, whose metrics rank the checkpoint
Everything random is a function of (seed, step) and the data position is the step, so a restart at a checkpoint repeats
the run bit for bit.
"""

from collections.abc import Callable, Generator, Mapping
import contextlib
import dataclasses
import itertools
import math
import pathlib
import signal
import time
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from jpmhc_jax.core import config as configs
from jpmhc_jax.core import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.data import Dataset, loading
from jpmhc_jax.training import environment
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.checkpoint import Checkpoints
from jpmhc_jax.training.observation import Observer
from jpmhc_jax.training.progress import ProgressBar
from jpmhc_jax.training.state import Setup, TrainState
from jpmhc_jax.training.step import make_train_step
from jpmhc_jax.training.writers import Writers


@runtime_checkable
class Evaluate(Protocol):
  """Evaluates a state, writes evaluation/step_N.json and returns its scalar metrics."""

  main_metric: str
  higher_is_better: bool

  def __call__(self, state: TrainState, step: int) -> dict[str, float]: ...


Diagnose = Callable[[TrainState], Mapping[str, float]]


class NonFiniteLossError(Exception):
  """The loss became NaN or infinite."""


class Interrupted(Exception):
  """The process was asked to stop; the state was saved."""


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run, built once from config, data and workdir."""

  setup: Setup
  dataset: Dataset
  workdir: pathlib.Path
  evaluate: Evaluate
  diagnose: Diagnose | None
  profile: range = range(0)  # steps to trace

  @property
  def config(self) -> schema.Config:
    return self.setup.config


def claim_workdir(config: schema.Config, workdir: pathlib.Path) -> None:
  """Makes the workdir this run's: writes config.json, or checks that the one there is the same.

  Raises ConfigError with the differing fields when the workdir belongs to another config.
  """
  path = workdir / "config.json"
  workdir.mkdir(parents=True, exist_ok=True)
  if not path.is_file():
    configs.save(config, path)
    return
  changed = configs.differences(configs.restore(path), config)
  if changed:
    rows = "\n".join(f"  {name}: {old!r} there, {new!r} now" for name, old, new in changed)
    raise ConfigError(f"{workdir} holds a run with another config; use a new --workdir or undo these fields:\n{rows}")


def train(run: Run, arguments: list[str]) -> TrainState:
  """Trains to `config.steps`, resuming from the latest checkpoint of the workdir. Returns the final state.

  Raises NonFiniteLossError when the loss is no number, Interrupted after SIGTERM or SIGINT (both leave a checkpoint to
  resume from), CheckpointError when a checkpoint does not fit.
  """
  config = run.config
  claim_workdir(config, run.workdir)
  metric = config.checkpoint.best_metric or run.evaluate.main_metric
  checkpoints = Checkpoints(
    run.workdir / "checkpoints",
    keep=config.checkpoint.keep,
    best_metric=metric,
    higher_is_better=run.evaluate.higher_is_better,
  )
  state, start, clock = _start(run, checkpoints)
  observer = Observer(run.setup, run.dataset, run.workdir, start, run.profile)
  described = environment.describe_environment(config, arguments) | observer.facts()
  environment.save(described, run.workdir / "environment.json")
  writers = Writers(run.workdir, config, start)
  try:
    batches = loading.load(run.dataset, start, prefetch=config.data.prefetch)
    with contextlib.closing(batches), ProgressBar(config.steps, start) as bar, _Signals() as signals:
      return _Loop(run, batches, checkpoints, writers, bar, signals, clock, observer).run(state, start)
  finally:
    observer.close()
    checkpoints.close()
    writers.close()


def _start(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, int, dict[str, float]]:
  if not checkpoints.steps():
    return run.setup.create(), 0, {"seconds": 0.0}
  restored = checkpoints.restore(run.setup, list(run.dataset.identifiers))
  return restored.state, restored.step, restored.clock


class _Signals:
  """Turns SIGTERM and SIGINT into a flag that the loop looks at between two steps. A second one kills."""

  def __init__(self) -> None:
    self.received: signal.Signals | None = None
    self._old: dict[signal.Signals, Any] = {}

  def _note(self, number: int, frame: Any) -> None:
    self.received = signal.Signals(number)
    signal.signal(number, self._old[self.received])

  def __enter__(self) -> "_Signals":
    try:
      self._old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: the embedding program keeps its own handlers
      self._old = {}
    return self

  def __exit__(self, *exception: object) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)


class _Loop:
  """State of the host side between two steps: metric window, clock, last evaluation."""

  def __init__(
    self,
    run: Run,
    batches: Generator[tuple[int, dict[str, np.ndarray]], None, None],
    checkpoints: Checkpoints,
    writers: Writers,
    bar: ProgressBar,
    signals: _Signals,
    clock: dict[str, float],
    observer: Observer,
  ):
    self.parts, self.batches, self.checkpoints, self.writers = run, batches, checkpoints, writers
    self.bar, self.signals, self.clock, self.observer = bar, signals, clock, observer
    self.began = time.monotonic()
    self.window: list[dict[str, float]] = []
    self.pending: tuple[int, dict[str, jax.Array]] | None = None  # metrics of the step in flight
    self.evaluation: dict[str, float] = {}
    self.over = False

  def run(self, state: TrainState, start: int) -> TrainState:
    run, config, goodput, profiler = self.parts, self.parts.config, self.observer.goodput, self.observer.profiler
    step_function = make_train_step(run.setup)
    sharding = meshes.batch_sharding(run.setup.mesh)
    left = 0 if start and self._is_over(start) else config.steps - start
    goodput.switch("compile")
    for step, batch in goodput.waiting(itertools.islice(self.batches, left), self._devices_busy):
      on_device = {name: jax.device_put(value, sharding) for name, value in batch.items()}
      with jax.transfer_guard("disallow"), profiler.step(step):
        state, metrics = step_function(state, on_device)
      if step == start:
        jax.block_until_ready(state.step)
        self.writers.write(step + 1, {"time/compile_s": time.monotonic() - self.began})
        goodput.switch("step")
      profiler.finish(step, metrics)
      self._read_back()
      self.pending = (step + 1, metrics)
      self.bar.advance(step)
      done = step + 1
      self.over = self._is_over(done)
      if self._due(done, config.evaluation.every) or self._due(done, config.checkpoint.every) or self.signals.received:
        self._read_back()
        self._evaluate_and_save(state, done)
      elif self._due(done, config.logging.diagnostics_every):
        self._diagnose(state, done)
      if self.signals.received:
        raise Interrupted(f"{self.signals.received.name} at step {done}: saved; run the same command to resume")
      if self.over:
        break
    self._read_back()
    return state

  def _elapsed(self) -> float:
    """Seconds of this run, all its starts together."""
    return self.clock["seconds"] + time.monotonic() - self.began

  def _is_over(self, step: int) -> bool:
    config = self.parts.config
    return step >= config.steps or 0 < config.budget_seconds <= self._elapsed()

  def _due(self, step: int, every: int) -> bool:
    return self.over or (every > 0 and step % every == 0)

  def _devices_busy(self) -> bool:
    return self.pending is not None and not self.pending[1]["lm_loss"].is_ready()

  def _read_back(self) -> None:
    if self.pending is None:
      return
    (step, metrics), self.pending = self.pending, None
    norms = metrics.pop("layer_norms")
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not math.isfinite(values["lm_loss"] + values["gradient_norm"]):
      raise NonFiniteLossError(
        f"step {step}: loss {values['lm_loss']}, gradient norm {values['gradient_norm']}. The last checkpoint is "
        "intact. Lower optimizer.learning_rate, set optimizer.clip_norm=1.0, or choose a norm-preserving "
        "connection.manifold"
      )
    self.window.append(values)
    self.observer.finished(step)
    if self._due(step, self.parts.config.logging.every):
      self._log(step, norms)

  def _log(self, step: int, norms: jax.Array) -> None:
    config = self.parts.config
    sums = {name: sum(v[name] for v in self.window) for name in self.window[0]}
    means = self.parts.setup.kind.summarise(sums, config.batch_size * len(self.window))
    scalars = {f"train/{name}": value for name, value in means.items()}
    scalars["time/elapsed_s"] = self._elapsed()
    scalars["train/gradient_norm"] = self.window[-1]["gradient_norm"]
    scalars["train/learning_rate"] = self.parts.setup.learning_rate(step - 1)
    scalars |= self.observer.scalars(step, norms)
    self.writers.write(step, scalars)
    self.bar.show(step, scalars)
    self.window = []

  def _evaluate_and_save(self, state: TrainState, step: int) -> None:
    run, config, goodput = self.parts, self.parts.config, self.observer.goodput
    self.evaluation = {}  # a checkpoint is ranked by an evaluation of its own step only
    if self._due(step, config.evaluation.every):
      with goodput("evaluate"):
        self.evaluation = run.evaluate(state, step)
      self.writers.write(step, {f"evaluation/{name}": value for name, value in self.evaluation.items()})
      name = run.evaluate.main_metric
      self.bar.say(f"step {step}: evaluation {name} {self.evaluation[name]:.4g}")
      self._diagnose(state, step)
    if self.evaluation or self._due(step, config.checkpoint.every) or self.signals.received:
      with goodput("save"):
        self.checkpoints.save(
          step,
          state,
          config=config,
          identifiers=list(run.dataset.identifiers),
          clock={"seconds": self._elapsed()},
          metrics=self.evaluation,
        )
        # The next step donates the state's buffers: what is being written must be on the host before.
        self.checkpoints.wait()
    self.observer.paused()

  def _diagnose(self, state: TrainState, step: int) -> None:
    if self.parts.diagnose:
      with self.observer.goodput("diagnose"):
        self.writers.write(step, self.parts.diagnose(state))
      self.observer.paused()
