"""What a run says about itself beside its losses: goodput, throughput, memory, norms by layer, a profiler window."""

import pathlib
import time

import jax
import numpy as np

from jpmhc_jax.data import Dataset
from jpmhc_jax.training.flops import flops_per_step
from jpmhc_jax.training.goodput import Goodput
from jpmhc_jax.training.profiling import Profiler
from jpmhc_jax.training.state import Setup
from jpmhc_jax.training.throughput import memory_scalars, peak_flops, Throughput


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
    self.throughput = Throughput(
      config.steps, config.batch_size, flops_per_step(setup, dataset), None if peak is None else peak * devices.size
    )
    self._step, self._seconds = step, list[float]()
    self._finished_at: float | None = None

  def facts(self) -> dict[str, int | float | None]:
    """For environment.json: model FLOPs of a step over all devices, and the peak of all devices (None = unknown)."""
    return {"flops_per_step": self.throughput.flops, "peak_flops": self.throughput.peak}

  def finished(self, step: int) -> None:
    """The result of a step, the `step`-th of the run, has just been read back."""
    now = time.monotonic()
    if self._finished_at is not None:
      self._seconds.append(now - self._finished_at)
    self._step, self._finished_at = step, now

  def paused(self) -> None:
    """Something else took time: the next step time does not count it."""
    self._finished_at = None

  def scalars(self, step: int, norms: jax.Array) -> dict[str, float]:
    """All scalars of the steps since the last call; `norms` are the last step's `Metrics.layer_norms`."""
    seconds, self._seconds = self._seconds, []
    self.goodput.save(step)
    return (
      self.throughput.scalars(step, seconds)
      | memory_scalars()
      | self.goodput.scalars()
      | self.layers.scalars(np.asarray(norms))
    )

  def close(self) -> None:
    """Ends a trace that is still on and writes the account of time."""
    self.profiler.close()
    self.goodput.save(self._step)
