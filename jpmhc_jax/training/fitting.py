"""Fitting a trained network to new puzzles: a few steps that move the rows of its table, or everything."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jpmhc_jax.config import schema
from jpmhc_jax.core import rng
from jpmhc_jax.data import Dataset
from jpmhc_jax.optim.sign_sgd import sign_sgd_rows
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.optimizer import config_schedule
from jpmhc_jax.training.state import Setup, TrainState
from jpmhc_jax.training.step import make_train_step, Metrics, refresh_carry, StepFunction
from jpmhc_jax.training.tasks.base import Batch

Say = Callable[[int, float], None]  # (finished steps, loss a row)
_SAID = 10  # steps between two looks at the loss


def fit_config(config: schema.Config, steps: int) -> schema.Config:
  """The config of `steps` steps of fitting: rates fall from the run's to 0 along a cosine; nothing is averaged."""
  optimizer = dataclasses.replace(config.optimizer, warmup_steps=0, schedule="cosine", min_ratio=0.0, ema=0.0)
  return dataclasses.replace(config, steps=max(steps, 1), optimizer=optimizer)


def fit(setup: Setup, dataset: Dataset, state: TrainState, steps: int, everything: bool, say: Say) -> TrainState:
  """The state after `steps` steps on the training examples, batch for batch those of a run of this config.

  everything=False: only rows of the puzzle table that a batch asks for move, by sign-SGD; all else keeps its bits.
  """
  step_function = make_train_step(setup) if everything else make_row_step(setup)
  place = meshes.batch_sharding(setup.mesh)
  for step in range(steps):
    state, metrics = step_function(state, jax.device_put(dataset.batch(step), place))
    if step % _SAID == 0 or step == steps - 1:
      say(step + 1, metrics.scalars()["loss"] / setup.config.batch_size)
  return state


def make_row_step(setup: Setup) -> StepFunction:
  """One step of the task's objective that moves only the table's rows; the state's buffers are donated."""
  config, task, whole = setup.config, setup.task, meshes.replicated(setup.mesh)
  rate = config_schedule(config.optimizer, config.steps, config.optimizer.puzzle.learning_rate)

  def row_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    carry = refresh_carry(setup, state, batch)
    key = rng.key_for(config.seed, "halting", state.step)

    def loss(rows: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
      return task.objective(setup.model(state.evaluated, state.buffers), rows, carry, config, key)

    rows = setup.rows(state.table, carry.data)
    (value, (carry, _)), gradients = jax.value_and_grad(loss, has_aux=True)(rows)
    ids, decay = carry.data[task.table_ids], config.optimizer.puzzle.weight_decay
    table = sign_sgd_rows(state.table, ids, gradients, rate(state.step), decay, replicated=whole)
    new = dataclasses.replace(state, step=state.step + 1, table=table, carry=carry)
    return new, Metrics.of({"loss": value}, jnp.zeros((3, 0)))

  return jax.jit(
    meshes.on_mesh(setup.mesh, row_step),
    in_shardings=(setup.shardings, meshes.batch_sharding(setup.mesh)),
    out_shardings=(setup.shardings, whole),
    donate_argnums=0,
  )
