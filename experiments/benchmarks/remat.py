"""What rematerialisation saves and costs: temporaries and step time of two networks under every policy.

  python -m experiments.benchmarks.remat [--mixer=cayley] [--width=128] [--batch=8] [--rounds=5] [--out=FILE]

Four streams. The recursive network works on 10×10 ARC grids with T = 3, n = 4 (see `step`), the decoder has 8 layers
and windows of 128 bytes. Prints, per policy: what the compiler plans for temporaries (activations kept for the backward
pass, mostly), the step time and its ratio to policy none in the same round, and the operations with what is recomputed.
The saved coefficients are 24 numbers a token and connection, beside 4·d of the streams. `--networks=trm` or `decoder`
measures one of them and keeps the other's rows in FILE.
"""

import argparse
import dataclasses
import statistics
from typing import Any

import jax

from experiments.benchmarks import timing
from experiments.benchmarks.step import candidate, NETWORKS
from jpmhc_jax import data
from jpmhc_jax.config import schema
from jpmhc_jax.core import arguments
from jpmhc_jax.core.process import restart_with_fast_allocation
from jpmhc_jax.mixers import flops
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.plan import POLICIES
from jpmhc_jax.training.state import prepare
from jpmhc_jax.training.step import make_train_step


def with_policy(config: schema.Config, policy: str) -> schema.Config:
  return dataclasses.replace(config, model=dataclasses.replace(config.model, rematerialise=policy))


def operations(config: schema.Config, dataset: data.Dataset) -> int:
  """Matrix products of a step, recomputed ones included."""
  setup = prepare(config, dataset, make_mesh(config.mesh, jax.devices()[:1]))
  state = jax.eval_shape(setup.create)
  return flops.count(make_train_step(setup), state, state.carry.data, products_only=True)


def measure(network: str, config: schema.Config, rounds: int) -> list[dict[str, Any]]:
  """One row a policy."""
  dataset = data.build(config.data, batch_size=config.batch_size, seed=0)
  policies = [policy for policy in POLICIES if network == "trm" or policy != "call"]  # a decoder is one call
  configs = {policy: with_policy(config, policy) for policy in policies}
  work = {policy: operations(configs[policy], dataset) for policy in policies}
  candidates = {policy: candidate(configs[policy], dataset) for policy in policies}
  samples = timing.interleaved(candidates, rounds=rounds, warmup=1)
  return [
    {
      "network": network,
      "policy": policy,
      "rounds": rounds,
      "temporary_MiB": candidates[policy].temporary_mib,
      "step_ms": statistics.median(samples[policy]),
      "ratio_to_none": timing.ratio(samples, policy, "none"),
      "operations_ratio": work[policy] / work["none"],
    }
    for policy in policies
  ]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--networks", type=arguments.names(NETWORKS), default="trm,decoder")
  parser.add_argument("--mixer", default="cayley")
  parser.add_argument("--width", type=arguments.whole(1), default=128)
  parser.add_argument("--batch", type=arguments.whole(1), default=8)
  parser.add_argument("--rounds", type=arguments.whole(1), default=5)
  parser.add_argument("--out", type=arguments.path, default=None)
  options = parser.parse_args()
  rows = []
  for name in options.networks:
    rows += measure(name, NETWORKS[name](options.mixer, options.width, options.batch), options.rounds)
  for row in rows:
    print(
      f"{row['network']:8s} {row['policy']:14s} temporaries {row['temporary_MiB']:8.1f} MiB   "
      f"step {row['step_ms']:7.1f} ms  ×{row['ratio_to_none']:.2f}   operations ×{row['operations_ratio']:.2f}"
    )
  if options.out:
    settings = {name: getattr(options, name) for name in ("mixer", "width", "batch")}
    others = [row for row in timing.earlier(options.out).get("rows", []) if row["network"] not in options.networks]
    timing.write_json(options.out, {**settings, "rows": others + rows})


if __name__ == "__main__":
  restart_with_fast_allocation()
  main()
