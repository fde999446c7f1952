"""Whether compile time and memory stay put as a network gets deeper: recursions of the TRM, layers of the decoder.

  python -m experiments.benchmarks.growth [--width=64] [--batch=4] [--out=FILE]

Compiles the training step (nothing is run, no compilation cache) and prints the seconds of tracing and of compiling
and the temporaries that the compiler planned. Only the last cycle of a recursion is
differentiated: more cycles (T) must not cost memory, and each update of a cycle (n) and each layer adds what the policy
of `model.rematerialise` keeps of it.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import time
from typing import Any

import jax

from experiments.benchmarks import timing
from experiments.benchmarks.step import decoder_config, run_config
from jpmhc_jax import data
from jpmhc_jax.config import schema
from jpmhc_jax.core import arguments
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.state import prepare
from jpmhc_jax.training.step import make_train_step

RECURSIONS = ((1, 4), (3, 4), (9, 4), (27, 4), (3, 1), (3, 8), (3, 16))  # (T, n)
LAYERS = (2, 8, 32)


def cases(width: int, batch: int) -> Iterator[tuple[dict[str, Any], schema.Config]]:
  """Networks of four streams with Cayley mixers, by what grows."""
  trm, decoder = run_config("cayley", width, batch), decoder_config("cayley", width, batch)
  for outer, inner in RECURSIONS:
    recursion = schema.Recursion(outer=outer, inner=inner)
    yield {"network": "trm", "T": outer, "n": inner}, _with(trm, recursion=recursion)
  for layers in LAYERS:
    yield {"network": "decoder", "layers": layers}, _with(decoder, layers=layers)


def _with(config: schema.Config, **fields: Any) -> schema.Config:
  return dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))


def measure(config: schema.Config) -> dict[str, float]:
  """Seconds and MiB of one compilation."""
  dataset = data.build(config.data, batch_size=config.batch_size, seed=0)
  setup = prepare(config, dataset, make_mesh(config.mesh, jax.devices()[:1]))
  state, batch = jax.eval_shape(setup.create), dataset.batch(0)
  began = time.perf_counter()
  lowered = make_train_step(setup).lower(state, batch)
  traced = time.perf_counter()
  memory = lowered.compile().memory_analysis()
  return {
    "trace_s": traced - began,
    "compile_s": time.perf_counter() - traced,
    "temporary_MiB": memory.temp_size_in_bytes / 2**20,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--width", type=arguments.whole(1), default=64)
  parser.add_argument("--batch", type=arguments.whole(1), default=4)
  parser.add_argument("--out", type=arguments.path, default=None)
  options = parser.parse_args()
  jax.config.update("jax_enable_compilation_cache", False)
  rows = []
  for what, config in cases(options.width, options.batch):
    rows.append({**what, **measure(config)})
    print("  ".join(f"{name} {v:.2f}" if isinstance(v, float) else f"{name} {v}" for name, v in rows[-1].items()))
  if options.out:
    timing.write_json(options.out, {"width": options.width, "batch": options.batch, "rows": rows})


if __name__ == "__main__":
  main()
