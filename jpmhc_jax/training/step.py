"""The training step: one donated jax.jit from (state, batch) to (state, metrics)."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
import optax

from jpmhc_jax.core import rng
from jpmhc_jax.optim.ema import ema_decay, ema_update
from jpmhc_jax.optim.sign_sgd import sign_sgd_rows
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.optimizer import config_schedule
from jpmhc_jax.training.state import Setup, TrainState
from jpmhc_jax.training.tasks.base import Batch, Sums


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
  """What a step says about itself, in two arrays: each further one costs the host a buffer and a transfer every step.

  values: one float32 a name. layer_norms: see `LayerNorms`. Of a step under `jax.vmap`, with the runs in front.
  """

  values: Float[Array, "*runs names"]
  layer_norms: Float[Array, "*runs 3 layers"]
  names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

  @classmethod
  def of(cls, scalars: dict[str, Array], layer_norms: Float[Array, "3 layers"]) -> "Metrics":
    """The metrics of scalars by name, traced."""
    return cls(jnp.stack(list(scalars.values())), layer_norms, tuple(scalars))

  def scalars(self) -> dict[str, float]:
    """The values by name; waits for the step."""
    return dict(zip(self.names, np.asarray(self.values).tolist(), strict=True))


OF_THE_STEP = ("gradient_norm", "finite")  # metrics that are no sums over rows
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(setup: Setup) -> StepFunction:
  """One step of the model's objective and one optimiser step; the state's buffers are donated.

  Order: refresh the carry, gather their puzzle rows, differentiate with respect to parameters and
  rows, move the parameters by the optimiser and the rows by sign-SGD, average the parameters. What the model's other
  variables hold behind the objective, such as running averages of a norm, is kept. A step whose loss or gradient is not
  finite (`finite` = 0) changes no parameter, variable, average or moment, and starts the carry anew.
  """
  config, whole = setup.config, meshes.replicated(setup.mesh)
  puzzle_rate = config_schedule(config.optimizer, config.steps, config.optimizer.puzzle.learning_rate)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    start = refresh_carry(setup, state, batch)
    rows = setup.rows(state.table, start.data)
    (grads, row_grads), carry, scalars, buffers = accumulate(setup, state, start, rows)
    with jax.named_scope("optimizer"):
      updates, optimizer = setup.optimizer.update(grads, state.optimizer, state.params)
      updates = setup.task.adjust(state.params, updates, start, config)
      params = optax.apply_updates(state.params, updates)
    table = state.table
    if row_grads is not None:
      decay = config.optimizer.puzzle.weight_decay
      ids = carry.data[setup.task.table_ids]
      table = sign_sgd_rows(table, ids, row_grads, puzzle_rate(state.step), decay, replicated=whole)
    average = config.optimizer
    rate = ema_decay(average.ema, state.step + 1) if average.ema_warmup else average.ema
    ema = None if state.ema is None else ema_update(state.ema, params, rate)
    scalars["gradient_norm"] = optax.tree.norm(grads)
    finite = jnp.isfinite(scalars["loss"] + optax.tree.norm((grads, row_grads)))
    scalars["finite"] = finite.astype(jnp.float32)
    # The carry is started anew rather than kept: the old one would have to outlive the step, at the cost of its size.
    new = (params, ema, optimizer, table, buffers, carry)
    old = (state.params, state.ema, state.optimizer, state.table, state.buffers, _restarted(setup, state, batch))
    params, ema, optimizer, table, buffers, carry = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    buffers = with_progress(buffers, (state.step + 1) / config.steps)
    metrics = Metrics.of(scalars, setup.layers(grads, state.params, updates))
    return TrainState(state.step + 1, params, ema, optimizer, buffers, table, carry), metrics

  return jax.jit(
    meshes.on_mesh(setup.mesh, train_step),
    in_shardings=(setup.shardings, meshes.batch_sharding(setup.mesh)),
    out_shardings=(setup.shardings, whole),
    donate_argnums=0,
  )


def with_progress(buffers: Any, share: Array) -> Any:
  """The model's buffers with every `progress` set to the share of the run that is done; see `connections.module`."""

  def one(path: tuple[Any, ...], leaf: Array) -> Array:
    named = jax.tree_util.keystr(path[-1:], simple=True) == "progress"
    return jnp.full_like(leaf, share) if named else leaf

  return jax.tree_util.tree_map_with_path(one, buffers)


def fresh_carry(setup: Setup, state: TrainState, batch: Batch) -> Any:
  """The carry before the first step; `batch` only gives shapes."""
  model = setup.model(state.params, state.buffers)
  return setup.task.initial_carry(model, jax.tree.map(jnp.zeros_like, batch))


def _restarted(setup: Setup, state: TrainState, batch: Batch) -> Any:
  """The carry after a step that is no number."""
  model = setup.model(state.params, state.buffers)
  return setup.task.restart(model, state.carry, jax.tree.map(jnp.zeros_like, batch))


def refresh_carry(setup: Setup, state: TrainState, batch: Batch) -> Any:
  """The carry of the next step."""
  model = setup.model(state.params, state.buffers)
  return setup.task.refresh(model, state.carry, batch)


def accumulate(
  setup: Setup, state: TrainState, carry: Any, rows: Array | None
) -> tuple[tuple[Any, Array | None], Any, Sums, Any]:
  """Gradients of the mean loss over the global batch, the carry after the step, sums over rows, `loss` among them, and
  the model's buffers as the objective left them.

  Micro-batch k takes every accumulation-th row of the carry, and the buffers that the one before left. Rows are dealt
  round robin, so that each device keeps its own rows and nothing moves between devices.
  """
  config, pieces = setup.config, setup.config.accumulation

  def loss(
    params: Any, rows: Array | None, carry: Any, buffers: Any, key: Array
  ) -> tuple[Array, tuple[Any, Sums, Any]]:
    model = setup.model(params, buffers)
    value, (carry, metrics) = setup.task.objective(model, rows, carry, config, key)
    return value, (carry, metrics, setup.buffers_of(model))

  differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  key = rng.key_for(config.seed, "halting", state.step)

  def one(sofar: Any, piece: tuple[Any, Array | None, Array]) -> tuple[Any, tuple[Any, Array | None, Sums]]:
    (total, buffers), (carry, rows, index) = sofar, piece
    halting = jax.random.fold_in(key, index)
    (value, (carry, metrics, buffers)), (grads, row_grads) = differentiate(state.params, rows, carry, buffers, halting)
    return (jax.tree.map(jnp.add, total, grads), buffers), (carry, row_grads, metrics | {"loss": value})

  start = (jax.tree.map(jnp.zeros_like, state.params), state.buffers)
  if pieces == 1:
    (total, buffers), (carry, row_grads, metrics) = one(start, (carry, rows, jnp.zeros((), jnp.int32)))
  else:
    dealt = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0), (carry, rows))
    (total, buffers), (*after, metrics) = jax.lax.scan(one, start, (dealt[0], dealt[1], jnp.arange(pieces)))
    carry, row_grads = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tuple(after))
    metrics = jax.tree.map(jnp.sum, metrics)
  return jax.tree.map(lambda g: g / config.batch_size, (total, row_grads)), carry, metrics, buffers
