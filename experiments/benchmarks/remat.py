"""What rematerialisation saves and costs: temporaries and step time of one network under every policy.

  python -m experiments.benchmarks.remat [--mixer=cayley] [--width=128] [--batch=16] [--rounds=6] [--out=FILE]

Four streams on 10×10 ARC grids, T = 3, n = 4 (see `step`). Prints, per policy: what the compiler plans for temporaries
(activations kept for the backward pass, mostly), the step time and its ratio to policy none in the same round, and the
operations with what is recomputed.

| policy | temporaries | operations |
|---|---|---|
| none | 621 MiB | ×1.00 |
| products | 275 MiB | ×1.02 |
| coefficients | 162 MiB | ×1.20 |
| block | 159 MiB | ×1.20 |
| call | 151 MiB | ×1.30 |

Cayley, width 128, batch 16, as the CPU compiler plans them (jax 0.10.2). The saved coefficients are 24 numbers a
token and connection, beside 512 of the streams.
"""

import argparse
import dataclasses
import pathlib
import statistics

import jax

from experiments.benchmarks import timing
from experiments.benchmarks.step import candidate, run_config
from jpmhc_jax import data
from jpmhc_jax.core import schema
from jpmhc_jax.core.launch import restart_with_fast_allocation
from jpmhc_jax.manifolds import flops
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


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--mixer", default="cayley")
  parser.add_argument("--width", type=int, default=128)
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--rounds", type=int, default=6)
  parser.add_argument("--out", type=pathlib.Path, default=None)
  options = parser.parse_args()
  config = run_config(options.mixer, options.width, options.batch)
  dataset = data.build(config.data, batch_size=options.batch, seed=0)
  configs = {policy: with_policy(config, policy) for policy in POLICIES}
  work = {policy: operations(configs[policy], dataset) for policy in POLICIES}
  candidates = {policy: candidate(configs[policy], dataset) for policy in POLICIES}
  samples = timing.interleaved(candidates, rounds=options.rounds, warmup=1)
  rows = [
    {
      "policy": policy,
      "temporary_MiB": candidates[policy].temporary_mib,
      "step_ms": statistics.median(samples[policy]),
      "ratio_to_none": timing.ratio(samples, policy, "none"),
      "operations_ratio": work[policy] / work["none"],
    }
    for policy in POLICIES
  ]
  for row in rows:
    print(
      f"{row['policy']:14s} temporaries {row['temporary_MiB']:8.1f} MiB   step {row['step_ms']:7.1f} ms  "
      f"×{row['ratio_to_none']:.2f}   operations ×{row['operations_ratio']:.2f}"
    )
  if options.out:
    timing.write_json(
      options.out, {"mixer": options.mixer, "width": options.width, "batch": options.batch, "rows": rows}
    )


if __name__ == "__main__":
  restart_with_fast_allocation()
  main()
