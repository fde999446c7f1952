"""Stages of a run on pairs: loss weights, ε and learning rates at a step, and the carry that holds clock and bank."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.config.transport_fields import AlignStage, Transport
from jpmhc_jax.core.errors import ConfigError, require
from jpmhc_jax.transport import Schedule, Stage, StageClock
from jpmhc_jax.transport.stages import GROUPS

LOSSES = (
  "pairs", "contrastive", "transport", "mmd", "likelihood", "isometry", "tangent", "volume", "task", "distil",
)  # fmt: skip
NAMES = ("align", "joint", "final", "distil")  # of the stages, in their order


def stages(fields: Transport) -> tuple[Stage, ...]:
  """Those with steps. Raises ConfigError, which names the field, for a schedule that is none, and without a stage."""
  named = {name: getattr(fields, name) for name in NAMES}
  listed = tuple(_stage(name, stage) for name, stage in named.items() if stage.steps)
  require(bool(listed), "model.transport.align.steps", 0, "at least one stage with steps")
  return listed


def _stage(name: str, fields: AlignStage) -> Stage:
  def schedule(leaf: str) -> Schedule:
    try:
      return Schedule.parse(getattr(fields, leaf), fields.steps)
    except ConfigError as error:
      raise ConfigError(f"model.transport.{name}.{leaf}: {error}") from error

  epsilon, weights = schedule("epsilon"), {loss: schedule(loss) for loss in LOSSES}
  require(epsilon.least > 0, f"model.transport.{name}.epsilon", fields.epsilon, "positive numbers")
  for loss, weight in weights.items():
    require(weight.least >= 0, f"model.transport.{name}.{loss}", getattr(fields, loss), "numbers of at least 0")
  return Stage(
    name,
    fields.steps,
    multipliers={group: getattr(fields, group) for group in GROUPS},
    weights=weights,
    epsilon=epsilon,
    patience=fields.patience,
  )


def weighs(stage: Stage, loss: str) -> bool:
  """Whether a loss has weight anywhere in a stage."""
  schedule = stage.weights[loss]
  return bool(schedule.start or (schedule.kind != "constant" and schedule.end))


def used(listed: tuple[Stage, ...]) -> set[str]:
  """The losses that have weight in some stage."""
  return {loss for stage in listed for loss in LOSSES if weighs(stage, loss)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moment:
  """Where a run is, one entry a row of the batch, all equal, so that it is laid out like the batch.

  clock: stage, its own step, best alignment so far and windows without a better one. done: steps since the start of the
  window; watched: their summed alignment loss. Leaves may also be shapes or shardings.
  """

  clock: Any
  steps: Any
  watched: Any

  @classmethod
  def start(cls, rows: int) -> "Moment":
    """Before the first step."""
    moment = cls(StageClock.start(), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))
    return moment.spread(rows)

  def spread(self, rows: int) -> "Moment":
    """One entry a row."""
    result: Moment = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows,)), self)
    return result

  def scalar(self) -> "Moment":
    """The entry of the first row."""
    result: Moment = jax.tree.map(lambda leaf: leaf[0], self)
    return result

  def later(self, listed: tuple[Stage, ...], alignment: Float[Array, ""], window: int) -> "Moment":
    """One step on; at the end of a window of steps its mean alignment loss counts as an evaluation."""
    moment = dataclasses.replace(
      self, clock=self.clock.tick(listed), steps=self.steps + 1, watched=self.watched + alignment
    )
    judged = moment.clock.evaluated(listed, -moment.watched / jnp.maximum(moment.steps, 1))
    whole = moment.steps >= window
    clock = jax.tree.map(lambda new, old: jnp.where(whole, new, old), judged, moment.clock)
    return Moment(clock, jnp.where(whole, 0, moment.steps), jnp.where(whole, 0.0, moment.watched))


def now(listed: tuple[Stage, ...], clock: StageClock, metric: Any) -> tuple[Mapping[str, Array], Array]:
  """(weight of each loss, ε) at a step; metric: what schedules with a reference are tied to."""

  def chosen(values: list[Array]) -> Array:
    return jnp.stack(values)[clock.stage]

  weights = {loss: chosen([stage.weight(loss, clock.step, metric) for stage in listed]) for loss in LOSSES}
  return weights, chosen([stage.epsilon(clock.step, metric) for stage in listed])


def multiplier(listed: tuple[Stage, ...], clock: StageClock, group: str) -> Array:
  """The factor on the learning rate of a group of parameters."""
  return jnp.asarray([stage.multiplier(group) for stage in listed], jnp.float32)[clock.stage]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairCarry:
  """The batch, the moment, and both banks: each row of the batch keeps those that stood in its place before it.

  source (b, kept, m) and target (b, kept, k), latest first, None without a bank; filled (b,): steps that have come.
  Leaves may also be shapes or shardings.
  """

  data: Any
  moment: Moment
  source: Any
  target: Any
  filled: Any

  def pushed(self, x: Float[Array, "b m"], y: Float[Array, "b k"], batch: Any) -> "PairCarry":
    """With the latents of the batch before in the bank, and the new batch."""

    def one(bank: Array | None, rows: Array) -> Array | None:
      if bank is None:
        return None
      new = jax.lax.stop_gradient(rows)[:, None].astype(bank.dtype)
      return jnp.concatenate([new, bank], axis=1)[:, : bank.shape[1]]

    return PairCarry(batch, self.moment, one(self.source, x), one(self.target, y), self.filled + 1)

  def bank_weights(self) -> Float[Array, " rows"]:
    """1 for rows of the bank that have come, 0 for what stood there before the first step."""
    rows, kept = self.source.shape[:2]
    return (jnp.tile(jnp.arange(kept), rows) < self.filled[0]).astype(jnp.float32)
