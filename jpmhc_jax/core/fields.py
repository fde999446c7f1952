"""Fields of a config, ours and those of plugins: what one means, and what it takes.

A field takes a value of its own kind, one of its choices, numbers within its bounds, a path of this machine.
"""

from collections.abc import Callable
import dataclasses
import math
import pathlib
from typing import Any

from jpmhc_jax.core import places
from jpmhc_jax.core.errors import check_choice, ConfigError, require
from jpmhc_jax.core.scalars import plain, whole


@dataclasses.dataclass(frozen=True)
class Bounds:
  """The numbers that a field takes; of a tuple, all must be such numbers, and with `rising` in this order.

  ge: at least; gt: above; le: at most; lt: below.

  >>> str(Bounds(ge=0, lt=1)), Bounds(ge=0, lt=1).hold(1.0)
  ('0 to below 1', False)
  """

  ge: int | float | None = None
  gt: int | float | None = None
  le: int | float | None = None
  lt: int | float | None = None
  rising: bool = False

  def hold(self, value: Any) -> bool:
    """Whether the value, of any kind where there are no bounds, is within them."""
    numbers = value if isinstance(value, tuple) else (value,)
    return all(map(self._holds, numbers)) and (not self.rising or list(numbers) == sorted(numbers))

  def _holds(self, number: Any) -> bool:
    return (
      (self.ge is None or number >= self.ge)
      and (self.gt is None or number > self.gt)
      and (self.le is None or number <= self.le)
      and (self.lt is None or number < self.lt)
    )

  def __str__(self) -> str:
    """The bounds in words, as "at least 1"; empty without any."""
    low = "" if self.ge is self.gt is None else f"above {self.gt}" if self.ge is None else f"{self.ge}"
    high = "" if self.le is self.lt is None else f"below {self.lt}" if self.le is None else f"{self.le}"
    if low and high:
      words = f"{low} to {high}"
    elif self.gt == 0:
      words = "a positive number"
    else:
      words = f"at least {low}" if self.ge is not None else f"at most {high}" if self.le is not None else low or high
    return f"{words}, in rising order" if self.rising else words


def field(
  default: Any, doc: str, choices: tuple[str, ...] = (), *, path: bool = False, workdir: bool = False, **bounds: Any
) -> Any:
  """A dataclass field that carries its meaning and what it takes.

  choices: of a string. path: a string that is made absolute, with `~` expanded, when a config is read (`core.places`);
  the empty string stays empty. workdir: such a path, or the address of a folder in an object store. bounds: of a
  number, or of every number of a tuple, by the names in `Bounds`: ge=1.

  >>> import dataclasses
  >>> @dataclasses.dataclass(frozen=True)
  ... class WaveFields:
  ...   frequency: float = jp.field(1.5, "angular frequency of the waves", gt=0)
  >>> WaveFields().frequency
  1.5
  """
  place = places.stored if workdir else places.local if path else None
  metadata = {"doc": doc, "choices": choices, "place": place, "bounds": Bounds(**bounds)}
  return dataclasses.field(default=default, metadata=metadata)


def group(cls: type, doc: str) -> Any:
  """A nested group of fields."""
  return dataclasses.field(default_factory=cls, metadata={"doc": doc, "choices": ()})


def takes(field: dataclasses.Field) -> str:
  """What a field takes, in words: 'its | choices' or its bounds; empty for any value of its kind."""
  return " | ".join(field.metadata["choices"]) or str(field.metadata["bounds"])


def check(values: Any, prefix: str = "") -> None:
  """Raises ConfigError for the first value of a config, or of a group of its fields, that is not within its bounds.

  values: an instance of a dataclass. prefix: of the names in the message, such as "data.maze.".
  """
  for each in dataclasses.fields(values):
    value = getattr(values, each.name)
    if dataclasses.is_dataclass(value):
      check(value, f"{prefix}{each.name}.")
    else:
      check_bounds(each, value, prefix + each.name)


def check_bounds(field: dataclasses.Field, value: Any, name: str) -> None:
  """Raises ConfigError, which calls the field `name`, for a value outside its bounds and for NaN and infinities."""
  _check_within(field.metadata["bounds"], value, name)


def check_number(name: str, value: float | int, **bounds: Any) -> None:
  """Raises ConfigError for a number outside of `bounds`, by the names in `Bounds`, and for NaN and infinities."""
  _check_within(Bounds(**bounds), value, name)


def check_whole(name: str, value: Any, **bounds: Any) -> int:
  """A whole number of Python, NumPy or JAX as Python's. Raises ConfigError for all else, and outside of `bounds`."""
  number = whole(value)
  if number is None:
    raise ConfigError(f"{name}={value!r}: expected a whole number")
  check_number(name, number, **bounds)
  return number


def _check_within(bounds: Bounds, value: Any, name: str) -> None:
  numbers = value if isinstance(value, tuple) else (value,)
  require(all(math.isfinite(n) for n in numbers if isinstance(n, float)), name, value, "a finite number")
  require(bounds.hold(value), name, value, f"numbers of {bounds}" if isinstance(value, tuple) else str(bounds))


def convert(field: dataclasses.Field, value: Any, name: str) -> Any:
  """The value as the field holds it: Python's own for a scalar of NumPy or JAX, a float for a whole number, a path
  made absolute.

  Raises ConfigError that calls the field `name` for a value of another kind, none of its choices, or no path here.
  """
  default, value = field.default, plain(value)
  if isinstance(default, tuple):
    return _converted_parts(field, value, name)
  if isinstance(default, float) and whole(value) is not None:
    return float(value)
  if type(value) is not type(default):
    raise ConfigError(f"{name}={value!r}: expected {type(default).__name__}, got {type(value).__name__}")
  if field.metadata["choices"]:
    check_choice(name, str(value), field.metadata["choices"])
  place = field.metadata["place"]
  return _absolute(place, str(value), name) if place and value else value


def _converted_parts(field: dataclasses.Field, value: Any, name: str) -> tuple[Any, ...]:
  """Texts, whole numbers or numbers: of an empty default the annotation says which."""
  default: Any = field.default
  kind = str(field.type)
  parts = [plain(part) for part in value] if isinstance(value, list | tuple) else [None]
  if all(isinstance(part, str) for part in default) and ("str" in kind or default):
    if not all(isinstance(part, str) for part in parts):
      raise ConfigError(f"{name}={value!r}: expected texts such as {default or ('a', 'b')!r}")
  elif not all(isinstance(part, int | float) and not isinstance(part, bool) for part in parts):
    raise ConfigError(f"{name}={value!r}: expected numbers such as {default or (1, 2)!r}")
  elif "int" in kind and not all(isinstance(part, int) for part in parts):
    raise ConfigError(f"{name}={value!r}: expected whole numbers such as {default or (1, 2)!r}")
  return tuple(parts)


def _absolute(place: Callable[[str], pathlib.Path], path: str, name: str) -> str:
  try:
    return str(place(path))
  except ValueError as error:
    raise ConfigError(f"{name}={path!r}: expected {error}") from error
