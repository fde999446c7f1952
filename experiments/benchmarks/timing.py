"""Wall-clock comparisons that survive a busy machine: each candidate runs once a round; medians and ratios."""

from collections.abc import Callable, Mapping
import dataclasses
import json
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
from typing import Any

import jax
import jaxlib

from jpmhc_jax.core.files import to_json, write_atomically


@dataclasses.dataclass(frozen=True)
class Timing:
  """Median and quartiles of one candidate, in milliseconds, over interleaved rounds."""

  median_ms: float
  lower_ms: float
  upper_ms: float
  rounds: int


def interleaved(
  candidates: Mapping[str, Callable[[], Any]], rounds: int = 50, warmup: int = 3, calls: int = 1
) -> dict[str, list[float]]:
  """Milliseconds a call of each candidate, one sample a round; the order of candidates rotates from round to round.

  A candidate returns JAX arrays (waited for) or anything else. Compilation is excluded by `warmup` calls.
  """
  names = list(candidates)
  for name in names:
    for _ in range(warmup):
      jax.block_until_ready(candidates[name]())
  samples: dict[str, list[float]] = {name: [] for name in names}
  for turn in range(rounds):
    for name in names[turn % len(names) :] + names[: turn % len(names)]:
      start = time.perf_counter()
      for _ in range(calls):
        result = candidates[name]()
      jax.block_until_ready(result)
      samples[name].append(1e3 * (time.perf_counter() - start) / calls)
  return samples


def summary(samples: list[float]) -> Timing:
  """Median and quartiles of the samples of one candidate."""
  lower, median, upper = statistics.quantiles(samples, n=4) if len(samples) > 1 else samples * 3
  return Timing(median, lower, upper, len(samples))


def ratio(samples: Mapping[str, list[float]], name: str, base: str) -> float:
  """Median over rounds of name / base, both measured in the same round: load that slows both cancels."""
  return statistics.median(a / b for a, b in zip(samples[name], samples[base], strict=True))


def environment() -> dict[str, Any]:
  """What the numbers depend on: command, processor, cores, load, versions, devices."""
  return {
    "command": _command(),
    "machine": platform.machine(),
    "processor": _processor(),
    "cores": os.cpu_count(),
    "load": os.getloadavg()[0],
    "python": platform.python_version(),
    "jax": jax.__version__,
    "jaxlib": jaxlib.__version__,
    "devices": [f"{device} ({device.device_kind})" for device in jax.devices()],
  }


def _command() -> str:
  module = getattr(sys.modules["__main__"], "__spec__", None)
  program = ["-m", module.name] if module else sys.argv[:1]
  return shlex.join(["python", *program, *sys.argv[1:]])


def _processor() -> str:
  """The processor's name where the system tells it."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def write_json(path: str | pathlib.Path, results: Mapping[str, Any]) -> None:
  """Writes results with the environment they were measured in."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, to_json({"environment": environment(), **results}, indent=1) + "\n")


def earlier(path: str | pathlib.Path) -> dict[str, Any]:
  """Results that a file holds already, without their environment, for a benchmark that is measured in pieces."""
  path = pathlib.Path(path)
  found = json.loads(path.read_text()) if path.exists() else {}
  found.pop("environment", None)
  return found
