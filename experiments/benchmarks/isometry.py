"""What the isometry penalty costs a training step of a map between latent spaces: gradient with and without it.

  python -m experiments.benchmarks.isometry [--rounds=9] [--batch=256] [--features=64]

The map is a flow of two couplings before an orthogonal expansion by half; the step without the penalty has the squared
error of pairs and 30 iterations of debiased transport, as a run's first stage; two probes a row.
"""

import argparse
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from jpmhc_jax import transport
from jpmhc_jax.core import arguments


def main() -> None:
  parser = argparse.ArgumentParser(description="The cost of the isometry penalty.")
  parser.add_argument("--rounds", type=arguments.whole(1), default=9)
  parser.add_argument("--batch", type=arguments.whole(2), default=256)
  parser.add_argument("--features", type=arguments.whole(2), default=64)
  options = parser.parse_args()
  d, k = options.features, 3 * options.features // 2
  rule = transport.Chain.of(transport.FlowMap(d, d, couplings=2, hidden=64), transport.OrthogonalMap(d, k))
  solver = transport.EntropicTransport(iterations=30, tolerance=0.0, start=0.0)
  keys = jax.random.split(jax.random.key(0), 4)
  parameters = rule.init(keys[0])
  x, y = jax.random.normal(keys[1], (options.batch, d)), jax.random.normal(keys[2], (options.batch, k))

  def loss(parameters: Any, key: jax.Array, penalty: bool) -> jax.Array:
    image = rule(parameters, x)
    total = jnp.mean(jnp.sum((image - y) ** 2, axis=1)) + solver.divergence(image, y)
    if penalty:
      each = jax.vmap(lambda row, key: transport.isometry_estimate(lambda r: rule(parameters, r), row, key))
      total += 0.1 * jnp.mean(each(x, jax.random.split(key, len(x))))
    return total

  steps = {name: jax.jit(jax.grad(functools.partial(loss, penalty=name == "with"))) for name in ("without", "with")}
  candidates = {name: functools.partial(step, parameters, keys[3]) for name, step in steps.items()}
  samples = timing.interleaved(candidates, rounds=options.rounds, warmup=1)
  print("milliseconds", {name: dataclasses.asdict(timing.summary(each)) for name, each in samples.items()})
  print("ratio", timing.ratio(samples, "with", "without"))


if __name__ == "__main__":
  main()
