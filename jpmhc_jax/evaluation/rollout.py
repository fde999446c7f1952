"""The evaluation rollout: the model's answers to held-out examples, jitted over the mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from jpmhc_jax.models.deep_supervision import Batch
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.state import Setup

Predictions = dict[str, Array]
Rollout = Callable[[Any, Any, Array | None, Batch], Predictions]


def make_rollout(setup: Setup) -> Rollout:
  """A jitted (params, buffers, table, batch) -> what `setup.kind.answer` says of every row.

  The batch's `puzzle_identifiers` are read as given, so an ablation can permute them.
  """
  by_row = meshes.batch_sharding(setup.mesh)

  def rollout(params: Any, buffers: Any, table: Array | None, batch: Batch) -> Predictions:
    model = setup.model(params, buffers)
    rows = None if table is None else table[batch["puzzle_identifiers"]]
    return setup.kind.answer(model, rows, batch, setup.config)

  layout = setup.shardings
  inputs = (layout.params, layout.buffers, layout.table, by_row)
  return jax.jit(meshes.on_mesh(setup.mesh, rollout), in_shardings=inputs, out_shardings=by_row)
