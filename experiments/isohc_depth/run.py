"""IsoHC's claim: mean-preserving orthogonal mixers train at 50 sub-layers, where free ones collapse beyond 20.

  python -m experiments.isohc_depth.run [--quick] [--check] [--record]

A byte-level language model on Python's standard library (stdlib_lm:depth, d = 32), every mixer at the same
budget, learning rate and no gradient clip. Measured: held-out perplexity, whether the loss diverged, the gradient that
reaches the streams in front of the first layer over that of the last, and the mean cosine between streams there. The
seed draws the parameters and the order of the data.
"""

import dataclasses
import math
import pathlib
import sys
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from experiments.claim import Cache, Claim, Number, table
from experiments.seeded import Arm
from jpmhc_jax.connections.diagnostics import stream_cosine
from jpmhc_jax.models.losses import softmax_cross_entropy
from jpmhc_jax.training.state import TrainState

FOLDER = pathlib.Path(__file__).resolve().parent
MIXERS = ("unconstrained", "sinkhorn", "iso", "hybrid", "cayley", "identity")
DEPTHS = (8, 24, 50)  # sub-layers
STEPS, SEEDS = 100, (1, 2, 3)


def overrides(depth: int, steps: int) -> dict[str, Any]:
  """Of stdlib_lm:depth_MIXER."""
  return {
    "model.layers": depth // 2,
    "model.width": 32,
    "batch_size": 8,
    "steps": steps,
    "seed": SEEDS[0],
    "optimizer.warmup_steps": 20,
    "optimizer.ema": 0.9,
    "evaluation.max_examples": 256,
  }


def through_depth(arm: Arm, state: TrainState) -> dict[str, list[float]]:
  """At each layer: norm of the loss's gradient in the streams that enter it, and the cosine between those streams."""
  batch = arm.dataset.batch(10_000)
  shape = (arm.config.model.layers, *batch["inputs"].shape, arm.config.connection.streams, arm.config.model.width)

  def loss(nudges: jax.Array, params: Any, buffers: Any) -> tuple[jax.Array, Any]:
    model = nnx.merge(arm.setup.graph, nnx.State(params), nnx.State(buffers))
    h, seen = model.run(
      model.embed(jnp.asarray(batch["inputs"])), lambda connection, streams: stream_cosine(streams), nudges
    )
    return jnp.mean(softmax_cross_entropy(model.head(h), jnp.asarray(batch["labels"]))), seen["tokens"]

  gradient, cosine = jax.jit(jax.grad(loss, has_aux=True))(jnp.zeros(shape), state.params, state.buffers)
  return {"gradient": jnp.sqrt(jnp.sum(jnp.square(gradient), axis=(1, 2, 3, 4))).tolist(), "cosine": cosine.tolist()}


def one(arm: Arm, seed: int) -> dict[str, Any]:
  """A training run: perplexity at the end, the step at which the loss was no number (0 = never), values by layer."""
  last: list[dict[str, Any]] = []

  def finish(state: TrainState) -> None:
    last.append({"perplexity": arm.evaluate(state)["perplexity"], **through_depth(arm, state)})

  losses = [m["loss"] / arm.config.batch_size for m in arm.train(seed, {arm.config.steps: finish})]
  diverged = 0 if np.isfinite(losses[-1]) else len(losses)
  result = (last[0] if last else {"perplexity": math.inf, "gradient": [], "cosine": []}) | {"diverged": diverged}
  return result | {"worst_loss": max(losses[20:], default=math.inf)}


def runs(cache: Cache, mixer: str, depth: int, steps: int, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
  """One run a seed; the step is compiled once, and only if a seed is missing."""
  compiled: list[Arm] = []

  def run(seed: int) -> dict[str, Any]:
    if not compiled:
      compiled.append(Arm.load(f"stdlib_lm:depth_{mixer}", overrides(depth, steps)))
    result = one(compiled[0], seed)
    print(
      f"{mixer}, {depth} sub-layers, seed {seed}: perplexity {result['perplexity']:.3g}", file=sys.stderr, flush=True
    )
    return result

  return [cache.get(f"{mixer}/{depth}/{seed}", overrides(depth, steps), lambda s=seed: run(s)) for seed in seeds]


def summary(found: list[dict[str, Any]], collapsing: bool) -> dict[str, Number]:
  """Over seeds. Rounding decides where a collapsing run ends: its values are noted, only their size is claimed."""
  whole = [run for run in found if not run["diverged"]]
  perplexities = [run["perplexity"] for run in found]
  ratios = [math.log10(run["gradient"][0] / run["gradient"][-1]) for run in whole]
  values = {
    "perplexity": Number.over(perplexities, floor=0.05 * min(perplexities)),
    "runs that diverged": Number(len(found) - len(whole), 0),
    "log10 of gradient first over last layer": Number.over(ratios, floor=0.3),
    "cosine at the last layer": Number.over([run["cosine"][-1] for run in whole], floor=0.15),
  }
  if collapsing:
    values = {name: dataclasses.replace(number, tolerance=None) for name, number in values.items()}
  return values


def measure(quick: bool, cache: Cache) -> dict[str, Number]:
  """Per mixer and depth over seeds: perplexity, runs that diverged, log10 of the gradient's ratio, the last cosine."""
  mixers, depths, steps, seeds = (("iso",), (8,), 30, SEEDS[:1]) if quick else (MIXERS, DEPTHS, STEPS, SEEDS)
  numbers: dict[str, Number] = {}
  rows: list[list[Any]] = []
  for depth in depths:
    for mixer in mixers:
      found = runs(cache, mixer, depth, steps, seeds)
      values = summary(found, collapsing=mixer == "unconstrained" and depth > DEPTHS[0])
      numbers |= {f"{mixer}/{depth}/{name}": number for name, number in values.items()}
      shown = [f"{number.value:.3g} ± {number.spread:.2g}" for number in values.values()]
      rows.append([mixer, depth, max(run["worst_loss"] for run in found), *shown])
  print(table(["mixer", "sub-layers", "worst loss", *values], rows))
  if not quick:
    free, iso = (numbers[f"{mixer}/{DEPTHS[-1]}/perplexity"].value for mixer in ("unconstrained", "iso"))
    ratio = numbers[f"unconstrained/{DEPTHS[-1]}/log10 of gradient first over last layer"].value
    numbers["collapse/perplexity of unconstrained over iso"] = Number.bounded(free / iso, least=1.5)
    numbers["collapse/log10 of gradient first over last layer"] = Number.bounded(ratio, least=4.0)
  return numbers


CLAIM = Claim(FOLDER, measure, seeds=str(SEEDS), budget=f"{STEPS} steps of 8 windows of 64 bytes a run")

if __name__ == "__main__":
  sys.exit(CLAIM.command())
