"""What the isometry penalty costs a training step of a map between latent spaces: gradient with and without it.

  python -m experiments.benchmarks.isometry [--out=isometry_cpu.json] [--rounds=9] [--batch=256] [--features=64]

The map is a flow of two couplings before an orthogonal expansion by half; the step without the penalty has the squared
error of pairs and 30 iterations of debiased transport, as a run's first stage. Two probes at a share of the rows:
"rows" is `isometry_estimate` of each row under vmap, the others `isometry_penalty` of the batch. The deviation is that
of the penalty over draws of its probes, over its mean.
"""

import argparse
from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from jpmhc_jax import transport
from jpmhc_jax.core import arguments

SHARES = (1.0, 0.5, 0.25, 0.125)
DRAWS = 64


def main() -> None:
  parser = argparse.ArgumentParser(description="The cost of the isometry penalty.")
  parser.add_argument("--out", type=arguments.path, default=None)
  parser.add_argument("--rounds", type=arguments.whole(1), default=9)
  parser.add_argument("--batch", type=arguments.whole(2), default=256)
  parser.add_argument("--features", type=arguments.whole(2), default=64)
  options = parser.parse_args()
  d, k = options.features, 3 * options.features // 2
  rule = transport.Chain.of(transport.FlowMap(d, d, couplings=2, hidden=64), transport.OrthogonalMap(d, k))
  solver = transport.EntropicTransport(iterations=30, tolerance=0.0, start=0.0)
  keys = jax.random.split(jax.random.key(0), 4)
  parameters = {name: value + 0.05 * jnp.sin(jnp.arange(value.size)).reshape(value.shape)
                for name, value in rule.init(keys[0]).items()}  # fmt: skip
  x, y = jax.random.normal(keys[1], (options.batch, d)), jax.random.normal(keys[2], (options.batch, k))

  def of_rows(parameters: Any, key: jax.Array) -> jax.Array:
    each = jax.vmap(lambda row, key: transport.isometry_estimate(lambda r: rule(parameters, r), row, key))
    return jnp.mean(each(x, jax.random.split(key, len(x))))

  def of_share(share: float, parameters: Any, key: jax.Array) -> jax.Array:
    return transport.isometry_penalty(lambda rows: rule(parameters, rows), x, key, share=share)

  penalties: dict[str, Callable[[Any, jax.Array], jax.Array]] = {
    "without": lambda parameters, key: jnp.zeros(()), "rows": of_rows,
    **{f"share {share:g}": functools.partial(of_share, share) for share in SHARES},
  }  # fmt: skip

  def loss(name: str, parameters: Any, key: jax.Array) -> jax.Array:
    image = rule(parameters, x)
    total = jnp.mean(jnp.sum((image - y) ** 2, axis=1)) + solver.divergence(image, y)
    return total + 0.1 * penalties[name](parameters, key)

  steps = {name: jax.jit(jax.grad(functools.partial(loss, name))) for name in penalties}
  candidates = {name: functools.partial(step, parameters, keys[3]) for name, step in steps.items()}
  samples = timing.interleaved(candidates, rounds=options.rounds, warmup=1)
  results: dict[str, Any] = {"milliseconds": {n: dataclasses.asdict(timing.summary(s)) for n, s in samples.items()}}
  results["ratio"] = {name: timing.ratio(samples, name, "without") for name in penalties}
  draws = jax.random.split(jax.random.key(1), DRAWS)
  values = {name: jax.lax.map(functools.partial(make, parameters), draws) for name, make in penalties.items()}
  results["deviation"] = {n: float(jnp.std(v) / jnp.mean(v)) for n, v in values.items() if n != "without"}
  for name, value in results.items():
    print(name, value)
  if options.out:
    timing.write_json(options.out, results)


if __name__ == "__main__":
  main()
