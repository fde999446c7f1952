"""The algebra of a sweep: products, zips and chains of config overrides, enumerated or searched.

    product(sweep("connection.mixer", ["cayley", "iso"]), seeds(3))        6 points
    zipped(sweep("model.width", [64, 128]), sweep("model.heads", [2, 4]))     2 points
    chain(product(a, b), c)                                                   the points of one, then those of the other

A point is a mapping from config fields to values. A value is a number, a truth value, a text or a tuple of these;
scalars and arrays of NumPy and JAX become such values. What a sweep file hands over is checked here, in words; whether
the fields exist and take their values is asked where a sweep is planned, which knows the config.
"""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import math
from typing import Any

from jpmhc_jax.core.errors import UserError
from jpmhc_jax.core.names import Point, SEED
from jpmhc_jax.core.scalars import plain, whole

LONGEST = 100_000  # values of a list, points of a sweep: what is longer is a slip, such as an endless generator
_CASE = "case"
_EXACT = 2**53  # whole numbers up to here are exact in a study's database


class SweepError(UserError):
  """A sweep that cannot be built: a field swept twice, lists of different lengths, nothing to run."""


class Space(abc.ABC):
  """A set of points: listed by `points`, drawn from by `suggest`."""

  @abc.abstractmethod
  def points(self) -> Iterator[Point]:
    """Every point in order. Raises SweepError for a space that holds a range."""

  @abc.abstractmethod
  def suggest(self, trial: Any, where: str = "") -> Point:
    """One point, chosen by a search: `trial` is Optuna's. `where` tells apart parts that ask under the same name."""

  @abc.abstractmethod
  def fields(self) -> tuple[str, ...]:
    """The fields that points of this space set."""

  @abc.abstractmethod
  def size(self) -> int:
    """The number of points. Raises SweepError for a space that holds a range."""

  @abc.abstractmethod
  def choices(self) -> Iterator[Point]:
    """What a search chooses from, part by part: each point that is listed, and both ends of each range."""

  def named_by_place(self) -> bool:
    """Whether a search's question is named by what it is (a case, a branch) and not by a field."""
    return False

  def __len__(self) -> int:
    return self.size()


@dataclasses.dataclass(frozen=True)
class _Cases(Space):
  """Points given one by one; `name` is the search's name of the choice between them."""

  name: str
  listed: tuple[Point, ...]

  def points(self) -> Iterator[Point]:
    return iter(self.listed)

  def suggest(self, trial: Any, where: str = "") -> Point:
    if len(self.listed) == 1:
      return self.listed[0]
    if self._is_one_field() and not any(isinstance(value, tuple) for point in self.listed for value in point.values()):
      (field,) = self.fields()
      return {field: trial.suggest_categorical(where + field, [point[field] for point in self.listed])}
    return self.listed[trial.suggest_categorical(where + self.name, list(range(len(self.listed))))]

  def fields(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(field for point in self.listed for field in point))

  def size(self) -> int:
    return len(self.listed)

  def choices(self) -> Iterator[Point]:
    return iter(self.listed)

  def named_by_place(self) -> bool:
    return self.name == _CASE and len(self.listed) > 1 and not self._is_one_field()

  def _is_one_field(self) -> bool:
    return len(self.fields()) == 1 and all(self.listed)


@dataclasses.dataclass(frozen=True)
class _Range(Space):
  """One field between two numbers: for a search only. Whole numbers are drawn between two whole ends, with `whole`."""

  field: str
  low: float | int
  high: float | int
  log: bool
  whole: bool = False

  def points(self) -> Iterator[Point]:
    raise SweepError(
      f"between({self.field!r}, …): a range cannot be listed; use --search=optuna, or sweep(field, values)"
    )

  def suggest(self, trial: Any, where: str = "") -> Point:
    suggest = trial.suggest_int if self.whole else trial.suggest_float
    return {self.field: suggest(where + self.field, self.low, self.high, log=self.log)}

  def fields(self) -> tuple[str, ...]:
    return (self.field,)

  def size(self) -> int:
    return sum(1 for _ in self.points())

  def choices(self) -> Iterator[Point]:
    return iter(({self.field: self.low}, {self.field: self.high}))


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

  def suggest(self, trial: Any, where: str = "") -> Point:
    placed = [part.named_by_place() for part in self.parts]
    point: dict[str, Any] = {}
    for i, part in enumerate(self.parts):
      # One trial answers a name once: two parts that ask for 'branch' would always take the same one.
      point |= part.suggest(trial, f"{where}{i}/" if placed[i] and sum(placed) > 1 else where)
    return point

  def fields(self) -> tuple[str, ...]:
    return tuple(field for part in self.parts for field in part.fields())

  def size(self) -> int:
    return math.prod(part.size() for part in self.parts)

  def choices(self) -> Iterator[Point]:
    return (point for part in self.parts for point in part.choices())

  def named_by_place(self) -> bool:
    return any(part.named_by_place() for part in self.parts)


