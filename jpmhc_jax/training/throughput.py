"""How fast a run goes: step time, examples a second, FLOP/s and their share of the peak, time left, memory."""

from collections.abc import Sequence
import dataclasses
import math
import resource
import statistics
import sys

import jax

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

  steps: int
  batch: int
  flops: int | float
  peak: float | None

  def scalars(self, step: int, step_seconds: Sequence[float]) -> dict[str, float]:
    """`time/step_ms` (median), examples_per_s, tflops_per_s, eta_s and, where the peak is known, mfu in [0, 1]."""
    if not step_seconds:
      return {}
    seconds = max(statistics.median(step_seconds), 1e-9)
    values = {
      "time/step_ms": 1e3 * seconds,
      "time/examples_per_s": self.batch / seconds,
      "time/tflops_per_s": 1e-12 * self.flops / seconds,
      "time/eta_s": (self.steps - step) * seconds,
    }
    return values | ({"time/mfu": self.flops / seconds / self.peak} if self.peak else {})


def memory_scalars() -> dict[str, float]:
  """`memory/host_peak_gib` of this process and, where the devices tell, `memory/device_peak_gib` of the fullest."""
  unit = 1 if sys.platform == "darwin" else 1024
  values = {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
  peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", math.nan) for device in jax.local_devices()]
  known = [peak for peak in peaks if math.isfinite(peak)]
  return values | ({"memory/device_peak_gib": max(known) / 2**30} if known else {})
