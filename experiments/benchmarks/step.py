"""What the streams cost: the training step of plain TRM beside four streams with each mixer, in one run.

  python -m experiments.benchmarks.step [--width=128] [--batch=16] [--rounds=10] [--mixers=cayley,cayley:own]
      [--network=trm|decoder] [--out=FILE]

`cayley:own` is with connection.single_pass=own. Prints, per network: step time (median of interleaved rounds) and its
ratio to the plain network, the parts of one block (projection of the coefficients, apply stage, sub-layers; forward and
backward), compile time, host time of a dispatched step, temporaries that the compiler planned; then the projections
alone in both layouts. Writes the same as JSON.
"""

import argparse
from collections.abc import Callable, Iterator
import dataclasses
import statistics
import time
from typing import Any

from flax import nnx
import jax

from experiments.benchmarks import projections, timing
from jpmhc_jax import data
from jpmhc_jax.config import schema
from jpmhc_jax.connections import HyperConnection, mix_and_write, read, write
from jpmhc_jax.core import arguments
from jpmhc_jax.core.process import restart_with_fast_allocation
from jpmhc_jax.models.connections import hyper_connection_fn
from jpmhc_jax.models.layers import Attention, SwiGLU, swiglu_width
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.state import prepare
from jpmhc_jax.training.step import make_train_step

MIXERS = ("identity", "unconstrained", "sinkhorn", "cayley", "cayley_iterative", "grassmann", "iso")


