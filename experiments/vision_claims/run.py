"""Do orthogonal mixers train networks over images faster than doubly stochastic ones, and what do they cost?

  python -m experiments.vision_claims.run [--quick | --part=NETWORK] [--check] [--record]

ResNet-20 and a small vision transformer on scikit-learn's digits; arms differ in the connection alone. Every arm tries
the same learning rates on a seed of its own, then runs on five others, which share their data order. The README says,
from before the first run, what would confirm and what would refute each claim.
"""

from collections.abc import Mapping, Sequence
import functools
import itertools
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

from experiments.claim import Cache, Claim, Number, table
from experiments.seeded import Arm, smallest_visible
from jpmhc_jax.training.step import make_train_step
from jpmhc_jax.training.telemetry import flops_per_step

FOLDER = pathlib.Path(__file__).resolve().parent
REFERENCE, PLAIN = "bistochastic", "plain"
ARMS: dict[str, dict[str, Any]] = {
  REFERENCE: {"connection.mixer": "sinkhorn"},
  "cayley": {"connection.mixer": "cayley"},
  "grassmann": {"connection.mixer": "grassmann", "connection.parameterisation": "manifold"},
  "iso": {"connection.mixer": "iso"},
  "identity": {"connection.mixer": "identity"},
  PLAIN: {"connection.streams": 1},
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
  "resnet": (
    "images:tiny",
    {"data.images.builtin": "digits", "data.images.mirror": False, "model.width": 16, "model.vision.depth": 20},
  ),
  "vit": ("digits:cayley", {}),
}
SHARED = {"data.images.shift": 1, "optimizer.name": "adamw", "optimizer.schedule": "cosine", "optimizer.ema": 0.0}
RATES = (1e-3, 3e-3, 1e-2)
TUNING_SEEDS, SEEDS = (101,), (1, 2, 3, 4, 5)
STEPS, EVERY, BATCH = 300, 20, 64
SHARE = 0.9  # of the best accuracy, which a run is timed to reach


