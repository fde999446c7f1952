"""Predicted and exact Jacobian spectra of five trained TRMs: with repeated weights, and as if calls had their own.

  python -m experiments.tied_spectra.run [--quick] [--check] [--record]

Generated 4×4 Sudoku, 400 steps, twelve calls of two parts. The Jacobian of the carry (z_H, z_L) over all calls is built
whole and decomposed; beside it stand the law from the moments of the sub-layers across calls, and the law of calls that
are independent, both at the same cells. What the Gaussian form of the noise costs is measured at the first seed: the
sub-layers' own Jacobians, all turned by one random rotation, keep every moment and are free of the rest of the network.
--quick is the first seed.
"""

import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.claim import Cache, Claim, Number, table
import jpmhc_jax as jp
from jpmhc_jax.config import load as configs
from jpmhc_jax.evaluation.spectra import measure, sites
from jpmhc_jax.evaluation.spectra.cells import Cells
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
W1 = 0.2  # what is claimed of the mean over the nets


def spectra(name: str, seed: int) -> dict[str, float]:
  """W1 and 99 % quantiles of one net, which is trained where its folder does not have it yet."""
  workdir = RUNS / f"{name}_{seed}"
  fields = [f"--config.{key}={value}" for key, value in (SHARED | NETS[name] | {"seed": seed}).items()]
  jp.train(configs.load("sudoku:tiny", fields), workdir)
  run = jp.load(workdir)
  with precision_of(run.config):
    at = measure.linearise(run.setup, run.dataset, run.state, run.step, EFFORT)
    *_, site = measure.measure(at, EFFORT, scales=("carry",))
  print(name, seed, sites.describe(site), file=sys.stderr, flush=True)
  if site.predicted is None or site.independent is None:
    raise ValueError(f"{name}, seed {seed}: {site.remark}")
  extra = {}
  if seed == SEEDS[0]:
    values = turned(at, seed)
    extra["turned q99"] = float(np.quantile(values, 0.99, method="higher"))
  return extra | {
    "tied": site.w1 or 0.0,
    "independent": site.independent_w1 or 0.0,
    "exact q99": site.measured.largest,
    "tied q99": site.predicted.largest,
    "independent q99": site.independent.largest,
    "top": site.top,
  }


def turned(at: measure.Linearised, seed: int) -> np.ndarray:
  """Singular values of the carry of the linearised network with F̂_l replaced by Q F̂_l Qᵀ, one Haar Q for all l."""
  network, width = at.network, at.x.shape[1:]
  size, streams = math.prod(width), at.trace.gains.shape[3]
  cells = Cells(jnp.repeat(jnp.arange(width[0]), width[-1]), jnp.tile(jnp.arange(width[-1]), width[0]))
  trace = jax.jit(network.trace)(at.latents, *at.arrays, at.x, cells, jax.random.key(0))
  ones = jnp.ones((len(at.trace.noise.mean), size))
  columns = lambda v: network.products(trace.states, *at.arrays, v.reshape(1, *width), ones)[:, 0]  # noqa: E731
  noise = np.moveaxis(np.asarray(jax.jit(lambda units: jax.lax.map(columns, units))(jnp.eye(size))), 0, 2)
  rows = np.linalg.norm(noise, axis=2, keepdims=True)  # the rows' sizes belong to the cells, not to the noise
  turn = stats.ortho_group.rvs(size, random_state=seed)
  noise = rows * (turn @ (noise / rows) @ turn.T)
  gains, mixers, reads, writes = (
    np.asarray(each).reshape(-1, *each.shape[2:]) for each in (trace.gains, trace.mixers, trace.reads, trace.writes)
  )
  state = np.eye(2 * streams * size).reshape(2, streams, size, -1)
  for call, answers in enumerate(network.answers):
    streams_of = state.sum(axis=0)
    for part in range(2 * call, 2 * call + 2):
      written = noise[part] @ np.einsum("ci,icx->cx", reads[part, :, 0], streams_of)
      passed = np.einsum("cij,jcx->icx", mixers[part], streams_of)
      passed += writes[part, :, :, 0].T[:, :, None] * written
      streams_of = gains[part].T[:, :, None] * passed
    state[0 if answers else 1] = streams_of
  return np.linalg.svd(state.reshape(len(state) * streams * size, -1), compute_uv=False)


def measured(quick: bool, cache: Cache) -> dict[str, Number]:
  """W1 of log s and the relative error of the 99 % quantile, of every net and over all."""
  seeds, numbers, rows = SEEDS[:1] if quick else SEEDS, {}, []
  results: dict[str, list[dict[str, float]]] = {}
  for name in NETS:
    results[name] = [cache.get(f"{name}/{seed}", [STEPS], lambda n=name, s=seed: spectra(n, s)) for seed in seeds]
    column = lambda key, name=name: [result[key] for result in results[name]]  # noqa: E731
    for key in ("tied", "independent"):
      numbers[f"{name}/W1 {key}"] = Number.over(column(key), floor=0.05)
    quantiles = [np.mean(column(f"{side} q99")) for side in ("exact", "tied", "independent")]
    quantiles.append(results[name][0]["turned q99"])
    rows.append([name, *(f"{np.mean(column(key)):.3f}" for key in ("tied", "independent"))])
    rows[-1] += map("{:.3g}".format, quantiles)
  every = [result for several in results.values() for result in several]
  first = [several[0] for several in results.values()]
  errors, turned_errors = (
    [abs(result[f"{side} q99"] / result["exact q99"] - 1) for result in some]
    for side, some in (("tied", every), ("turned", first))
  )
  numbers["all/W1 tied"] = Number.bounded(float(np.mean([result["tied"] for result in every])), most=W1)
  numbers["all/W1 independent"] = Number.over([result["independent"] for result in every], floor=0.1)
  numbers["all/error of the 99 % quantile"] = Number.over(errors, floor=0.1)
  numbers["all/error of the 99 % quantile, turned"] = Number.over(turned_errors, floor=0.1)
  print(table(["net", "W1 tied", "W1 independent", "exact 99 %", "tied 99 %", "independent 99 %", "turned 99 %"], rows))
  return numbers


CLAIM = Claim(FOLDER, measured, seeds=str(SEEDS), budget=f"{STEPS} steps a net, one batch of one example")

if __name__ == "__main__":
  sys.exit(CLAIM.command())
