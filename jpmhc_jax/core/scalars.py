"""Numbers that a user gives: those of NumPy and JAX as Python's, and the seeds that a run may have."""

import operator
from typing import Any

from jpmhc_jax.core.errors import require


def plain(value: Any) -> Any:
  """A scalar of NumPy or JAX as Python's bool, int, float or str; every other value as it is.

  Raises TypeError for a number that JAX traces, which has no value yet.
  """
  return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def whole(value: Any) -> int | None:
  """The value of a whole number of any library; None for all else, such as True, 1.0, an array or a traced number."""
  try:
    return None if isinstance(plain(value), bool) else operator.index(value)
  except TypeError:
    return None


LARGEST_SEED = 2**32 - 1  # JAX and NumPy's legacy generator tell seeds apart by 32 bits
SEED_RANGE = f"0 to {LARGEST_SEED}"


def check_seed(field: str, seed: int) -> None:
  """Raises ConfigError unless the seed is one that no other seed starts like: 0 to 2³²−1."""
  require(0 <= seed <= LARGEST_SEED, field, seed, SEED_RANGE)
