"""What one field of a config takes: a value of its own kind, one of its choices, a path of this machine."""

import dataclasses
from typing import Any

from jpmhc_jax.core import places
from jpmhc_jax.core.errors import check_choice, ConfigError
from jpmhc_jax.core.scalars import plain, whole


def convert(field: dataclasses.Field, value: Any, name: str) -> Any:
  """The value as the field holds it: Python's own for a scalar of NumPy or JAX, a float for a whole number, a path
  made absolute.

  Raises ConfigError that calls the field `name` for a value of another kind, none of its choices, or no path here.
  """
  default, value = field.default, plain(value)
  if isinstance(default, tuple):
    numbers = [plain(v) for v in value] if isinstance(value, list | tuple) else [None]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
      raise ConfigError(f"{name}={value!r}: expected numbers such as {default!r}")
    return tuple(numbers)
  if isinstance(default, float) and whole(value) is not None:
    return float(value)
  if type(value) is not type(default):
    raise ConfigError(f"{name}={value!r}: expected {type(default).__name__}, got {type(value).__name__}")
  if field.metadata["choices"]:
    check_choice(name, str(value), field.metadata["choices"])
  return _absolute(str(value), name) if field.metadata["path"] and value else value


def _absolute(path: str, name: str) -> str:
  try:
    return str(places.local(path))
  except ValueError as error:
    raise ConfigError(f"{name}={path!r}: expected {error}") from error
