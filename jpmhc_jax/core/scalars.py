"""Numbers of NumPy and JAX as Python's: what a config, a sweep and a layer index are made of."""

import operator
from typing import Any


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
