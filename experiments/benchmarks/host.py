"""What the host adds to a step: everything the loop does for a step beside waiting for the devices.

  python -m experiments.benchmarks.host [--blocks=24] [--steps=200] [--out=FILE]

A decoder of 24 small blocks with four streams is trained by the loop's own parts, one step at a time and always waiting
for the device, so that host and device time are apart: placing the batch, dispatching the compiled step, reading its
metrics back, and the instruments (goodput, profiler window, step times). What is done only every `logging.every` steps
is timed beside it. In a run the host's part overlaps the device's. The cost of a dispatch is that of the leaves of the
state (6 µs each on the CPU client, which allocates the results in the caller's thread): layers that are stacked and
scanned cost as much as one, and 24 unrolled blocks of TRM, 798 leaves, would cost 5 ms.
"""

import argparse
import dataclasses
import pathlib
import statistics
import tempfile
import time

import jax

from experiments.benchmarks import timing
from jpmhc_jax import data
from jpmhc_jax.core import schema
from jpmhc_jax.core.launch import restart_with_fast_allocation
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.observation import Observer
from jpmhc_jax.training.shares import share_of
from jpmhc_jax.training.state import prepare
from jpmhc_jax.training.step import make_train_step
from jpmhc_jax.training.writers import Writers

PARTS = ("place", "dispatch", "device", "read_back", "instruments")


def small(blocks: int) -> schema.Config:
  """The decoder with many narrow blocks of four streams on a few short rows: little to compute."""
  return schema.Config(
    steps=1000,
    batch_size=4,
    mesh=schema.Mesh(data=1),
    data=schema.Data(kind="text", prefetch=0, text=schema.TextData(window=16)),
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
  observer, writers = Observer(setup, dataset, workdir, 0, range(0)), Writers(workdir, config, 0)
  step_function, state = make_train_step(setup), setup.create()
  batch = dataset.batch(0)
  state, metrics = step_function(state, share.place(batch))
  jax.block_until_ready(state)
  watch = Stopwatch()
  for step in range(1, steps + 1):
    watch.start()
    on_device = share.place(batch)
    watch.lap("place")
    with jax.transfer_guard("disallow"), observer.profiler.step(step):
      state, metrics = step_function(state, on_device)
    watch.lap("dispatch")
    jax.block_until_ready((state, metrics))
    watch.lap("device")
    norms = metrics.pop("layer_norms")
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    watch.lap("read_back")
    for _ in observer.goodput.waiting([step], lambda: False):
      observer.profiler.finish(step, metrics)
      observer.finished(step)
    watch.lap("instruments")
    if step % 10 == 0:
      writers.write(step, values | observer.scalars(step, norms) | {"rate": setup.learning_rate(step)})
      watch.lap("log, every 10th step")
  leaves = len(jax.tree.leaves(state))
  writers.close()
  observer.close()
  return {part: statistics.median(samples) for part, samples in watch.samples.items()}, leaves


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--blocks", type=int, default=24)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--out", type=pathlib.Path, default=None)
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
