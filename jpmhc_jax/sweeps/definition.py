"""What a sweep file returns: `Sweep`, a space with the `Budget` of its runs. Imports no JAX: every job imports it."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import differing_digits, nearest
from jpmhc_jax.core.names import Point
from jpmhc_jax.core.scalars import plain
from jpmhc_jax.sweeps.space import Space, SweepError

KINDS = ("steps", "examples", "flops", "seconds")
MOST_STEPS = 2**31 - 1
Cost = Callable[[schema.Config], float | int]


@dataclasses.dataclass(frozen=True)
class Budget:
  """What every run of a sweep may spend, so that arms of different cost compare.

  kind: 'steps'; 'examples' (steps × batch_size); 'flops' (model FLOPs of all steps together: their matrix products);
  'seconds' (of wall time: each run stops, evaluates and saves when they are spent; `steps` stays the upper limit, and
  schedules follow it).
  """

  kind: Any
  amount: Any

  def __post_init__(self) -> None:
    if not isinstance(self.kind, str) or self.kind not in KINDS:
      raise SweepError(f"budget {self.kind!r}: expected one of {', '.join(KINDS)}.{nearest(str(self.kind), KINDS)}")
    amount = plain(self.amount)
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < math.inf:
      raise SweepError(f"budget {self.kind}={amount!r}: expected a positive number")
    object.__setattr__(self, "amount", amount)

  def override(self, config: schema.Config, flops_per_step: Cost) -> Point:
    """The fields that hold a run to the budget. Raises SweepError when it does not pay for one step."""
    if self.kind == "seconds":
      return {"budget_seconds": float(self.amount)}
    each = {"steps": 1.0, "examples": float(config.batch_size)}.get(self.kind) or flops_per_step(config)
    steps = int(self.amount / each)
    if steps < 1:
      given, needed = differing_digits(float(self.amount), each)
      raise SweepError(f"budget {self.kind}={given}: one step takes {needed}; give more")
    if steps > MOST_STEPS:
      raise SweepError(f"budget {self.kind}={self.amount:g}: pays for {steps:.3g} steps; expected at most {MOST_STEPS}")
    return {"steps": steps}


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What `get_sweep()` returns when it says more than the space.

  space: the points; budget: what each run may spend, ('flops', 1e15) or a Budget, None leaves `steps` of the config;
  metric: what a search maximises or minimises and reports rank by, of what the runs' evaluations record ('' takes the
  main metric of the data kind).
  """

  space: Any
  budget: Any = None
  metric: Any = ""

  def __post_init__(self) -> None:
    if not isinstance(self.space, Space):
      raise SweepError(f"Sweep(space={self.space!r}): expected a space, such as sweep('steps', [100, 200])")
    if not isinstance(self.metric, str):
      raise SweepError(f"Sweep(metric={self.metric!r}): expected the name of a metric, such as 'exact_accuracy'")
    _ = self.limit  # a budget of the wrong form is found here

  @property
  def limit(self) -> Budget | None:
    """The budget. Raises SweepError for what is none."""
    if self.budget is None or isinstance(self.budget, Budget):
      return self.budget
    if not isinstance(self.budget, tuple | list) or len(self.budget) != 2:
      raise SweepError(f"Sweep(budget={self.budget!r}): expected None or a kind and an amount, as ('flops', 1e15)")
    return Budget(*self.budget)
