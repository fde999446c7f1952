"""The full ARC recipes: that they load, how many parameters they hold, what a run costs and how to start it.

  python -m experiments.arc_full.run [--quick] [--check] [--record]

Nothing is trained: these runs need accelerators. FLOPs are counted in the traced step (6·10¹ s of tracing in full).
"""

import pathlib
import sys
from typing import Any

import jax

from experiments.claim import Cache, Claim, Number, table
from jpmhc_jax import data
from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.state import prepare
from jpmhc_jax.training.telemetry import flops_per_step

FOLDER = pathlib.Path(__file__).resolve().parent
PUBLISHED = {"trm": 6_829_058, "cayley": 7_238_658}
H100_FLOPS, UTILISATION = 989e12, 0.4  # dense bf16 peak; the share of it that is assumed


def measure(quick: bool, cache: Cache) -> dict[str, Number]:
  """Parameters, steps, FLOPs a step and the days of one H100 they take at 40 % of its peak."""
  numbers: dict[str, Number] = {}
  rows: list[list[Any]] = []
  for variant in PUBLISHED:
    # Two augmentations instead of 1,000: the shapes of the step are the same and the data is there at once.
    small = ["--config.data.arc.augmentations=2", "--config.data.arc.evaluation_augmentations=2"]
    config = configs.load(f"arc1:{variant}", small)
    dataset = data.build(config.data, batch_size=config.batch_size, seed=config.seed)
    setup = prepare(config, dataset, make_mesh(schema.Mesh(data=1), jax.devices()[:1]))
    numbers[f"{variant}/parameters"] = Number(setup.parameter_count, 0)
    row: list[Any] = [variant, f"{setup.parameter_count:,}", f"{PUBLISHED[variant]:,}", f"{config.steps:,}"]
    if not quick:
      flops = flops_per_step(setup, dataset)
      days = flops * config.steps / (H100_FLOPS * UTILISATION * 86_400)
      numbers[f"{variant}/TFLOP a step"] = Number(flops / 1e12, 0.01 * flops / 1e12)
      numbers[f"{variant}/H100 days"] = Number(days, 0.01 * days)
      row += [flops / 1e12, days]
    rows.append(row)
  print(
    table(["variant", "parameters", "published", "steps", "TFLOP a step", "H100 days at 40 %"][: len(rows[0])], rows)
  )
  return numbers


CLAIM = Claim(FOLDER, measure, seeds="none: nothing is drawn", budget="tracing only")

if __name__ == "__main__":
  sys.exit(CLAIM.command())
