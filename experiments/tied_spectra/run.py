"""Predicted and exact Jacobian spectra of five trained TRMs: with repeated weights, and as if calls had their own.

  python -m experiments.tied_spectra.run [--quick] [--check] [--record]

Generated 4×4 Sudoku, 400 steps, twelve calls of two parts. The Jacobian of the carry (z_H, z_L) over all calls is built
whole and decomposed; beside it stand the law from the moments of the sub-layers across calls, and the law of calls that
are independent, both at the same cells, and the law of the sub-layers' own Jacobians, all turned by one rotation:
these keep every moment and are free of the rest of the network, but are not Gaussian.
--quick is the first seed.
"""

import pathlib
import sys
from typing import Any

import numpy as np

from experiments.claim import Cache, Claim, Number, table
import jpmhc_jax as jp
from jpmhc_jax.config import load as configs
from jpmhc_jax.evaluation.spectra import measure, sites
from jpmhc_jax.runs.session import precision_of

FOLDER = pathlib.Path(__file__).resolve().parent
RUNS = pathlib.Path("runs") / "experiments" / "tied_spectra"
SEEDS, STEPS = (0, 1, 2), 400
NETS: dict[str, dict[str, Any]] = {
  "plain": {"connection.streams": 1},
  "cayley2": {"connection.streams": 2},
  "cayley4": {"connection.streams": 4},
  "sinkhorn4": {"connection.streams": 4, "connection.mixer": "sinkhorn"},
  "attention2": {"connection.streams": 2, "model.token_mixer": "attention", "model.positions": "rope"},
}
SHARED = {
  "steps": STEPS, "model.width": 32, "model.heads": 2, "model.layers": 1, "evaluation.every": STEPS,
  "evaluation.max_examples": 64,
}  # fmt: skip
EFFORT = measure.Effort(drawn=1000, cells=32, exact_limit=5000, carry_points=96, carry_s=200.0)
SIDES = ("tied", "independent", "rotated")
W1 = 0.2  # what is claimed of the mean over the nets


def spectra(name: str, seed: int) -> dict[str, float]:
  """W1 and 99 % quantiles of one net, which is trained where its folder does not have it yet."""
  workdir = RUNS / f"{name}_{seed}"
  fields = [f"--config.{key}={value}" for key, value in (SHARED | NETS[name] | {"seed": seed}).items()]
  jp.train(configs.load("sudoku:tiny", fields), workdir)
  run = jp.load(workdir)
  with precision_of(run.config):
    at = measure.linearise(run.setup, run.dataset, run.state, run.step, EFFORT)
    (site,) = measure.measure(at, EFFORT, scales=(f"calls 1 to {at.network.calls}",))
  print(name, seed, sites.describe(site), file=sys.stderr, flush=True)
  if site.predicted is None or site.independent is None or site.rotated is None:
    raise ValueError(f"{name}, seed {seed}: {site.remark}")
  return {
    "tied": site.w1 or 0.0,
    "independent": site.independent_w1 or 0.0,
    "rotated": site.rotated_w1 or 0.0,
    "exact q99": site.measured.largest,
    "tied q99": site.predicted.largest,
    "independent q99": site.independent.largest,
    "rotated q99": site.rotated.largest,
    "top": site.top,
  }


def measured(quick: bool, cache: Cache) -> dict[str, Number]:
  """W1 of log s and the relative error of the 99 % quantile, of every net and over all."""
  seeds, numbers, rows = SEEDS[:1] if quick else SEEDS, {}, []
  results: dict[str, list[dict[str, float]]] = {}
  budget = [STEPS, "rotated"]
  for name in NETS:
    results[name] = [cache.get(f"{name}/{seed}", budget, lambda n=name, s=seed: spectra(n, s)) for seed in seeds]
    column = lambda key, name=name: [result[key] for result in results[name]]  # noqa: E731
    for side in SIDES:
      numbers[f"{name}/W1 {side}"] = Number.over(column(side), floor=0.05)
    rows.append([name, *(f"{np.mean(column(side)):.3f}" for side in SIDES)])
    rows[-1] += [f"{np.mean(column(f'{side} q99')):.3g}" for side in ("exact", *SIDES)]
  every = [result for several in results.values() for result in several]
  for side in SIDES:
    errors = [abs(result[f"{side} q99"] / result["exact q99"] - 1) for result in every]
    distances = [result[side] for result in every]
    claimed = side != "independent"
    numbers[f"all/W1 {side}"] = (
      Number.bounded(float(np.mean(distances)), most=W1) if claimed else Number.over(distances, floor=0.1)
    )
    numbers[f"all/error of the 99 % quantile, {side}"] = Number.over(errors, floor=0.1)
  print(table(["net", *(f"W1 {side}" for side in SIDES), *(f"{side} 99 %" for side in ("exact", *SIDES))], rows))
  return numbers


CLAIM = Claim(FOLDER, measured, seeds=str(SEEDS), budget=f"{STEPS} steps a net, one batch of one example")

if __name__ == "__main__":
  sys.exit(CLAIM.command())
