"""What a fused map saves: a flow before an orthogonal expansion beside its one matrix, at several batch sizes.

  python -m experiments.benchmarks.fused [--out=fused_cpu.json] [--rounds=30] [--couplings=2]

64 features to 96, compiled programs of JAX with their parameters inside (`jp.transport.compiled`), and NumPy's
`x @ kernel + shift`, which is what the exported file runs. All three in one interleaved run; ratios are medians over
rounds of the flow's time over the other's.
"""

import argparse
from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import timing
from jpmhc_jax import transport
from jpmhc_jax.core import arguments

BATCHES = (1, 64, 360, 1024, 8192)
SOURCE, TARGET = 64, 96


def main() -> None:
  parser = argparse.ArgumentParser(description="The price of a flow and of its one matrix.")
  parser.add_argument("--out", type=arguments.path, default=None)
  parser.add_argument("--rounds", type=arguments.whole(1), default=30)
  parser.add_argument("--couplings", type=arguments.whole(1), default=2)
  options = parser.parse_args()
  flow = transport.FlowMap(SOURCE, SOURCE, couplings=options.couplings)
  rule = transport.Chain.of(flow, transport.OrthogonalMap(SOURCE, TARGET))
  parameters = rule.init(jax.random.key(0))
  fused, folded = transport.fuse(rule, parameters, jax.random.normal(jax.random.key(1), (1024, SOURCE)))
  kernel, shift = (np.array(folded[name]) for name in ("kernel", "shift"))
  results: dict[str, Any] = {}
  for rows in BATCHES:
    x = jax.random.normal(jax.random.key(2), (rows, SOURCE))
    host = np.array(x)
    candidates: dict[str, Callable[[], Any]] = {
      name: functools.partial(transport.compiled(*held), x)
      for name, held in (("flow", (rule, parameters)), ("fused", (fused, folded)))
    }
    candidates["NumPy"] = lambda host=host: host @ kernel + shift
    samples = timing.interleaved(candidates, rounds=options.rounds, calls=max(1, 2048 // rows))
    results[str(rows)] = {
      "milliseconds": {name: dataclasses.asdict(timing.summary(each)) for name, each in samples.items()},
      "ratio": {name: timing.ratio(samples, "flow", name) for name in ("fused", "NumPy")},
    }
    print(rows, results[str(rows)])
  if options.out:
    timing.write_json(options.out, results)


if __name__ == "__main__":
  main()
