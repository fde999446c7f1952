"""Learning-rate schedules: linear warm-up, then constant, cosine or step decay.

Steps are counted from 1, as in the published trainer: step 1 uses learning_rate / warmup_steps and step `warmup_steps`
the full learning rate. optax hands a schedule the number of updates made so far, which is step - 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jpmhc_jax.core.errors import check_choice, ConfigError

__all__ = ["KINDS", "ScalarOrSchedule", "make_schedule"]

ScalarOrSchedule = float | int | jax.Array | Callable[..., Any]
KINDS = ("constant", "cosine", "step")


def make_schedule(
  kind: str,
  learning_rate: float,
  warmup_steps: int,
  total_steps: int,
  min_ratio: float = 1.0,
  step_boundaries: Sequence[float] = (),
  step_factors: Sequence[float] = (),
) -> optax.Schedule:
  """A learning rate as a function of the update count (step - 1): linear warm-up, then constant, cosine or steps.

  step < warmup_steps:  learning_rate * step / warmup_steps
  constant:             learning_rate
  cosine:               learning_rate * (r + (1 - r) (1 + cos(pi t)) / 2),  t = (step - warmup) / (total - warmup),
                        r = min_ratio
  step:                 learning_rate * step_factors[i] for the last i with step >= step_boundaries[i] * total_steps

  Raises ConfigError for an unknown kind, a negative warm-up, or boundaries and factors that do not pair up in order.
  Source: TinyRecursiveModels `cosine_schedule_with_warmup_lr_lambda`; step decay from arXiv 2602.18308.

  >>> schedule = jp.optim.make_schedule("cosine", 0.4, warmup_steps=4, total_steps=8, min_ratio=0.0)
  >>> [round(float(schedule(count)), 2) for count in (0, 3, 5, 7)]
  [0.1, 0.4, 0.2, 0.0]
  """
  _check(kind, warmup_steps, total_steps, step_boundaries, step_factors)
  warmup = max(warmup_steps, 0)
  edges = [round(boundary * total_steps) for boundary in step_boundaries]

  def after_warmup(step: jax.Array) -> Any:
    if kind == "constant":
      return learning_rate
    if kind == "cosine":
      progress = jnp.clip((step - warmup) / max(1, total_steps - warmup), 0.0, 1.0)
      return learning_rate * (min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress)))
    factor = jnp.ones(jnp.shape(step))
    for edge, value in zip(edges, step_factors, strict=True):
      factor = jnp.where(step >= edge, value, factor)
    return learning_rate * factor

  def schedule(count: Any) -> Any:
    step = jnp.asarray(count) + 1
    return jnp.where(step < warmup, learning_rate * step / max(1, warmup), after_warmup(step))

  return schedule


def _check(
  kind: str, warmup_steps: int, total_steps: int, boundaries: Sequence[float], factors: Sequence[float]
) -> None:
  check_choice("optimizer.schedule", kind, KINDS)
  if warmup_steps < 0:
    raise ConfigError(f"optimizer.warmup_steps={warmup_steps}: expected 0 or more; 0 starts at the full learning rate.")
  if total_steps < 1:
    raise ConfigError(f"steps={total_steps}: a schedule needs at least one step.")
  if kind != "step":
    return
  if len(boundaries) != len(factors):
    raise ConfigError(
      f"optimizer.step_boundaries={tuple(boundaries)}, step_factors={tuple(factors)}: expected one factor a boundary."
    )
  if list(boundaries) != sorted(boundaries) or any(not 0.0 <= b <= 1.0 for b in boundaries):
    raise ConfigError(
      f"optimizer.step_boundaries={tuple(boundaries)}: expected increasing fractions of the run, between 0 and 1."
    )
