"""Types of command-line options: a number with its bounds, a list of numbers or of names, a path, a line of text.

Each is the `type` of an `add_argument`: it takes what was typed and returns the value, or raises ArgumentTypeError with
the value and what was expected, which argparse prints with the option's name before it exits with 2.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math
import pathlib
import re
from typing import Generic, NoReturn, TypeVar

from jpmhc_jax.core import places
from jpmhc_jax.core.errors import ConfigError, nearest
from jpmhc_jax.core.terminal import cut

LARGEST = 2**31 - 1  # what a C int holds: counts are handed to XLA, SLURM and others
_Value = TypeVar("_Value")


class Parser(argparse.ArgumentParser):
  """argparse, with messages of a length that one reads, which name the nearest of several choices."""

  def error(self, message: str) -> NoReturn:
    """Prints usage and message, cut to a readable length, and exits with 2."""
    choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message)
    super().error(cut(message) + (nearest(choice[1], re.findall(r"[\w-]+", choice[2])) if choice else ""))


def whole(low: int, high: int = LARGEST) -> Callable[[str], int]:
  """A whole number from `low` to `high`."""
  return _Reader(int, lambda value: low <= value <= high, _whole_words("a whole number", low, high))


def wholes(low: int, high: int = LARGEST) -> Callable[[str], tuple[int, ...]]:
  """Whole numbers from `low` to `high`, separated by commas: '12,48' is (12, 48)."""
  words = _whole_words("whole numbers", low, high) + " separated by commas, such as 12,48"
  read = lambda text: tuple(int(part) for part in text.split(","))  # noqa: E731
  return _Reader(read, lambda values: all(low <= value <= high for value in values), words)


def names(allowed: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
  """Some of the names in `allowed`, separated by commas: 'a,b' is ('a', 'b')."""
  known = tuple(allowed)
  read = lambda text: tuple(part.strip() for part in text.split(","))  # noqa: E731
  return _Reader(read, lambda parts: set(parts) <= set(known), f"some of {', '.join(known)}, separated by commas")


def number(low: float | int, high: float | int = math.inf, *, above: bool = False) -> Callable[[str], float]:
  """A finite number of at least `low`, greater than `low` with `above`, and of at most `high`."""
  words = f"a finite number {'above' if above else 'of at least'} {low:g}"
  words += f" and of at most {high:g}" if high < math.inf else ""
  return _Reader(float, lambda v: math.isfinite(v) and (low < v if above else low <= v) and v <= high, words)


def path(text: str) -> pathlib.Path:
  """A file or a folder, as an absolute path with `~` expanded (`places.local`).

  Raises ArgumentTypeError for a path that cannot be one here and for the empty string, which pathlib takes for the
  current folder.
  """
  return _named(text, places.local)


def stored(text: str) -> pathlib.Path:
  """The same, or an address of an object store (`places.stored`)."""
  return _named(text, places.stored)


def _named(text: str, place: Callable[[str], pathlib.Path]) -> pathlib.Path:
  if not text.strip():
    raise argparse.ArgumentTypeError(f"{text!r}: expected the name of a file or a folder")
  try:
    return place(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(f"{text!r}: expected {error}") from error


def line(text: str) -> str:
  """One line of text that is not empty, such as a name."""
  return _Reader(str, lambda _: bool(text.strip()) and text.splitlines() == [text], "one line of text, not empty")(text)


def refuse_repeated(words: Sequence[str]) -> None:
  """Raises ConfigError for an option that is given twice: one of the two values would count for nothing.

  It is not for config fields, of which the last counts: scripts and sweeps add theirs to a common list.
  """
  given: dict[str, str] = {}
  for word in words:
    name, _, value = word.partition("=")
    if name.startswith("--") and name in given:
      raise ConfigError(f"{name} is given twice, with {given[name]!r} and {value!r}: leave one of them out")
    given[name] = value


def _whole_words(kind: str, low: int, high: int) -> str:
  return f"{kind} from {low} to {high}" if high != LARGEST else f"{kind} of at least {low} and below 2^31"


@dataclasses.dataclass(frozen=True)
class _Reader(Generic[_Value]):
  """What argparse takes for a type: text to a value that is good."""

  read: Callable[[str], _Value]
  good: Callable[[_Value], bool]
  expected: str

  def __call__(self, text: str) -> _Value:
    """The value. Raises ArgumentTypeError for a text that `read` or `good` refuses."""
    try:
      value = self.read(text)
    except ValueError:
      value = None
    if value is None or not self.good(value):
      raise argparse.ArgumentTypeError(f"{text!r}: expected {self.expected}")
    return value