def run_config(network: str, width: int, batch: int) -> schema.Config:
  """TRM on 10×10 ARC grids: T = 3, n = 4, 116 positions."""
  return schema.Config(
    steps=1000,
    batch_size=batch,
    mesh=schema.Mesh(data=1),
    data=schema.Data(arc=schema.ArcData(canvas=10, max_side=10, augmentations=2), prefetch=0),
    model=schema.Model(width=width, heads=max(width // 32, 1), puzzle=schema.Puzzle(width=width, slots=16)),
    connection=connection(network),
  )


def decoder_config(network: str, width: int, batch: int) -> schema.Config:
  """A causal language model of 8 layers on windows of 128 bytes."""
  return schema.Config(
    steps=1000,
    batch_size=batch,
    mesh=schema.Mesh(data=1),
    data=schema.Data(kind="text", prefetch=0, text=schema.TextData(window=128)),
    model=schema.Model(kind="decoder", width=width, heads=max(width // 32, 1), layers=8, loss="softmax"),
    connection=connection(network),
  )


NETWORKS = {"trm": run_config, "decoder": decoder_config}


def connection(network: str) -> schema.Connection:
  """One stream for `plain`, or four with a mixer: `cayley`, and `cayley:own` with that connection.single_pass."""
  if network == "plain":
    return schema.Connection(mixer="cayley", streams=1)
  mixer, _, single_pass = network.partition(":")
  return schema.Connection(mixer=mixer, streams=4, single_pass=single_pass or "off")


@dataclasses.dataclass
class Candidate:
  """A compiled step with its own donated state."""

  step: Callable[..., Any]
  state: Any
  batch: Any
  compile_s: float
  temporary_mib: float
  parameters: int
  dispatch_ms: list[float] = dataclasses.field(default_factory=list)

  def __call__(self) -> jax.Array:
    began = time.perf_counter()
    self.state, metrics = self.step(self.state, self.batch)
    self.dispatch_ms.append(1e3 * (time.perf_counter() - began))
    return metrics.values


def candidate(config: schema.Config, dataset: data.Dataset) -> Candidate:
  """Builds and compiles one network's step."""
  setup = prepare(config, dataset, make_mesh(config.mesh, jax.devices()[:1]))
  step, state, batch = make_train_step(setup), setup.create(), jax.device_put(dataset.batch(0))
  began = time.perf_counter()
  memory = step.lower(state, batch).compile().memory_analysis()
  compile_s = time.perf_counter() - began
  return Candidate(step, state, batch, compile_s, memory.temp_size_in_bytes / 2**20, setup.parameter_count)


def parts(network: str, width: int, tokens: int) -> dict[str, Callable[[], Any]]:
  """Forward and backward of a block's parts on (1, tokens) positions: coefficients, apply, attention and SwiGLU."""
  key = jax.random.key(0)
  streams = jax.random.normal(key, (tokens // 116, 116, 4, width))
  x = streams[:, :, 0]
  theta, inner = 1e4, swiglu_width(width, 4.0, 256)
  layers = {
    "attention": Attention(width, max(width // 32, 1), rope_theta=theta, rngs=nnx.Rngs(0)),
    "swiglu": SwiGLU(width, inner, rngs=nnx.Rngs(1)),
  }
  found = {name: _gradient(lambda x, layer=layer: layer(x), x) for name, layer in layers.items()}
  rule = connection(network)
  if rule.streams == 1:
    return found
  module = HyperConnection(hyper_connection_fn(rule, width, 0), rngs=nnx.Rngs(2))
  coefficients = jax.jit(module.coefficients)(streams)

  def apply(streams: Any, coefficients: Any) -> Any:
    output = read(streams, coefficients.read)
    if coefficients.mix is None:
      return write(streams, coefficients.write, output)
    return mix_and_write(streams, coefficients.mix, coefficients.write, output)

  found["coefficients"] = _gradient(module.coefficients, streams)
  found["apply"] = _gradient(apply, streams, coefficients)
  return found


def _gradient(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
  """A compiled forward and backward pass with a random cotangent."""
  shapes = jax.eval_shape(function, *arguments)
  cotangent = jax.tree.map(lambda s: jax.random.normal(jax.random.key(3), s.shape, s.dtype), shapes)
  compiled = jax.jit(lambda arguments, cotangent: jax.vjp(function, *arguments)[1](cotangent))
  return lambda: compiled(arguments, cotangent)


def rows(candidates: dict[str, Candidate], samples: dict[str, list[float]], split: dict[str, dict]) -> Iterator[dict]:
  """One row a network."""
  for name, built in candidates.items():
    yield {
      "network": name,
      "step_ms": statistics.median(samples[name]),
      "ratio_to_plain": timing.ratio(samples, name, "plain"),
      "compile_s": built.compile_s,
      "dispatch_ms": statistics.median(built.dispatch_ms),
      "temporary_MiB": built.temporary_mib,
      "parameters": built.parameters,
      "parts_ms": split[name],
    }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--width", type=arguments.whole(1), default=128)
  parser.add_argument("--batch", type=arguments.whole(1), default=16)
  parser.add_argument("--rounds", type=arguments.whole(1), default=10)
  parser.add_argument("--mixers", default=",".join(MIXERS))
  parser.add_argument("--network", choices=tuple(NETWORKS), default="trm")
  parser.add_argument("--out", type=arguments.path, default=None)
  options = parser.parse_args()
  names = ["plain", *options.mixers.split(",")]
  configs = {name: NETWORKS[options.network](name, options.width, options.batch) for name in names}
  dataset = data.build(configs["plain"].data, batch_size=options.batch, seed=0)
  candidates = {name: candidate(config, dataset) for name, config in configs.items()}
  samples = timing.interleaved(candidates, rounds=options.rounds, warmup=2)
  split = {}
  for name in names:
    measured = timing.interleaved(parts(name, options.width, 116 * options.batch), rounds=options.rounds)
    split[name] = {part: round(statistics.median(values), 3) for part, values in measured.items()}
  table = list(rows(candidates, samples, split))
  for row in table:
    pieces = "  ".join(f"{part} {value:.2f}" for part, value in row["parts_ms"].items())
    print(
      f"{row['network']:18s} {row['step_ms']:8.1f} ms  ×{row['ratio_to_plain']:.2f}  "
      f"compile {row['compile_s']:5.1f} s  dispatch {row['dispatch_ms']:.2f} ms  "
      f"temporary {row['temporary_MiB']:6.1f} MiB  | block parts, ms: {pieces}"
    )
  alone = projections.measure(streams=4, tokens=4096, rounds=options.rounds)
  print(
    f"\nthe projections alone, 4,096 tokens, n = 4, tokens last beside the trailing layout\n{projections.table(alone)}"
  )
  if options.out:
    timing.write_json(options.out, {"rounds": options.rounds, "rows": table, "projections": alone})


if __name__ == "__main__":
  restart_with_fast_allocation()
  main()
