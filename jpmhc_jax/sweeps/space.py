"""The algebra of a sweep: products, zips and chains of config overrides, enumerated or searched.

    product(sweep("connection.manifold", ["cayley", "iso"]), seeds(3))        6 points
    zipped(sweep("model.width", [64, 128]), sweep("model.heads", [2, 4]))     2 points
    chain(product(a, b), c)                                                   the points of one, then those of the other

A point is a mapping from config fields to values.
"""

import abc
from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any, Protocol, runtime_checkable

from jpmhc_jax.core.errors import UserError
from jpmhc_jax.core.names import Point, SEED


class SweepError(UserError):
  """A sweep that cannot be built: a field swept twice, lists of different lengths, nothing to run."""


@runtime_checkable
class Trial(Protocol):
  """What a search asks its values from: Optuna's trial."""

  def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
  def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...


class Space(abc.ABC):
  """A set of points: listed by `points`, drawn from by `suggest`."""

  @abc.abstractmethod
  def points(self) -> Iterator[Point]:
    """Every point in order. Raises SweepError for a space that holds a range."""

  @abc.abstractmethod
  def suggest(self, trial: Trial, where: str = "") -> Point:
    """One point, chosen by a search. `where` tells apart the branches that sweep the same field."""

  @abc.abstractmethod
  def fields(self) -> tuple[str, ...]:
    """The fields that points of this space set."""

  def __len__(self) -> int:
    return sum(1 for _ in self.points())


@dataclasses.dataclass(frozen=True)
class _Cases(Space):
  """Points given one by one; `name` is the search's name of the choice between them."""

  name: str
  listed: tuple[Point, ...]

  def points(self) -> Iterator[Point]:
    return iter(self.listed)

  def suggest(self, trial: Trial, where: str = "") -> Point:
    if len(self.listed) == 1:
      return self.listed[0]
    if all(len(point) == 1 for point in self.listed) and len(self.fields()) == 1:
      (field,) = self.fields()
      return {field: trial.suggest_categorical(where + field, [point[field] for point in self.listed])}
    return self.listed[trial.suggest_categorical(where + self.name, list(range(len(self.listed))))]

  def fields(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(field for point in self.listed for field in point))


@dataclasses.dataclass(frozen=True)
class _Range(Space):
  """One field between two numbers: for a search only."""

  field: str
  low: float | int
  high: float | int
  log: bool

  def points(self) -> Iterator[Point]:
    raise SweepError(
      f"between({self.field!r}, …): a range cannot be listed; use --search=optuna, or sweep(field, values)"
    )

  def suggest(self, trial: Trial, where: str = "") -> Point:
    return {self.field: trial.suggest_float(where + self.field, self.low, self.high, log=self.log)}

  def fields(self) -> tuple[str, ...]:
    return (self.field,)


@dataclasses.dataclass(frozen=True)
class _Product(Space):
  parts: tuple[Space, ...]

  def points(self) -> Iterator[Point]:
    def extend(done: Point, rest: tuple[Space, ...]) -> Iterator[Point]:
      if not rest:
        yield done
        return
      for point in rest[0].points():
        yield from extend({**done, **point}, rest[1:])

    return extend({}, self.parts)

  def suggest(self, trial: Trial, where: str = "") -> Point:
    return {field: value for part in self.parts for field, value in part.suggest(trial, where).items()}

  def fields(self) -> tuple[str, ...]:
    return tuple(field for part in self.parts for field in part.fields())


@dataclasses.dataclass(frozen=True)
class _Chain(Space):
  parts: tuple[Space, ...]

  def points(self) -> Iterator[Point]:
    return (point for part in self.parts for point in part.points())

  def suggest(self, trial: Trial, where: str = "") -> Point:
    branch = trial.suggest_categorical(f"{where}branch", list(range(len(self.parts))))
    return self.parts[branch].suggest(trial, f"{where}{branch}/")

  def fields(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(field for part in self.parts for field in part.fields()))


def sweep(field: str, values: Sequence[Any]) -> Space:
  """One field over values. Raises SweepError for no value or one value twice."""
  if isinstance(values, str) or not list(values):
    raise SweepError(f"sweep({field!r}, {values!r}): expected a list of at least one value")
  if any(value in list(values)[:i] for i, value in enumerate(values)):
    raise SweepError(f"sweep({field!r}, {values!r}): a value is listed twice; seeds are swept by seeds(n)")
  return _Cases(field, tuple({field: value} for value in values))


def cases(*points: Point) -> Space:
  """Points given one by one, each a dict of fields: for arms that differ in several fields at once."""
  if not points:
    raise SweepError("cases(): expected at least one dict of config fields, such as {'seed': 1}")
  return _Cases("case", tuple(dict(point) for point in points))


def seeds(count: int) -> Space:
  """Seeds 0 to count − 1. A search runs all of them in every trial and scores their mean."""
  return sweep(SEED, range(count))


def between(field: str, low: float | int, high: float | int, *, log: bool = False) -> Space:
  """A field anywhere between two numbers, evenly in its logarithm with `log`; for --search=optuna."""
  if not low < high or (log and low <= 0):
    raise SweepError(f"between({field!r}, {low}, {high}): expected low < high, and low > 0 with log=True")
  return _Range(field, low, high, log)


def product(*spaces: Space) -> Space:
  """Every combination, the last one fastest. Raises SweepError when two of them set one field."""
  _check_disjoint("product", spaces)
  return _Product(spaces)


def zipped(*spaces: Space) -> Space:
  """The first points together, then the second, and so on. Raises SweepError for different lengths."""
  _check_disjoint("zipped", spaces)
  lengths = [len(space) for space in spaces]
  if len(set(lengths)) > 1:
    raise SweepError(f"zipped: the parts have {', '.join(map(str, lengths))} points; expected equally many")
  name = "+".join(field for space in spaces for field in space.fields())
  rows = zip(*(space.points() for space in spaces), strict=True)
  return _Cases(name, tuple({field: value for point in row for field, value in point.items()} for row in rows))


def chain(*spaces: Space) -> Space:
  """The points of the first space, then those of the second, and so on."""
  if not spaces:
    raise SweepError("chain(): expected at least one space")
  return _Chain(spaces)


def split_seeds(space: Space) -> tuple[Space, tuple[int, ...]]:
  """A space without its top-level seeds, and those seeds ((), when it sweeps none): what a search needs.

  Raises SweepError when seeds are swept inside a chain or a zip, where they cannot be told from the setting.
  """
  parts = space.parts if isinstance(space, _Product) else (space,)
  seeded = [part for part in parts if part.fields() == (SEED,)]
  rest = _Product(tuple(part for part in parts if part not in seeded))
  if SEED in rest.fields():
    raise SweepError("search: seeds belong at the top level: product(what is searched, seeds(3))")
  return rest, tuple(int(point[SEED]) for part in seeded for point in part.points())


def _check_disjoint(name: str, spaces: Sequence[Space]) -> None:
  if not spaces:
    raise SweepError(f"{name}(): expected at least one space")
  seen: set[str] = set()
  for space in spaces:
    twice = seen & set(space.fields())
    if twice:
      raise SweepError(f"{name}: {min(twice)!r} is set by two of its parts; sweep a field once")
    seen |= set(space.fields())
