"""Training in stages: schedules of loss weights and of ε, stages that end by steps or a metric, and banks of rows."""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jpmhc_jax.core.errors import check_choice, ConfigError, require
from jpmhc_jax.core.fields import check_number, check_whole

__all__ = ["GROUPS", "SCHEDULES", "RowBank", "Schedule", "Stage", "StageClock"]

SCHEDULES = ("constant", "linear", "cosine", "decay")
GROUPS = ("map", "source", "target", "head", "fused")


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A number as a function of the step t of its stage; traced steps are welcome.

  constant: start.  linear, cosine: from start to end over `steps` steps, then end.  decay: max(end, start · rate^t),
  for ε. reference: the value is multiplied by min(1, metric / reference) of a metric of the caller; 0 for none.
  Raises ConfigError for an unknown kind, ends that are not finite, steps below 1, a rate outside (0, 1).

  >>> schedule = jp.transport.Schedule("linear", 1.0, 0.0, steps=4)
  >>> [float(schedule(t)) for t in (0, 1, 4, 9)]
  [1.0, 0.75, 0.0, 0.0]
  """

  kind: str = "constant"
  start: float = 0.0
  end: float = 0.0
  steps: int = 1
  rate: float = 0.99
  reference: float = 0.0

  def __post_init__(self) -> None:
    check_choice("kind", self.kind, SCHEDULES)
    check_number("start", self.start)
    check_number("end", self.end)
    check_whole("steps", self.steps, ge=1)
    check_number("rate", self.rate, gt=0, lt=1)
    check_number("reference", self.reference, ge=0)

  @property
  def least(self) -> float:
    """The least of its values, metrics aside."""
    return self.start if self.kind == "constant" else min(self.start, self.end)

  @classmethod
  def parse(cls, text: str, steps: int = 1) -> "Schedule":
    """A number, or kind(start, end, option=…) with steps, rate or reference as options; `steps` where none are given.

    Raises ConfigError for other text.

    >>> jp.transport.Schedule.parse("linear(1, 0)", steps=200)(50).tolist()
    0.75
    """
    match = re.fullmatch(r"\s*(?:(\w+)\((.*)\)|([^()]+))\s*", text)
    kind, inside = (match[1] or "constant", match[2] or match[3] or "") if match else ("", "")
    parts = [part.strip() for part in inside.split(",")]
    words = "a number, or a schedule such as linear(1, 0), cosine(1, 0, steps=200), decay(1, 0.05, rate=0.98)"
    positions = [part for part in parts if "=" not in part]
    named = dict(part.replace(" ", "").split("=", 1) for part in parts if "=" in part)
    known = len(positions) in (1, 2) and set(named) <= {"steps", "rate", "reference"}
    require(match is not None and known, "schedule", text, words)
    check_choice("schedule", kind, SCHEDULES)
    try:
      values: dict[str, Any] = dict(zip(("start", "end"), map(float, positions), strict=False))
      values |= {"steps": steps} | {name: (int if name == "steps" else float)(value) for name, value in named.items()}
    except ValueError:
      raise ConfigError(f"schedule={text!r}: expected {words}") from None
    return cls(kind, **values)

  def __call__(self, t: Any, metric: Any = None) -> Float[Array, ""]:
    """The value at step t. Raises ConfigError where a metric is needed and none is given."""
    step = jnp.asarray(t, jnp.float32)
    share = jnp.clip(step / self.steps, 0.0, 1.0)
    value = {
      "constant": lambda: jnp.full((), self.start, jnp.float32),
      "linear": lambda: self.start + (self.end - self.start) * share,
      "cosine": lambda: self.end + (self.start - self.end) * 0.5 * (1 + jnp.cos(jnp.pi * share)),
      "decay": lambda: jnp.maximum(self.end, self.start * self.rate**step),
    }[self.kind]()
    if not self.reference:
      return value
    if metric is None:
      raise ConfigError(f"reference={self.reference}: expected a metric beside it; pass metric=…")
    return value * jnp.clip(jnp.asarray(metric, jnp.float32) / self.reference, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Stage:
  """A part of a run: which groups move and how fast, loss weights by name, and when it is over.

  multipliers: learning-rate multipliers of the `GROUPS`, 0 for what stands still; steps: at most so many; patience:
  over when the metric has not improved for so many evaluations, 0 for never.
  Raises ConfigError for an unknown group, a negative multiplier, an ε that is not positive, or numbers out of range.

  >>> jp.transport.Stage("pre-align", 100, multipliers={"map": 1.0}).multiplier("head")
  0.0
  """

  name: str
  steps: int
  multipliers: Any = dataclasses.field(default_factory=lambda: {"map": 1.0})
  weights: Any = dataclasses.field(default_factory=dict)
  epsilon: Schedule = Schedule("decay", 1.0, 0.05, rate=0.98)
  patience: int = 0

  def __post_init__(self) -> None:
    check_whole(f"stage {self.name!r} steps", self.steps, ge=1)
    check_whole(f"stage {self.name!r} patience", self.patience, ge=0)
    for group, value in self.multipliers.items():
      check_choice(f"stage {self.name!r} multipliers", group, GROUPS)
      check_number(f"stage {self.name!r} multipliers.{group}", value, ge=0)
    check_number(f"stage {self.name!r} epsilon", self.epsilon.least, gt=0)

  def multiplier(self, group: str) -> float:
    """The learning-rate multiplier of a group, 0 where none is given."""
    return float(self.multipliers.get(group, 0.0))

  def weight(self, name: str, t: Any, metric: Any = None) -> Float[Array, ""]:
    """The weight of a loss at step t of the stage, 0 where none is given."""
    result: Array = self.weights.get(name, Schedule())(t, metric)
    return result


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StageClock:
  """Where a run is: the stage, its own step, and what its metric has been. A pytree, saved with the run.

  >>> stages = (jp.transport.Stage("a", 2), jp.transport.Stage("b", 5, patience=1))
  >>> clock = jp.transport.StageClock.start()
  >>> for _ in range(3):
  ...   clock = clock.tick(stages)
  >>> int(clock.stage), int(clock.step)
  (1, 1)
  """

  stage: Any  # () int32; the leaves may also be shapes, shardings, or repeated along an axis
  step: Any  # () int32
  best: Any  # () float32
  stale: Any  # () int32

  @classmethod
  def start(cls, stage: Any = 0) -> "StageClock":
    """The first step of a stage."""
    zero = jnp.zeros((), jnp.int32)
    return cls(jnp.asarray(stage, jnp.int32), zero, jnp.full((), -jnp.inf, jnp.float32), zero)

  def tick(self, stages: Sequence[Stage]) -> "StageClock":
    """One training step later. The last stage does not end."""
    moved = dataclasses.replace(self, step=self.step + 1)
    lengths = jnp.asarray([stage.steps for stage in stages], jnp.int32)
    return moved._next_where(moved.step >= lengths[self.stage], len(stages))

  def evaluated(self, stages: Sequence[Stage], metric: Any) -> "StageClock":
    """After an evaluation whose metric, higher being better, has this value."""
    value = jnp.asarray(metric, jnp.float32)
    better = value > self.best
    stale = jnp.where(better, 0, self.stale + 1)
    seen = dataclasses.replace(self, best=jnp.maximum(self.best, value), stale=stale)
    patience = jnp.asarray([stage.patience for stage in stages], jnp.int32)[self.stage]
    return seen._next_where((patience > 0) & (stale >= patience), len(stages))

  def _next_where(self, over: Array, count: int) -> "StageClock":
    fresh = self.start(jnp.minimum(self.stage + 1, count - 1))
    ends = over & (self.stage < count - 1)
    result: StageClock = jax.tree.map(lambda new, old: jnp.where(ends, new, old), fresh, self)
    return result


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowBank:
  """The last rows of a cloud, first in, first out: a pytree. Its rows carry no gradient.

  rows (size, d); count: how many have come so far. Rows that never came have the weight 0.

  >>> bank = jp.transport.RowBank.empty(3, 1).push(jnp.array([[1.0], [2.0]])).push(jnp.array([[3.0], [4.0]]))
  >>> sorted(bank.rows.ravel().tolist()), bank.weights().tolist()
  ([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])
  """

  rows: Float[Array, "size d"]
  count: Int[Array, ""]

  @classmethod
  def empty(cls, size: int, width: int) -> "RowBank":
    """A bank before the first row. Raises ConfigError for a size below 1."""
    check_whole("bank", size, ge=1)
    return cls(jnp.zeros((size, width), jnp.float32), jnp.zeros((), jnp.int32))

  def push(self, rows: Shaped[Array, "b d"]) -> "RowBank":
    """The bank with a batch in place of its oldest rows. Raises ConfigError for a larger or a wider one."""
    (size, width), batch = self.rows.shape, len(rows)
    require(rows.shape == (batch, width), "rows", rows.shape, f"(b, {width}), as the bank has them")
    require(batch <= size, "bank", size, f"at least the batch of {batch} rows")
    new = jax.lax.stop_gradient(rows).astype(self.rows.dtype)
    return RowBank(jnp.concatenate([self.rows[batch:], new]), self.count + batch)

  def weights(self) -> Float[Array, " size"]:
    """1 for rows that have come, 0 for the others."""
    size = len(self.rows)
    return (jnp.arange(size) >= size - jnp.minimum(self.count, size)).astype(self.rows.dtype)
