"""Telemetry of a run: goodput, throughput, memory, norms per layer, and a window of steps under the profiler.

Goodput says where the wall time goes, over all starts, by a stopwatch that is always in exactly one activity:

| activity | the host is |
|---|---|
| start | between the beginning of `train` and its first step: data, layout, restoring |
| compile | tracing, compiling and running the first step of this start |
| data | waiting for a batch while the devices have nothing to do |
| step | dispatching a step or waiting for its result |
| evaluate, save, diagnose | doing that; the devices do no training step |
| lost | nothing: time of steps that were repeated, because the run died after them and before their checkpoint |

The parts sum to the whole by construction. Time between the last line written before a kill and the kill is in no part.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import math
import pathlib
import resource
import statistics
import sys
import time
from typing import Any, TypeVar

import jax
import numpy as np

from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.core.files import Staged, storing, to_json, write_atomically
from jpmhc_jax.core.reading import read_json
from jpmhc_jax.data import Dataset
from jpmhc_jax.mixers import flops
from jpmhc_jax.training.hosts import distributed
from jpmhc_jax.training.state import prepare, Setup
from jpmhc_jax.training.step import make_train_step


def parse_window(text: str, steps: int) -> range:
  """'100:105' is the steps 100 to 104, from 0. Raises ConfigError for anything else, or behind the last step."""
  first, colon, last = text.partition(":")
  if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
    raise ConfigError(f"--profile={text}: expected START:STOP with START < STOP, such as --profile=100:105")
  if int(first) >= steps:
    raise ConfigError(f"--profile={text}: expected START below steps={steps}")
  return range(int(first), int(last))


class Profiler:
  """Traces the steps of a window that this start makes. View: `tensorboard --logdir=workdir/profile` with xprof.

  A short window is best, away from the first step, which compiles: a trace of a hundred steps can fill a disk.
  """

  def __init__(self, folder: pathlib.Path, window: range):
    self._folder, self._window = folder, window
    self._trace: Staged | None = None  # the one that is on

  def step(self, step: int) -> contextlib.AbstractContextManager[object]:
    """What the dispatch of `step` runs in: starts the trace at the first step inside the window."""
    if step not in self._window:
      return contextlib.nullcontext()
    if self._trace is None:
      self._trace = Staged(self._folder)
      jax.profiler.start_trace(self._trace.here)
    return jax.profiler.StepTraceAnnotation("train", step_num=step)

  def finish(self, step: int, result: object) -> None:
    """After the dispatch of `step`: at the window's last, waits for its result and writes the trace."""
    if self._trace and step + 1 >= self._window.stop:
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    """Writes a trace that is still on, as when the run ends inside the window."""
    if self._trace:
      jax.profiler.stop_trace()
      trace, self._trace = self._trace, None
      with storing(str(self._folder)):
        trace.close()


# Dense bfloat16 peak of one JAX device in TFLOP/s, from the vendors' data sheets; matched by prefix, longest first. A
# TPU v2, v3 or v7 device is one core, half a chip.
PEAK_TFLOPS = {
  "TPU v2": 22.5, "TPU v3": 61.5, "TPU v4": 275.0, "TPU v5 lite": 197.0, "TPU v5e": 197.0, "TPU v5": 459.0,
  "TPU v5p": 459.0, "TPU v6 lite": 918.0, "TPU v6e": 918.0, "TPU7x": 1153.5,
  "NVIDIA V100": 125.0, "Tesla V100": 125.0, "NVIDIA A100": 312.0, "NVIDIA L4": 121.0, "NVIDIA L40S": 362.0,
  "NVIDIA H100 PCIe": 756.0, "NVIDIA H100": 989.0, "NVIDIA H200": 989.0, "NVIDIA GH200": 989.0,
  "NVIDIA B200": 2250.0, "NVIDIA GB200": 2500.0,
}  # fmt: skip


def peak_flops(kind: str, override_tflops: float = 0.0) -> float | None:
  """Peak FLOP/s of one device of this kind; None when it is unknown, as for a CPU."""
  if override_tflops:
    return 1e12 * override_tflops
  known = [name for name in PEAK_TFLOPS if kind.lower().startswith(name.lower())]
  return 1e12 * PEAK_TFLOPS[max(known, key=len)] if known else None


