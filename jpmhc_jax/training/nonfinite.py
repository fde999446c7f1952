"""The answer to a loss or a gradient that is NaN or infinite: how the run goes on, and where it broke.

The step itself keeps the parameters, averages and moments of the last good step (see `step.make_train_step`), so
nothing has to be undone here: `optimizer.nonfinite` only decides how the run goes on.
"""

import collections
from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jpmhc_jax.config import schema
from jpmhc_jax.training.state import Setup, TrainState
from jpmhc_jax.training.step import fresh_carry, refresh_carry

REMEDY = (
  "Lower optimizer.learning_rate, set optimizer.clip_norm=1.0, choose a norm-preserving connection.mixer, or let "
  "the run go on by optimizer.nonfinite=skip or rollback"
)


class NonFiniteLossError(Exception):
  """The loss or the gradient became NaN or infinite, and the policy does not let the run go on.

  >>> raise jp.NonFiniteLossError("step 3: loss nan, gradient norm nan")
  Traceback (most recent call last):
  jpmhc_jax.training.nonfinite.NonFiniteLossError: step 3: loss nan, gradient norm nan
  """


class RollBack(Exception):
  """The run goes back to its newest checkpoint. offset: how far the batches then run ahead of the steps."""

  def __init__(self, offset: int):
    super().__init__(f"batches ahead of the steps by {offset}")
    self.offset = offset


class Policy:
  """`optimizer.nonfinite`, and how often it was used."""

  def __init__(self, optimizer: schema.Optimizer):
    self._choice, self._limit = optimizer.nonfinite, optimizer.nonfinite_limit
    self._in_a_row = 0
    self._rollbacks: collections.Counter[int] = collections.Counter()

  def passed(self) -> None:
    """A step was finite."""
    self._in_a_row = 0

  def judge(self, saved: int) -> str:
    """'stop', 'skip' or 'rollback' for a step that was not finite. saved: step of the newest checkpoint."""
    if self._choice == "skip":
      self._in_a_row += 1
      return "skip" if self._in_a_row <= self._limit else "stop"
    if self._choice == "rollback":
      self._rollbacks[saved] += 1
      return "rollback" if self._rollbacks[saved] <= self._limit else "stop"
    return "stop"


def diagnose(
  setup: Setup,
  state: TrainState,
  batch: Any,
  mixers: Callable[[TrainState], Mapping[str, float]] | None,
) -> str:
  """Where the numbers break, in words: parameters, batch, then layers in network order, then gradients.

  Repeats the steps on the batch of the last good parameters from a fresh carry, `mixers` looking at every
  connection, until something is not finite. One compilation, only after a failure.
  """
  bad = _not_finite(state.params)
  if bad:
    return f"parameters {_listed(bad)} are not finite"
  if bad := _not_finite(batch):
    return f"the batch's {_listed(bad)} are not finite; remove such examples from the data"
  carry = _fresh(setup, state, batch)
  values: Mapping[str, float] = {}
  advance = _advancing(setup)
  count = setup.task.steps_per_batch(setup.config)
  for step in range(count):
    place = f"supervision step {step + 1}" if count > 1 else "the step"
    looked = dataclasses.replace(state, carry=carry)
    values = mixers(looked) if mixers else {}
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
      layer = broken[0].split("/")[1]
      readings = ", ".join(
        f"{name.split('/')[-1]} {value:.3g}" for name, value in values.items() if f"/{layer}/" in name
      )
      return f"{place} breaks first at {layer} ({readings}); {_largest(state.params)}"
    loss, gradients, carry = advance(looked)
    if not math.isfinite(loss):
      where = f"after {_layers(values)}" if values else "in the network or its head"
      return f"loss {loss} at {place}, {where}; {_largest(state.params)}"
    if gradients:
      return f"the loss is finite, the gradients of {_listed(gradients)} are not; {_largest(state.params)}"
  return f"not repeatable from a fresh carry: it came from the carry of earlier steps; {_largest(state.params)}"


def _fresh(setup: Setup, state: TrainState, batch: Any) -> Any:
  def create(state: TrainState, batch: Any) -> Any:
    return refresh_carry(setup, dataclasses.replace(state, carry=fresh_carry(setup, state, batch)), batch)

  return jax.jit(create)(state, batch)


def _advancing(setup: Setup) -> Callable[[TrainState], tuple[float, list[str], Any]]:
  """state -> (loss, leaves with a gradient that is no number, the carry one supervision step on)."""

  def loss(params: Any, state: TrainState) -> Any:
    rows = setup.rows(state.table, state.carry.data)
    return setup.task.objective(setup.model(params, state.buffers), rows, state.carry, setup.config, None)

  compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))

  def advance(state: TrainState) -> tuple[float, list[str], Any]:
    (value, (carry, _)), gradients = compiled(state.params, state)
    return float(value), _not_finite(gradients), carry

  return advance


@jax.jit
def _finite(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree)


@jax.jit
def _sizes(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.max(jnp.abs(x)), tree)


def _not_finite(tree: Any) -> list[str]:
  finite = jax.device_get(_finite(tree))
  return [jax.tree_util.keystr(path) for path, good in jax.tree_util.tree_leaves_with_path(finite) if not good]


def _largest(params: Any, count: int = 3) -> str:
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(_sizes(params)))
  largest = sorted(leaves, key=lambda item: -item[1])[:count]
  return "largest parameters " + ", ".join(f"{jax.tree_util.keystr(path)} {size:.3g}" for path, size in largest)


def _listed(names: list[str], count: int = 5) -> str:
  more = f" and {len(names) - count} more" if len(names) > count else ""
  return ", ".join(names[:count]) + more


def _layers(values: Mapping[str, float]) -> str:
  return " and ".join(dict.fromkeys(name.split("/")[1] for name in values if "/composite/" not in name))