@dataclasses.dataclass(frozen=True)
class _Chain(Space):
  parts: tuple[Space, ...]

  def points(self) -> Iterator[Point]:
    return (point for part in self.parts for point in part.points())

  def suggest(self, trial: Any, where: str = "") -> Point:
    branch = trial.suggest_categorical(f"{where}branch", list(range(len(self.parts))))
    return self.parts[branch].suggest(trial, f"{where}{branch}/")

  def fields(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(field for part in self.parts for field in part.fields()))

  def size(self) -> int:
    return sum(part.size() for part in self.parts)

  def choices(self) -> Iterator[Point]:
    return (point for part in self.parts for point in part.choices())

  def named_by_place(self) -> bool:
    return True


def sweep(field: Any, values: Any) -> Space:
  """One field over values: a list, an array, a range or a generator. Raises SweepError for no value or one twice."""
  name = _field("sweep", field)
  call = f"sweep({name!r}, …)"
  if isinstance(values, str | bytes | Mapping | set | frozenset) or not _is_iterable(values):
    raise SweepError(f"{call}: {_shown(values)}: expected a list of at least one value")
  given = list(itertools.islice(values, LONGEST + 1))
  if not given:
    raise SweepError(f"{call}: {_shown(values)}: expected a list of at least one value")
  if len(given) > LONGEST:
    raise SweepError(f"{call}: more than {LONGEST} values; expected fewer, or between(…) for a search")
  listed = [_value(call, value) for value in given]
  if len(set(listed)) < len(listed):
    raise SweepError(f"{call}: {_shown(listed)}: a value is listed twice; seeds are swept by seeds(n)")
  return _Cases(name, tuple({name: value} for value in listed))


def cases(*points: Any) -> Space:
  """Points given one by one, each a dict of fields: for arms that differ in several fields at once.

  Raises SweepError for what is no such dict.
  """
  if not points:
    raise SweepError("cases(): expected at least one dict of config fields, such as {'seed': 1}")
  for point in points:
    if not isinstance(point, Mapping):
      raise SweepError(f"cases(…): {_shown(point)}: expected a dict of config fields, such as {{'seed': 1}}")
  listed = ({_field("cases", f): _value(f"cases({{{f!r}: …}})", v) for f, v in point.items()} for point in points)
  return _Cases(_CASE, tuple(listed))


def seeds(count: Any) -> Space:
  """Seeds 0 to count − 1. A search runs all of them in every trial and scores their mean.

  Raises SweepError for what is no count.
  """
  number = whole(count)
  if number is None or not 1 <= number <= LONGEST:
    raise SweepError(
      f"seeds({_shown(count)}): expected how many, 1 to {LONGEST}; chosen ones are listed by sweep('seed', [7, 8])"
    )
  return sweep(SEED, range(number))


def between(field: Any, low: Any, high: Any, *, log: bool = False) -> Space:
  """A field anywhere between two numbers, both included, evenly in its logarithm with `log`; for --search=optuna.

  A field of whole numbers takes whole numbers only. Raises SweepError for what is no such range.
  """
  name, low, high = _field("between", field), plain(low), plain(high)
  call = f"between({name!r}, {_shown(low)}, {_shown(high)})"
  for end in (low, high):
    if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
      raise SweepError(f"{call}: expected two numbers, not {_shown(end)}")
  if not low < high or (log and low <= 0):
    raise SweepError(f"{call}: expected low < high, and low > 0 with log=True")
  if not _takes_whole_numbers(name):
    return _Range(name, float(low), float(high), bool(log))
  if int(low) != low or int(high) != high or max(abs(low), abs(high)) > _EXACT:
    raise SweepError(f"{call}: expected whole numbers up to 2^53, as the field takes")
  return _Range(name, int(low), int(high), bool(log), whole=True)


def product(*spaces: Any) -> Space:
  """Every combination, the last one fastest. Raises SweepError when two of them set one field."""
  _check_disjoint("product", spaces)
  nested = (space.parts if isinstance(space, _Product) else (space,) for space in spaces)
  return _Product(tuple(part for parts in nested for part in parts))


