"""IsoHC's claim: mean-preserving orthogonal mixers train at 50 sub-layers, where free ones collapse beyond 20.

  python -m experiments.isohc_depth.run [--quick] [--check] [--record]

A byte-level language model on Python's standard library (configs/stdlib_lm.py:depth, d = 32), every mixer at the same
budget, learning rate and no gradient clip. Measured: held-out perplexity, whether the loss diverged, the gradient that
reaches the streams in front of the first layer over that of the last, and the mean cosine between streams behind them.
"""

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
DEPTHS = (8, 50)  # sub-layers
STEPS, SEED = 100, 1


def overrides(depth: int, steps: int) -> dict[str, Any]:
  """Of configs/stdlib_lm.py:depth_MIXER."""
  return {
    "model.layers": depth // 2,
    "model.width": 32,
    "batch_size": 8,
    "steps": steps,
    "seed": SEED,
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


def one(mixer: str, depth: int, steps: int) -> dict[str, Any]:
  """A training run: perplexity at the end, the step at which the loss was no number (0 = never), values by layer."""
  arm = Arm.load(f"configs/stdlib_lm.py:depth_{mixer}", overrides(depth, steps))
  last: list[dict[str, Any]] = []

  def finish(state: TrainState) -> None:
    last.append({"perplexity": arm.evaluate(state)["perplexity"], **through_depth(arm, state)})

  losses = [m["lm_loss"] / arm.config.batch_size for m in arm.train(SEED, {steps: finish})]
  diverged = 0 if np.isfinite(losses[-1]) else len(losses)
  result = (last[0] if last else {"perplexity": math.inf, "gradient": [], "cosine": []}) | {"diverged": diverged}
  print(f"{mixer}, {depth} sub-layers: perplexity {result['perplexity']:.3g}", file=sys.stderr, flush=True)
  return result | {"worst_loss": max(losses[20:], default=math.inf)}


def measure(quick: bool, cache: Cache) -> dict[str, Number]:
  """Per mixer and depth: perplexity, and at the largest depth the gradient ratio and the last cosine."""
  mixers, depths, steps = (("iso",), (8,), 30) if quick else (MIXERS, DEPTHS, STEPS)
  numbers: dict[str, Number] = {}
  rows: list[list[Any]] = []
  for depth in depths:
    for mixer in mixers:
      run = cache.get(f"{mixer}/{depth}", overrides(depth, steps), lambda m=mixer, d=depth: one(m, d, steps))
      name = f"{mixer}/{depth}"
      perplexity = run["perplexity"]
      numbers[f"{name}/perplexity"] = Number(perplexity, 0.15 * perplexity)
      ratio = run["gradient"][0] / run["gradient"][-1] if run["gradient"] else math.nan
      cosine = run["cosine"][-1] if run["cosine"] else math.nan
      numbers[f"{name}/gradient first over last layer"] = Number(ratio, 0.5 * ratio)
      numbers[f"{name}/cosine at the last layer"] = Number(cosine, 0.15)
      rows.append([mixer, depth, perplexity, run["diverged"] or "no", run["worst_loss"], ratio, cosine])
  print(table(["mixer", "sub-layers", "perplexity", "diverged at", "worst loss", "gradient 1st/last", "cosine"], rows))
  return numbers


CLAIM = Claim(FOLDER, measure, seeds=str(SEED), budget=f"{STEPS} steps of 8 windows of 64 bytes a run")

if __name__ == "__main__":
  sys.exit(CLAIM.command())
