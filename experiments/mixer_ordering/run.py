"""Is the published ordering, Cayley > Sinkhorn > Grassmann, a law? At a laptop's size, tuned equally, with controls.

  python -m experiments.mixer_ordering.run [--quick] [--check] [--record]

Generated 4×4 Sudoku, TRM with four streams, one generator, norm and read/write form for all arms. Each arm tries the
same learning rates on two seeds; the rate with the lowest held-out loss is then run on five other seeds.
"""

import pathlib
import sys
from typing import Any

from experiments.claim import Cache, Claim, Number, table
from experiments.seeded import Arm
from jpmhc_jax.reporting.statistics import welch_p_values

FOLDER = pathlib.Path(__file__).resolve().parent
MIXERS = ("cayley", "sinkhorn", "grassmann", "iso", "identity")
RATES = (5e-3, 1e-2, 2e-2)
TUNING_SEEDS, SEEDS = (101, 102), (1, 2, 3, 4, 5)
STEPS, EVERY = 300, 50


def overrides(mixer: str, rate: float, steps: int) -> dict[str, Any]:
  """Of sudoku:tiny, to make it smaller: d = 32, batch 32, four supervision steps."""
  return {
    "steps": steps,
    "batch_size": 32,
    "model.width": 32,
    "model.recursion.max_steps": 4,
    "data.sudoku.test_puzzles": 200,
    "optimizer.learning_rate": rate,
    "optimizer.warmup_steps": 30,
    "connection.mixer": mixer,
    "connection.parameterisation": "manifold" if mixer == "grassmann" else "logits",
  }


def curves(cache: Cache, mixer: str, rate: float, seeds: tuple[int, ...], steps: int) -> list[list[dict[str, float]]]:
  """Of each seed the held-out metrics at every 50th step; the step is compiled once, and only if a seed is missing."""
  values = overrides(mixer, rate, steps)
  compiled: list[Arm] = []

  def run(seed: int) -> list[dict[str, float]]:
    if not compiled:
      compiled.append(Arm.load("sudoku:tiny", values))
    arm, seen = compiled[0], []
    arm.train(seed, {k: lambda state: seen.append(arm.evaluate(state)) for k in range(EVERY, steps + 1, EVERY)})
    print(f"{mixer}, rate {rate:g}, seed {seed}: {seen[-1]}", file=sys.stderr, flush=True)
    return seen

  return [cache.get(f"{mixer}/{rate:g}/{seed}", values, lambda seed=seed: run(seed)) for seed in seeds]


def tuned_rate(cache: Cache, mixer: str, steps: int) -> float:
  """The learning rate with the lowest mean held-out loss at the end of the tuning seeds."""

  def final_loss(rate: float) -> float:
    return sum(curve[-1]["lm_loss"] for curve in curves(cache, mixer, rate, TUNING_SEEDS, steps))

  return min(RATES, key=final_loss)


def measure(quick: bool, cache: Cache) -> dict[str, Number]:
  """Per arm: the tuned rate, held-out exact accuracy and loss at the end, and the loss averaged over the run."""
  mixers, seeds, steps = (MIXERS[:2], SEEDS[:1], EVERY) if quick else (MIXERS, SEEDS, STEPS)
  numbers: dict[str, Number] = {}
  final: dict[str, list[float]] = {}
  rows: list[list[Any]] = []
  for mixer in mixers:
    rate = RATES[1] if quick else tuned_rate(cache, mixer, steps)
    runs = curves(cache, mixer, rate, seeds, steps)
    final[mixer] = [run[-1]["exact_accuracy"] for run in runs]
    exact = Number.over(final[mixer], floor=0.1)
    loss = Number.over([run[-1]["lm_loss"] for run in runs], floor=0.1)
    average = Number.over([sum(e["lm_loss"] for e in run) / len(run) for run in runs], floor=0.1)
    numbers |= {f"{mixer}/exact": exact, f"{mixer}/loss": loss, f"{mixer}/mean loss": average}
    shown = [f"{number.value:.3f} ± {number.spread:.3f}" for number in (exact, loss, average)]
    rows.append([mixer, rate, *shown])
  for row, p in zip(rows, welch_p_values(list(final.values()), mixers.index("cayley")), strict=True):
    row.append("" if p != p else f"{p:.2g}")
  print(table(["mixer", "rate", "exact", "loss", "loss over the run", "p of exact against cayley (Holm)"], rows))
  return numbers


CLAIM = Claim(FOLDER, measure, seeds=f"tuning {TUNING_SEEDS}, then {SEEDS}", budget=f"{STEPS} steps of batch 32 a run")

if __name__ == "__main__":
  sys.exit(CLAIM.command())
