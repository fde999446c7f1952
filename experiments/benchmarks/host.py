"""What the host adds to a step: everything the loop does for a step beside waiting for the devices.

  python -m experiments.benchmarks.host [--blocks=24] [--steps=200] [--out=FILE]

A decoder of 24 small blocks with four streams is trained by the loop's own parts, one step at a time and always waiting
for the device, so that host and device time are apart: taking the next batch (a thread places it), dispatching the
compiled step, telling that thread to go on, reading the metrics back, and the instruments (profiler, step times).
What is done only every `logging.every` steps is timed beside it. In a run the host's part overlaps the device's.

`floor` is the dispatch of a program that adds one to every leaf of the same state, at the same moment of a step: what
JAX itself takes. It is in proportion to the leaves, since the CPU client allocates the results in the caller's thread:
layers that are stacked and scanned cost as much as one.
"""

import argparse
import dataclasses
import itertools
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from jpmhc_jax import data
from jpmhc_jax.config import schema
from jpmhc_jax.core import arguments
from jpmhc_jax.core.process import restart_with_fast_allocation
from jpmhc_jax.data import loading
from jpmhc_jax.data.loading import DevicePrefetcher
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.mesh import make_mesh, share_of
from jpmhc_jax.training.state import prepare, Setup
from jpmhc_jax.training.step import make_train_step, StepFunction
from jpmhc_jax.training.telemetry import Telemetry
from jpmhc_jax.training.writers import Writers

PARTS = ("batch", "dispatch", "begin", "device", "read_back", "instruments")


def small(blocks: int) -> schema.Config:
  """The decoder with many narrow blocks of four streams on a few short rows: little to compute."""
  return schema.Config(
    steps=1000,
    batch_size=4,
    mesh=schema.Mesh(data=1),
    data=schema.Data(kind="text", text=schema.TextData(window=16)),
    model=schema.Model(kind="decoder", width=16, heads=2, layers=blocks, mlp_multiple=8, loss="softmax"),
    logging=schema.Logging(tensorboard=False),
  )


@dataclasses.dataclass
class Stopwatch:
  """Milliseconds of each part, one sample a step."""

  samples: dict[str, list[float]] = dataclasses.field(default_factory=dict)
  _last: float = 0.0

  def start(self) -> None:
    self._last = time.perf_counter()

  def lap(self, part: str) -> None:
    now = time.perf_counter()
    self.samples.setdefault(part, []).append(1e3 * (now - self._last))
    self._last = now


def measure(config: schema.Config, steps: int, workdir: pathlib.Path) -> tuple[dict[str, float], int]:
  """Median milliseconds by part, and the number of leaves of the state."""
  dataset = data.build(config.data, batch_size=config.batch_size, seed=0)
  setup = prepare(config, dataset, make_mesh(config.mesh, jax.devices()[:1]))
  share = share_of(meshes.batch_sharding(setup.mesh), config.batch_size)
  observer, writers = Telemetry(setup, dataset, workdir, 0, range(0)), Writers(workdir, config, 0)
  step_function, state = make_train_step(setup), setup.create()
  batches = DevicePrefetcher(loading.load(dataset, 0, share.rows, config.data.prefetch), share.place, threads=True)
  state, metrics = step_function(state, next(batches)[1])
  jax.block_until_ready(state)
  watch = Stopwatch()
  watch.start()
  for step, batch in observer.goodput.waiting(itertools.islice(batches, steps), lambda: False):
    watch.lap("batch")
    with jax.transfer_guard("disallow"), observer.profiler.step(step):
      state, metrics = step_function(state, batch)
    watch.lap("dispatch")
    batches.begin()
    watch.lap("begin")
    jax.block_until_ready((state, metrics))
    watch.lap("device")
    values = metrics.scalars()
    watch.lap("read_back")
    observer.profiler.finish(step, metrics)
    observer.finished(step)
    watch.lap("instruments")
    if step % 10 == 0:
      scalars = observer.scalars(step, metrics.layer_norms)
      writers.write(step, values | scalars | {"rate": setup.learning_rate(step)})
      watch.lap("log, every 10th step")
  _measure_floor(setup, step_function, state, batch, watch, steps)
  for part in (batches, writers, observer):
    part.close()
  return {part: statistics.median(samples) for part, samples in watch.samples.items()}, len(jax.tree.leaves(state))


def _measure_floor(
  setup: Setup, step_function: StepFunction, state: Any, batch: Any, watch: Stopwatch, steps: int
) -> None:
  """Dispatches of a program with the leaves of the state, each after a step, which leaves the caches as it does."""
  shardings = setup.shardings
  trivial = jax.jit(
    lambda tree: jax.tree.map(lambda x: x + 1, tree),
    in_shardings=(shardings,),
    out_shardings=shardings,
    donate_argnums=0,
  )
  other = trivial(jax.tree.map(jnp.copy, state))
  for _ in range(steps):
    state, metrics = step_function(state, batch)
    jax.block_until_ready((state, metrics, other))
    watch.start()
    other = trivial(other)
    watch.lap("floor")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--blocks", type=arguments.whole(1), default=24)
  parser.add_argument("--steps", type=arguments.whole(1), default=200)
  parser.add_argument("--out", type=arguments.path, default=None)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    parts, leaves = measure(small(options.blocks), options.steps, pathlib.Path(folder))
  host = sum(parts[name] for name in PARTS if name != "device") + parts["log, every 10th step"] / 10
  for name, value in parts.items():
    print(f"{name:22s} {value:8.3f} ms")
  print(f"{'host, a step':22s} {host:8.3f} ms   ({leaves} leaves, {options.blocks} blocks)")
  if options.out:
    timing.write_json(options.out, {"blocks": options.blocks, "leaves": leaves, "host_ms": host, "parts_ms": parts})


if __name__ == "__main__":
  restart_with_fast_allocation()
  main()
