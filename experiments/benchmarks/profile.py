"""Where the time of a training step goes: operations by part of the network, plain TRM beside four streams.

  python -m experiments.benchmarks.profile [--mixers=identity,cayley] [--width=128] [--batch=16] [--steps=8]
      [--out=FILE] [--figure=FILE]

Traces compiled steps with the JAX profiler and adds up each operation's median duration under the named scope that it
was written in (attention, swiglu, norm, coefficients, read, mix_and_write, optimizer) and its direction: forward, what
the backward pass recomputes, backward. An operation that the compiler fused counts where the fusion's result was
written; operations that run side by side on different cores both count, so the sum exceeds the step's time.
"""

import argparse
import collections
import gzip
import json
import pathlib
import re
import statistics
import tempfile
from typing import Any

import jax
import matplotlib.pyplot as plt

from experiments.benchmarks import timing
from experiments.benchmarks.step import Candidate, candidate, run_config
from jpmhc_jax import data
from jpmhc_jax.core import arguments
from jpmhc_jax.core.process import restart_with_fast_allocation

SCOPES = ("attention", "swiglu", "norm", "coefficients", "read", "mix_and_write", "optimizer", "other")
DIRECTIONS = ("forward", "recomputed", "backward")
_NAMED = re.compile(r'^\s*(?:ROOT )?%([\w.\-]+) = .*op_name="([^"]*)"', re.MULTILINE)
_CONTAINERS = ("while", "call", "conditional")  # their time is that of what they hold

Profile = dict[str, dict[str, float]]  # scope -> direction -> milliseconds a step


def place_of(name: str) -> tuple[str, str]:
  """Scope and direction of an operation by the name that JAX gave it."""
  path = name.split("/")
  scope = next((part for part in reversed(path) if part in SCOPES), "other")
  if "rematted_computation" in path:
    return scope, "recomputed"
  return scope, "backward" if any(part.startswith("transpose(jvp") for part in path) else "forward"


def durations(folder: pathlib.Path) -> dict[str, list[float]]:
  """Milliseconds of every run of every operation in a trace."""
  found: dict[str, list[float]] = collections.defaultdict(list)
  for path in folder.rglob("*.trace.json.gz"):
    for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
      operation = event.get("args", {}).get("hlo_op")
      if event.get("ph") == "X" and operation and not operation.startswith(_CONTAINERS):
        found[operation].append(event["dur"] / 1e3)
  return found


def traced(network: Candidate, steps: int) -> Profile:
  """Milliseconds a step by scope and direction."""
  program = network.step.lower(network.state, network.batch).compile().as_text()  # type: ignore[attr-defined]
  names = dict(_NAMED.findall(program))
  for _ in range(3):
    jax.block_until_ready(network())
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(steps):
        jax.block_until_ready(network())
    runs = durations(pathlib.Path(folder))
  profile = {scope: dict.fromkeys(DIRECTIONS, 0.0) for scope in SCOPES}
  for operation, samples in runs.items():
    scope, direction = place_of(names.get(operation, ""))
    profile[scope][direction] += statistics.median(samples) * len(samples) / steps
  return profile


def show(profiles: dict[str, Profile]) -> None:
  """One line a scope, one block of columns a network: forward, recomputed, backward."""
  print("ms a step: forward + recomputed + backward = sum\n")
  print(f"{'':14s}" + "".join(f"{name:>38s}" for name in profiles))
  for scope in SCOPES:
    cells = (profile[scope] for profile in profiles.values())
    print(f"{scope:14s}" + "".join(f"{_cell(times):>38s}" for times in cells))
  totals = (sum(sum(times.values()) for times in profile.values()) for profile in profiles.values())
  print(f"{'all':14s}" + "".join(f"{total:38.1f}" for total in totals))


def _cell(times: dict[str, float]) -> str:
  return " + ".join(f"{times[d]:5.1f}" for d in DIRECTIONS) + f" = {sum(times.values()):6.1f}"


def draw(profiles: dict[str, Profile], path: pathlib.Path) -> None:
  """A bar a network, stacked by scope; the backward pass hatched."""
  figure, axes = plt.subplots(figsize=(7, 0.9 + 0.6 * len(profiles)))
  for row, profile in enumerate(profiles.values()):
    left = 0.0
    for index, scope in enumerate(SCOPES):
      for direction in DIRECTIONS:
        width = profile[scope][direction]
        label = scope if row == 0 and direction == "forward" else None
        hatch = "" if direction == "forward" else "////"
        axes.barh(row, width, left=left, color=f"C{index}", hatch=hatch, edgecolor="white", linewidth=0.3, label=label)
        left += width
  axes.set_yticks(range(len(profiles)), list(profiles))
  axes.invert_yaxis()
  axes.set_xlabel("ms of operations a step (hatched: backward pass)")
  axes.spines[["top", "right"]].set_visible(False)
  figure.legend(ncols=4, loc="upper center", frameon=False, fontsize="small")
  figure.tight_layout(rect=(0, 0, 1, 0.84))
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=150)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--mixers", default="identity,cayley")
  parser.add_argument("--width", type=arguments.whole(1), default=128)
  parser.add_argument("--batch", type=arguments.whole(1), default=16)
  parser.add_argument("--steps", type=arguments.whole(1), default=8)
  parser.add_argument("--out", type=arguments.path, default=None)
  parser.add_argument("--figure", type=arguments.path, default=None)
  options = parser.parse_args()
  # A program from the cache keeps the names of the sources that it was compiled from.
  jax.config.update("jax_enable_compilation_cache", False)
  profiles: dict[str, Profile] = {}
  for name in ("plain", *options.mixers.split(",")):
    config = run_config(name, options.width, options.batch)
    dataset = data.build(config.data, batch_size=options.batch, seed=0)
    profiles[name] = traced(candidate(config, dataset), options.steps)
  show(profiles)
  if options.out:
    results: dict[str, Any] = {"width": options.width, "batch": options.batch, "ms_by_scope": profiles}
    timing.write_json(options.out, results)
  if options.figure:
    draw(profiles, options.figure)


if __name__ == "__main__":
  restart_with_fast_allocation()
  main()