def overrides(network: str, arm: str, rate: float, steps: int) -> dict[str, Any]:
  """Of the network's config."""
  size = {"steps": steps, "batch_size": BATCH, "evaluation.batch_size": 359, "optimizer.warmup_steps": steps // 10}
  return NETWORKS[network][1] | SHARED | size | {"optimizer.learning_rate": rate} | ARMS[arm]


@functools.lru_cache(maxsize=len(RATES))
def compiled(network: str, arm: str, rate: float, steps: int) -> Arm:
  """Of one arm all rates, as long as it is its turn."""
  return Arm.load(NETWORKS[network][0], overrides(network, arm, rate, steps))


def curves(
  cache: Cache, network: str, arm: str, rate: float, seeds: tuple[int, ...], steps: int
) -> list[list[dict[str, float]]]:
  """Of each seed the held-out metrics at every 20th step."""

  def run(seed: int) -> list[dict[str, float]]:
    one, seen = compiled(network, arm, rate, steps), []
    one.train(seed, {k: lambda state: seen.append(one.evaluate(state)) for k in range(EVERY, steps + 1, EVERY)})
    print(
      f"{time.strftime('%H:%M:%S')} {network}, {arm}, rate {rate:g}, seed {seed}: {seen[-1]}",
      file=sys.stderr,
      flush=True,
    )
    return seen

  name, settings = f"{network}/{arm}/{rate:g}", [NETWORKS[network][0], overrides(network, arm, rate, steps)]
  return [cache.get(f"{name}/{seed}", settings, lambda seed=seed: run(seed)) for seed in seeds]


def tuned(cache: Cache, network: str, arm: str, steps: int) -> float:
  """The learning rate with the lowest held-out loss at the end of the tuning seed."""
  return min(RATES, key=lambda rate: curves(cache, network, arm, rate, TUNING_SEEDS, steps)[0][-1]["loss"])


def steps_to(curve: list[dict[str, float]], accuracy: float) -> int:
  """The first evaluated step at which the accuracy is reached; one evaluation behind the last where it is not."""
  reached = (EVERY * (k + 1) for k, metrics in enumerate(curve) if metrics["accuracy"] >= accuracy)
  return next(reached, EVERY * (len(curve) + 1))


def outcomes(runs: Mapping[str, list[list[dict[str, float]]]]) -> dict[str, dict[str, np.ndarray]]:
  """Of each arm, one value a seed of every outcome."""
  best = max(metrics["accuracy"] for curves in runs.values() for curve in curves for metrics in curve)
  return {
    arm: {
      "steps to 90 %": np.array([steps_to(curve, SHARE * best) for curve in curves], float),
      "loss": np.array([curve[-1]["loss"] for curve in curves]),
      "accuracy": np.array([curve[-1]["accuracy"] for curve in curves]),
    }
    for arm, curves in runs.items()
  }


def compared(network: str, cache: Cache, quick: bool) -> dict[str, Number]:
  """Outcomes of every arm and their paired differences from the reference."""
  arms, seeds, steps = ((REFERENCE, "cayley"), SEEDS[:1], 2 * EVERY) if quick else (tuple(ARMS), SEEDS, STEPS)
  rates: dict[str, float] = {}
  runs: dict[str, list[list[dict[str, float]]]] = {}
  for arm in arms:
    rates[arm] = RATES[1] if quick else tuned(cache, network, arm, steps)
    runs[arm] = curves(cache, network, arm, rates[arm], seeds, steps)
  values = outcomes(runs)
  numbers: dict[str, Number] = {}
  rows: list[list[Any]] = []
  for arm, of_arm in values.items():
    row: list[Any] = [network, arm, rates[arm]]
    for name, sample in of_arm.items():
      difference = sample - values[REFERENCE][name]
      floor = 2.0 * EVERY if name.startswith("steps") else 0.05
      numbers[f"{network}/{arm}/{name}"] = Number.over(list(sample), floor=floor)
      numbers[f"{network}/{arm}/{name} minus {REFERENCE}"] = Number.over(list(difference), floor=floor)
      row += [float(sample.mean()), f"{difference.mean():+.3g} ± {smallest_visible(difference):.2g}"]
    rows.append(row)
  names = itertools.chain.from_iterable((name, f"minus {REFERENCE}") for name in values[REFERENCE])
  print(table(["network", "arm", "rate", *names], rows))
  return numbers


def costs(network: str) -> dict[str, Number]:
  """FLOPs against the plain network, and temporaries of the step with implicit against unrolled Sinkhorn."""
  spec = NETWORKS[network][0]

  def loaded(arm: str, options: str = "") -> Arm:
    extra = {"connection.options": options} if options else {}
    return Arm.load(spec, overrides(network, arm, RATES[0], STEPS) | extra)

  def temporaries(adjoint: str) -> int:
    arm = loaded(REFERENCE, f"adjoint={adjoint}")
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arm.dataset.batch(0))
    step: Any = make_train_step(arm.setup)
    compiled = step.lower(jax.eval_shape(arm.setup.create), batch).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)

  flops = {arm: flops_per_step((one := loaded(arm)).setup, one.dataset) for arm in (PLAIN, REFERENCE, "cayley")}
  saved = 1 - temporaries("implicit") / temporaries("unrolled")
  numbers = {f"{network}/{arm}/extra FLOPs": Number(flops[arm] / flops[PLAIN] - 1, 1e-6) for arm in flops}
  print(f"{network}: memory saved {saved:.1%}; extra FLOPs {flops['cayley'] / flops[PLAIN] - 1:.1%} of cayley")
  return numbers | {f"{network}/memory saved by the implicit adjoint": Number.noted(saved)}


def measure(quick: bool, cache: Cache, networks: Sequence[str] = tuple(NETWORKS)) -> dict[str, Number]:
  """All numbers of the networks; of --quick one network's, without the compilers'."""
  if quick:
    return compared("resnet", cache, quick)
  numbers: dict[str, Number] = {}
  for network in networks:
    numbers |= compared(network, cache, quick) | costs(network)
  return numbers


CLAIM = Claim(
  FOLDER,
  measure,
  seeds=f"tuning {TUNING_SEEDS}, then {SEEDS}",
  budget=f"{STEPS} steps of batch {BATCH} a run",
  parts=tuple(NETWORKS),
)

if __name__ == "__main__":
  sys.exit(CLAIM.command())