@dataclasses.dataclass(frozen=True)
class Throughput:
  """What turns step times into scalars.

  batch: examples a step over all devices. flops: model FLOPs a step over all devices (see `flops`). peak: FLOP/s of all
  devices together, None when unknown: then there is no MFU.
  """

  batch: int
  flops: int | float
  peak: float | None

  def scalars(self, seconds: float) -> dict[str, float]:
    """`time/step_ms`, examples_per_s, tflops_per_s and, where the peak is known, mfu in [0, 1]."""
    values = {
      "time/step_ms": 1e3 * seconds,
      "time/examples_per_s": self.batch / seconds,
      "time/tflops_per_s": 1e-12 * self.flops / seconds,
    }
    return values | ({"time/mfu": self.flops / seconds / self.peak} if self.peak else {})


class Forecast:
  """The seconds that the rest of a run takes: its steps at a smoothed pace, and the evaluations that are due.

  Of the medians m of all logs the pace is the mean, which from the tenth on forgets the older ones: t ← t + a(m − t),
  a = max(1/k, 1/10) at the k-th log. So one slow window moves the forecast by a tenth of its excess.
  """

  def __init__(self, steps: int, evaluate_every: int):
    self._steps, self._every = steps, evaluate_every
    self._pace, self._logs, self._evaluation = 0.0, 0, 0.0

  def evaluated(self, seconds: float) -> None:
    """An evaluation took so long; the fastest counts, as the first one compiles."""
    self._evaluation = min(self._evaluation or seconds, seconds)

  def after(self, step: int, step_seconds: float) -> float:
    """Seconds from this step on, given the median step time since the last call."""
    self._logs += 1
    self._pace += max(1 / self._logs, 0.1) * (step_seconds - self._pace)
    due = -(-self._steps // self._every) - step // self._every if self._every else 1
    return (self._steps - step) * self._pace + due * self._evaluation


def memory_scalars() -> dict[str, float]:
  """`memory/host_peak_gib` of this process and, where the devices tell, `memory/device_peak_gib` of the fullest."""
  unit = 1 if sys.platform == "darwin" else 1024
  values = {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
  peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", math.nan) for device in jax.local_devices()]
  known = [peak for peak in peaks if math.isfinite(peak)]
  return values | ({"memory/device_peak_gib": max(known) / 2**30} if known else {})


def flops_per_step(setup: Setup, dataset: Dataset, *, recomputed: bool = False) -> int:
  """Model FLOPs of one step over the global batch: every matrix product, forward and backward; nothing is compiled.

  What rematerialisation computes twice counts once, unless `recomputed`, and elementwise work is left out, as usual
  when a share of the hardware's peak is meant. Attention counts as its formulas, without the padding and the second
  scores of a kernel. Loops count their trips. XLA's own cost analysis counts the body of a loop once, which for a
  recursive network is several times too few (2.9 for two cycles of two updates).
  """
  model = dataclasses.replace(setup.config.model, attention="xla")
  model = model if recomputed else dataclasses.replace(model, rematerialise="none")
  if model != setup.config.model:
    setup = prepare(dataclasses.replace(setup.config, model=model), dataset, setup.mesh)
  state = jax.eval_shape(setup.create)
  return flops.count(make_train_step(setup), state, state.carry.data, products_only=True)


class Telemetry:
  """The instruments of one start. `goodput` and `profiler` are used by the loop where things happen.

  Between two logs it only notes one time a step; everything else is done when `scalars` is asked.
  """

  def __init__(self, setup: Setup, dataset: Dataset, workdir: pathlib.Path, step: int, profile: range):
    config, devices = setup.config, setup.mesh.devices.ravel()
    self.goodput = Goodput(workdir / "goodput.json", step)
    self.profiler = Profiler(workdir / "profile", profile)
    self.layers = setup.layers
    peak = peak_flops(devices[0].device_kind, config.logging.peak_tflops)
    flops = flops_per_step(setup, dataset)
    self.throughput = Throughput(config.batch_size, flops, None if peak is None else peak * devices.size)
    self.forecast = Forecast(config.steps, config.evaluation.every)
    self._built = {"parameters": setup.parameter_count, "data": dataset.describe()}
    self._step, self._seconds = step, list[float]()
    self._first_diagnosis: int | None = None  # step of the one that compiles
    self._diagnosed = (0, 0.0)  # steps since then, seconds of all diagnoses behind it
    self._finished_at: float | None = None

  def facts(self) -> dict[str, Any]:
    """For environment.json: parameters, data, model FLOPs of a step and peak of all devices (None = unknown)."""
    return self._built | {"flops_per_step": self.throughput.flops, "peak_flops": self.throughput.peak}

  def finished(self, step: int) -> None:
    """The result of a step, the `step`-th of the run, has just been read back."""
    now = time.monotonic()
    if self._finished_at is not None:
      self._seconds.append(now - self._finished_at)
    self._step, self._finished_at = step, now

  def paused(self) -> None:
    """Something else took time: the next step time does not count it."""
    self._finished_at = None

  def evaluated(self, seconds: float) -> None:
    """An evaluation took so long."""
    self.forecast.evaluated(seconds)

  def diagnosed(self, step: int, seconds: float) -> None:
    """The mixer diagnostics behind this step took so long."""
    if self._first_diagnosis is None:
      self._first_diagnosis = step
    else:
      self._diagnosed = step - self._first_diagnosis, self._diagnosed[1] + seconds

  def scalars(self, step: int, norms: jax.Array) -> dict[str, float]:
    """All scalars of the steps since the last call; `norms` are the last step's `Metrics.layer_norms`."""
    seconds, self._seconds = self._seconds, []
    self.goodput.save(step)
    speed: dict[str, float] = {}
    if seconds:
      median = max(statistics.median(seconds), 1e-9)
      speed = self.throughput.scalars(median) | {"time/eta_s": self.forecast.after(step, median)}
    steps, taken = self._diagnosed
    if steps:
      speed["time/diagnostics_ms"] = 1e3 * taken / steps
    return speed | memory_scalars() | self.goodput.scalars() | self.layers.scalars(np.asarray(norms))

  def close(self) -> None:
    """Ends a trace that is still on and writes the account of time."""
    self.profiler.close()
    self.goodput.save(self._step)


ACTIVITIES = ("start", "compile", "data", "step", "evaluate", "save", "diagnose", "lost")

_Item = TypeVar("_Item")


class Goodput:
  """Seconds by activity of one workdir, kept in a small file that outlives every start.

  Example:
    goodput = Goodput(workdir / "goodput.json", step=0)
    with goodput("evaluate"):
      ...
    goodput.scalars()["goodput/step"]          # share of the wall time that went into steps
  """

  def __init__(self, path: pathlib.Path, step: int, now: Callable[[], float] = time.monotonic):
    self._path, self._now = path, now
    self.seconds = _restored(path, step)
    self._activity, self._since = "start", now()

  def switch(self, activity: str) -> str:
    """Ends the running activity and starts another; returns the one that ended."""
    moment = self._now()
    self.seconds[self._activity] += moment - self._since
    ended, self._activity, self._since = self._activity, activity, moment
    return ended

  @contextlib.contextmanager
  def __call__(self, activity: str) -> Iterator[None]:
    """Within the block this activity, after it the earlier one again."""
    outer = self.switch(activity)
    try:
      yield
    finally:
      self.switch(outer)

  def waiting(self, items: Iterable[_Item], busy: Callable[[], bool]) -> Iterator[_Item]:
    """The items; waiting for one is `data`, unless the devices are still `busy` when it comes: then it cost nothing."""
    iterator = iter(items)
    while True:
      outer, began = self.switch("data"), self._since
      item = next(iterator, _END)
      if busy():
        self.seconds[outer] += self._since - began
        self._activity = outer
      self.switch(outer)
      if item is _END:
        return
      yield item  # type: ignore[misc]

  def scalars(self) -> dict[str, float]:
    """`goodput/<activity>`: shares of the total; the sum of all is 1."""
    self.switch(self._activity)
    total = max(sum(self.seconds.values()), 1e-9)
    return {f"goodput/{name}": seconds / total for name, seconds in self.seconds.items()}

  def save(self, step: int, durable: bool = False) -> None:
    """Writes the account after `step` finished steps; durable: also waits for the disk."""
    self.switch(self._activity)
    if distributed.is_primary():
      with storing(str(self._path)):
        write_atomically(self._path, to_json({"step": step, "seconds": self.seconds}) + "\n", durable=durable)


_END = object()


def _restored(path: pathlib.Path, step: int) -> dict[str, float]:
  """The account of earlier starts. Steps after `step` will be made again: their share of the step time is lost."""
  seconds = dict.fromkeys(ACTIVITIES, 0.0)
  try:
    earlier: Mapping = read_json(path)
    seconds |= {name: float(earlier["seconds"][name]) for name in ACTIVITIES}
    repeated = seconds["step"] * (max(earlier["step"] - step, 0) / max(earlier["step"], 1))
  except (FileNotFoundError, DataError, ValueError, KeyError, TypeError):  # none yet, or damaged: it starts anew
    return dict.fromkeys(ACTIVITIES, 0.0)
  return seconds | {"step": seconds["step"] - repeated, "lost": seconds["lost"] + repeated}