def zipped(*spaces: Any) -> Space:
  """The first points together, then the second, and so on. Raises SweepError for different lengths."""
  _check_disjoint("zipped", spaces)
  lengths = [space.size() for space in spaces]
  if len(set(lengths)) > 1:
    raise SweepError(f"zipped: the parts have {', '.join(map(str, lengths))} points; expected equally many")
  check_size("zipped", lengths[0])
  name = "+".join(field for space in spaces for field in space.fields())
  rows = zip(*(space.points() for space in spaces), strict=True)
  return _Cases(name, tuple({field: value for point in row for field, value in point.items()} for row in rows))


def chain(*spaces: Any) -> Space:
  """The points of the first space, then those of the second, and so on."""
  _check_spaces("chain", spaces)
  return _Chain(spaces)


def check_size(what: str, size: int) -> None:
  """Raises SweepError for more points than anybody runs."""
  if size > LONGEST:
    raise SweepError(f"{what}: {size:,} points; expected at most {LONGEST:,}, or --search=optuna, which draws some")


def split_seeds(space: Space) -> tuple[Space, tuple[int, ...]]:
  """A space without its top-level seeds, and those seeds ((), when it sweeps none): what a search needs.

  Raises SweepError when seeds are swept inside a chain or a zip, where they cannot be told from the setting.
  """
  parts = space.parts if isinstance(space, _Product) else (space,)
  seeded = [part for part in parts if part.fields() == (SEED,)]
  rest = _Product(tuple(part for part in parts if part not in seeded))
  if SEED in rest.fields():
    raise SweepError("search: seeds belong at the top level: product(what is searched, seeds(3))")
  listed = [point[SEED] for part in seeded for point in part.points()]
  for seed in listed:
    if whole(seed) is None:
      raise SweepError(f"search: seed={_shown(seed)}: expected a whole number")
  return rest, tuple(listed)


def with_seeds(points: Iterable[Point], count: int) -> Iterator[Point]:
  """Every setting among the points with the seeds 0 … count − 1, whichever seeds they have.

  >>> list(with_seeds([{"steps": 5, "seed": 0}, {"steps": 5, "seed": 1}, {"steps": 9}], 1))
  [{'steps': 5, 'seed': 0}, {'steps': 9, 'seed': 0}]
  """
  settings = [{field: value for field, value in point.items() if field != SEED} for point in points]
  different = [setting for i, setting in enumerate(settings) if setting not in settings[:i]]
  return ({**setting, SEED: seed} for setting in different for seed in range(count))


def _check_disjoint(name: str, spaces: Sequence[Any]) -> None:
  _check_spaces(name, spaces)
  fields: set[str] = set()
  for space in spaces:
    twice = fields & set(space.fields())
    if twice:
      raise SweepError(f"{name}: {min(twice)!r} is set by two of its parts; sweep a field once")
    fields |= set(space.fields())


def _check_spaces(name: str, spaces: Sequence[Any]) -> None:
  if not spaces:
    raise SweepError(f"{name}(): expected at least one space")
  for space in spaces:
    if not isinstance(space, Space):
      raise SweepError(f"{name}(…): {_shown(space)}: expected spaces, such as sweep('steps', [100, 200]); lists take *")


def _field(call: str, field: Any) -> str:
  if not isinstance(field, str) or not field:
    raise SweepError(
      f"{call}(…): {_shown(field)}: expected the name of a config field, such as 'optimizer.learning_rate'"
    )
  return str(field)


def _value(call: str, value: Any) -> Any:
  """A value as a config has it. Raises SweepError for what no field can hold."""
  value = plain(value)
  if isinstance(value, list | tuple) or getattr(value, "ndim", None) == 1:
    return tuple(_value(call, part) for part in value)
  for kind in (bool, int, float, str):
    if isinstance(value, kind):
      return kind(value)
  raise SweepError(f"{call}: {_shown(value)}: expected a number, True or False, a text or a tuple of these")


def _takes_whole_numbers(field: str) -> bool:
  from jpmhc_jax.config import load  # a job, which reads this room, does without

  return type(dict(load.leaves(load.widest()())).get(field)) is int


def _is_iterable(values: Any) -> bool:
  return getattr(values, "ndim", 1) > 0 and (hasattr(values, "__iter__") or hasattr(values, "__getitem__"))


def _shown(value: Any) -> str:
  words = repr(value)
  return words if len(words) < 100 else f"{words[:97]}…"
