"""Sinkhorn between two clouds beside ott-jax (dense, jitted) in one interleaved run: forward, and with its gradient.

  python -m experiments.benchmarks.sinkhorn [--out=sinkhorn_cpu.json] [--rounds=5] [--points=2048]

64 features, exactly 50 iterations, ε = 0.05 of the mean cost, squared Euclidean. ott-jax is no dependency of the
package: `pip install ott-jax`; without it only our rows are printed. Memory: temporaries that the compiler plans for
the gradient of 8,192 x 8,192 at 5 and 500 iterations.
"""

import argparse
from collections.abc import Callable
import dataclasses
import functools
import importlib.util
from typing import Any
import warnings

import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from jpmhc_jax.core import arguments
from jpmhc_jax.transport import EntropicTransport

ITERATIONS, FEATURES, EPSILON = 50, 64, 0.05


def ours(x: jax.Array, y: jax.Array, iterations: int = ITERATIONS) -> jax.Array:
  """The regularised cost after a number of iterations at the last ε."""
  return EntropicTransport(epsilon=EPSILON, iterations=iterations, tolerance=0.0, start=0.0).value(x, y)


def theirs() -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The same by ott-jax."""
  from ott.geometry import pointcloud
  from ott.problems.linear import linear_problem
  from ott.solvers.linear import sinkhorn

  def cost(x: jax.Array, y: jax.Array) -> jax.Array:
    mean = jnp.mean(jnp.sum(x * x, 1)) + jnp.mean(jnp.sum(y * y, 1)) - 2 * jnp.mean(x, 0) @ jnp.mean(y, 0)
    geometry = pointcloud.PointCloud(x, y, epsilon=EPSILON * jax.lax.stop_gradient(mean))
    solver = sinkhorn.Sinkhorn(min_iterations=ITERATIONS, max_iterations=ITERATIONS, threshold=0.0)
    return solver(linear_problem.LinearProblem(geometry)).reg_ot_cost

  return cost


def memory(points: int, iterations: int) -> int:
  """Bytes of temporaries of the compiled gradient."""
  shape = jax.ShapeDtypeStruct((points, FEATURES), jnp.float32)
  gradient = jax.jit(jax.grad(functools.partial(ours, iterations=iterations), (0, 1)))
  return int(gradient.lower(shape, shape).compile().memory_analysis().temp_size_in_bytes)


def main() -> None:
  parser = argparse.ArgumentParser(description="Sinkhorn's algorithm beside ott-jax.")
  parser.add_argument("--out", type=arguments.path, default=None)
  parser.add_argument("--rounds", type=arguments.whole(1), default=5)
  parser.add_argument("--points", type=arguments.whole(1), default=2048)
  options = parser.parse_args()
  keys = jax.random.split(jax.random.key(0))
  x, y = (jax.random.normal(key, (options.points, FEATURES)) for key in keys)
  methods = {"ours": ours}
  if importlib.util.find_spec("ott"):
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of jaxopt, at its import
    methods["ott-jax"] = theirs()
  candidates: dict[str, Callable[[], Any]] = {}
  for name, method in methods.items():
    candidates[f"{name}, forward"] = functools.partial(jax.jit(method), x, y + 0.3)
    candidates[f"{name}, gradient"] = functools.partial(jax.jit(jax.value_and_grad(method, (0, 1))), x, y + 0.3)
  samples = timing.interleaved(candidates, rounds=options.rounds, warmup=1)
  results: dict[str, Any] = {"milliseconds": {n: dataclasses.asdict(timing.summary(s)) for n, s in samples.items()}}
  if len(methods) > 1:
    results["ratio"] = {
      part: timing.ratio(samples, f"ott-jax, {part}", f"ours, {part}") for part in ("forward", "gradient")
    }
  results["bytes"] = {str(t): memory(8192, t) for t in (5, 500)}
  for name, value in results.items():
    print(name, value)
  if options.out:
    timing.write_json(options.out, results)


if __name__ == "__main__":
  main()
