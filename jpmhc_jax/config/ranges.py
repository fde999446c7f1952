"""The numbers that single fields of a config may hold; what ties fields together is `config.load.validate`."""

from collections.abc import Iterator, Mapping
import math
from typing import Any

from jpmhc_jax.core.errors import require
from jpmhc_jax.core.scalars import LARGEST_SEED, SEED_RANGE

_AT_LEAST_ONE = (
  "steps", "batch_size", "accumulation", "model.width", "model.heads", "model.layers", "model.mlp_multiple",
  "model.patch", "model.recursion.outer", "model.recursion.inner", "model.recursion.max_steps", "model.puzzle.slots",
  "data.sudoku.shuffles", "connection.streams", "processes.heartbeat_s", "optimizer.nonfinite_limit",
)  # fmt: skip
_NOT_NEGATIVE = (
  "budget_seconds", "data.prefetch", "model.norm_epsilon", "connection.norm_epsilon", "connection.read_epsilon",
  "connection.init_scale", "optimizer.weight_decay", "optimizer.clip_norm", "optimizer.warmup_steps",
  "optimizer.min_ratio", "optimizer.mixer.learning_rate_multiplier", "optimizer.mixer.weight_decay",
  "optimizer.mixer.clip_norm", "optimizer.mixer.manifold_learning_rate", "optimizer.mixer.stabilize_every",
  "optimizer.puzzle.learning_rate", "optimizer.puzzle.weight_decay", "checkpoint.every", "checkpoint.keep",
  "evaluation.every", "evaluation.batch_size", "evaluation.max_examples", "evaluation.save_every", "logging.every",
  "logging.diagnostics_every", "logging.peak_tflops",
)  # fmt: skip
_POSITIVE = (
  "model.expansion", "model.rope_theta", "connection.temperature", "optimizer.learning_rate",
  "processes.start_timeout_s",
)  # fmt: skip
_DECAYS = ("optimizer.beta1", "optimizer.beta2", "optimizer.ema")
_FACTORS, _BOUNDARIES = ("optimizer.step_factors",), ("optimizer.step_boundaries",)
_SHARES = ("model.recursion.exploration", "data.maze.loops")
_SEEDS = ("seed", "data.arc.builder_seed")


def check(values: Mapping[str, Any], prefix: str = "") -> None:
  """Raises ConfigError for the first number that `out_of_range` finds."""
  for name, value, expected in out_of_range(values, prefix):
    require(False, name, value, expected)


def out_of_range(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, str]]:
  """(field, value, what was expected) for every number outside its range, by dotted name; NaN and inf are in none.

  prefix: `values` holds the fields whose names begin so, and only these are looked at.
  """
  for name, value in values.items():
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
      yield name, value, "a finite number"
  rules = (
    (_AT_LEAST_ONE, lambda v: v >= 1, "at least 1"),
    (_NOT_NEGATIVE, lambda v: v >= 0, "0 or a positive number"),
    (_POSITIVE, lambda v: v > 0, "a positive number"),
    (_DECAYS, lambda v: 0 <= v < 1, "0 to below 1"),
    (_SHARES, lambda v: 0 <= v <= 1, "0 to 1"),
    (_FACTORS, lambda v: all(factor >= 0 for factor in v), "numbers of at least 0"),
    (_BOUNDARIES, lambda v: list(v) == sorted(v) and all(0 <= share <= 1 for share in v), "0 to 1, in rising order"),
    (_SEEDS, lambda v: 0 <= v <= LARGEST_SEED, SEED_RANGE),
  )
  for names, good, expected in rules:
    chosen = (name for name in names if name.startswith(prefix))
    yield from ((name, values[name], expected) for name in chosen if not good(values[name]))
