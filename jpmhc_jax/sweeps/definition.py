"""What a sweep file returns: a space, and what every run of it may spend. Imports no JAX: every job reads this room."""

from collections.abc import Callable
import dataclasses

from jpmhc_jax.core import schema
from jpmhc_jax.core.errors import nearest
from jpmhc_jax.core.names import Point
from jpmhc_jax.sweeps.space import Space, SweepError

KINDS = ("steps", "examples", "flops", "seconds")
Cost = Callable[[schema.Config], float | int]


@dataclasses.dataclass(frozen=True)
class Budget:
  """What every run of a sweep may spend, so that arms of different cost compare.

  kind: 'steps'; 'examples' (steps × batch_size); 'flops' (model FLOPs of all steps together: their matrix products);
  'seconds' (of wall time: each run stops, evaluates and saves when they are spent; `steps` stays the upper limit, and
  schedules follow it).
  """

  kind: str
  amount: float | int

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise SweepError(f"budget {self.kind!r}: expected one of {', '.join(KINDS)}.{nearest(self.kind, KINDS)}")
    if not self.amount > 0:
      raise SweepError(f"budget {self.kind}={self.amount}: expected a positive number")

  def override(self, config: schema.Config, flops_per_step: Cost) -> Point:
    """The fields that hold a run to the budget. Raises SweepError when it does not pay for one step."""
    if self.kind == "seconds":
      return {"budget_seconds": float(self.amount)}
    each = {"steps": 1.0, "examples": float(config.batch_size)}.get(self.kind) or flops_per_step(config)
    steps = int(self.amount / each)
    if steps < 1:
      raise SweepError(f"budget {self.kind}={self.amount:g}: one step takes {each:g}; give more")
    return {"steps": steps}


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What `get_sweep()` returns when it says more than the space.

  space: the points; budget: what each run may spend, ('flops', 1e15) or a Budget, None leaves `steps` of the config;
  metric: what a search maximises or minimises and reports rank by, of what the runs' evaluations record ('' takes the
  main metric of the data kind).
  """

  space: Space
  budget: Budget | tuple[str, float | int] | None = None
  metric: str = ""

  @property
  def limit(self) -> Budget | None:
    return Budget(*self.budget) if isinstance(self.budget, tuple) else self.budget
