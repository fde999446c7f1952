"""Names: of runs, by the fields in which they differ and their values, short and stable; of what modules register."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import re
from typing import Any

SEED = "seed"
LONGEST = 80

Point = Mapping[str, Any]
_MISSING = object()


def run_names(points: Sequence[Point]) -> list[str]:
  """One name a point, safe as a folder's: 'mixer=cayley,seed=0'; the seed comes last.

  Names that are too long, or equal once unsafe letters are replaced, end in a hash of the point.

  >>> run_names([{"connection.mixer": "iso", "seed": 0}, {"connection.mixer": "iso", "seed": 1}])
  ['seed=0', 'seed=1']
  """
  plain = [",".join(f"{key}={_safe(value)}" for key, value in item.items()) or "run" for item in distinguishing(points)]
  return [
    name if plain.count(name) == 1 and len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{digest(point)}"
    for name, point in zip(plain, points, strict=True)
  ]


def distinguishing(points: Sequence[Point]) -> list[dict[str, Any]]:
  """Of each point the values that tell it from the others, by short field names; the seed comes last.

  Only fields that take several values appear, and of those only as many as it takes. A point that sets none of them
  shows all that it sets.
  """
  varying = _varying_fields(points)
  enough = _distinguishing_fields(points, varying)
  short, rows = short_fields(varying), []
  for point in points:
    chosen = [field for field in enough if field in point]
    if not set(chosen) - {SEED}:
      chosen = [field for field in varying if field in point]
    rows.append({short[field]: point[field] for field in chosen})
  return rows


def _varying_fields(points: Sequence[Point]) -> list[str]:
  fields = list(dict.fromkeys(field for point in points for field in point))
  varying = [field for field in fields if len({_value(point, field) for point in points}) > 1]
  return sorted(varying, key=lambda field: field == SEED)


def _distinguishing_fields(points: Sequence[Point], fields: list[str]) -> list[str]:
  """The fields without those that the others make superfluous; the last ones go first, the seed stays."""
  different = _different(points, fields)
  for field in reversed([field for field in fields if field != SEED]):
    fewer = [other for other in fields if other != field]
    if _different(points, fewer) == different:
      fields = fewer
  return fields


def short_fields(fields: Sequence[str]) -> dict[str, str]:
  """The last component of each dotted name, or as many as it takes to tell them apart."""
  short = {}
  for field in fields:
    parts = field.split(".")
    ends = (".".join(parts[-k:]) for k in range(1, len(parts) + 1))
    short[field] = next((e for e in ends if sum(f".{other}".endswith(f".{e}") for other in fields) == 1), field)
  return short


def digest(values: Any, length: int = 8) -> str:
  """Hexadecimal hash of plain values, the same in every process."""
  return hashlib.sha256(json.dumps(values, sort_keys=True, default=list).encode()).hexdigest()[:length]


def _different(points: Sequence[Point], fields: Sequence[str]) -> int:
  return len({tuple(_value(point, field) for field in fields) for point in points})


def _value(point: Point, field: str) -> str:
  value = point.get(field, _MISSING)
  return "missing" if value is _MISSING else json.dumps(value, default=list)


def _safe(value: Any) -> str:
  words = (
    f"{value:g}" if isinstance(value, float) else "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
  )
  return re.sub(r"[^A-Za-z0-9.+-]+", "-", words).strip("-.") or "none"


@dataclasses.dataclass(frozen=True)
class Origin:
  """The module and the qualified name of what was registered."""

  module: str
  name: str

  @classmethod
  def of(cls, value: Any) -> "Origin":
    """That of a class or function."""
    return cls(value.__module__ or "__main__", value.__qualname__)

  def __str__(self) -> str:
    return f"{self.module}.{self.name}"


# Config field -> name -> origin, of names that a decorator has registered.
ORIGINS: dict[str, dict[str, Origin]] = {
  "connection.mixer": {},
  "data.kind": {},
  "model.kind": {},
  "optimizer.name": {},
}
