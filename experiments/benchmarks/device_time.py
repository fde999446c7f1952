"""Time on the device: what its own events in a profiler trace add up to, program by program."""

import collections
from collections.abc import Callable, Iterable, Mapping
import pathlib
import re
import statistics
import tempfile
import time
from typing import Any

import jax

EVENTS, CLOCK = "device events", "the clock"


def interleaved(programs: Mapping[str, Callable[[], Any]], rounds: int, until: float) -> tuple[dict[str, float], str]:
  """Microseconds a call of each program, and what they were taken from.

  Each runs once a round, in rotating order, after a call that is not counted. A program's name is that of the function
  it was compiled from. Rounds end at `until` (time.monotonic), but for the first. Where the trace lacks one of the
  programs, as on a CPU, all are timed by the clock until their results are there: its medians include the host.
  """
  names, clock = list(programs), collections.defaultdict(list)
  for name in names:
    jax.block_until_ready(programs[name]())
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for turn in range(rounds):
        if turn and time.monotonic() > until:
          break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
          start = time.perf_counter()
          jax.block_until_ready(programs[name]())
          clock[name].append(1e6 * (time.perf_counter() - start))
    totals = device_us(
      plane
      for path in pathlib.Path(folder).rglob("*.xplane.pb")
      for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    )
  if set(names) <= set(totals):
    return {name: totals[name] / len(clock[name]) for name in names}, EVENTS
  return {name: statistics.median(samples) for name, samples in clock.items()}, CLOCK


def device_us(planes: Iterable[Any]) -> dict[str, float]:
  """Microseconds in all of each program on GPUs and TPUs, from the planes of a `jax.profiler.ProfileData`.

  A GPU's plane has a line for every stream, whose events are kernels and copies and name their program; a TPU's has a
  line with the runs of whole programs.
  """
  totals: dict[str, float] = collections.defaultdict(float)
  for plane in planes:
    gpu, tpu = (plane.name.startswith(f"/device:{kind}:") for kind in ("GPU", "TPU"))
    for line in plane.lines if gpu or tpu else ():
      for event in line.events if line.name.startswith("Stream" if gpu else "XLA Modules") else ():
        program = dict(event.stats).get("hlo_module", "") if gpu else event.name
        totals[re.sub(r"^jit_|\(.*$", "", str(program))] += event.duration_ns / 1e3
  return dict(totals)
