"""The evaluation rollout: every example takes all supervision steps with averaged parameters; the last one answers."""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from jpmhc_jax.models.deep_supervision import Batch, Carry
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.objective import forward, HALT_WEIGHT, losses
from jpmhc_jax.training.state import Setup

Predictions = dict[str, Array]
Rollout = Callable[[Any, Any, Array | None, Batch], Predictions]


def make_rollout(setup: Setup) -> Rollout:
  """A jitted (params, buffers, table, batch) -> per-row predictions (b, s), q_halt (b,), losses and accuracies (b,).

  No row halts before `model.recursion.max_steps`; q is not used to stop. The batch's `puzzle_identifiers` are read as
  given, so an ablation can permute them.
  """
  config, graph = setup.config, setup.graph
  sharding, whole = meshes.batch_sharding(setup.mesh), meshes.replicated(setup.mesh)

  def rollout(params: Any, buffers: Any, table: Array | None, batch: Batch) -> Predictions:
    model = nnx.merge(graph, nnx.State(params), nnx.State(buffers))
    rows = None if table is None else table[batch["puzzle_identifiers"]]
    count, length = batch["inputs"].shape
    steps = jnp.zeros((count,), jnp.int32)
    start = model.initial_latents(count, length + config.model.puzzle.slots)
    step = functools.partial(forward, graph, params, buffers, rows)

    def one(latents: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
      output = step(Carry(latents[0], latents[1], steps, steps > 0, batch))
      return (output.z_h, output.z_l), None

    latents, _ = jax.lax.scan(one, start, None, length=config.model.recursion.max_steps - 1)
    output = step(Carry(latents[0], latents[1], steps, steps > 0, batch))
    per_row = losses(output, batch["labels"], config.model.loss)
    per_row["loss"] = per_row["lm_loss"] + HALT_WEIGHT * per_row["q_halt_loss"]
    return per_row | {"predictions": jnp.argmax(output.logits, axis=-1).astype(jnp.int32), "q_halt": output.q[:, 0]}

  layout = setup.shardings
  return jax.jit(rollout, in_shardings=(layout.params, layout.buffers, layout.table, sharding), out_shardings=whole)
