"""Which module registered which name of a config field: what mixers, tasks and data sets have in common."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Origin:
  """The module and the qualified name of what was registered."""

  module: str
  name: str

  @classmethod
  def of(cls, value: Any) -> "Origin":
    return cls(value.__module__ or "__main__", value.__qualname__)

  def __str__(self) -> str:
    return f"{self.module}.{self.name}"


# Config field -> name -> origin, of names that a decorator has registered.
ORIGINS: dict[str, dict[str, Origin]] = {"connection.mixer": {}, "data.kind": {}, "model.kind": {}}
