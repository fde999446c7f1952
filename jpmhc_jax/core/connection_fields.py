"""Whether a connection's fields can work: asked for a whole config, and where one connection is built by hand."""

import dataclasses
from typing import Any

from jpmhc_jax.core import ranges, schema
from jpmhc_jax.core.errors import check_choice, require

_PREFIX = "connection."
_FIELDS = {field.name: field for field in dataclasses.fields(schema.Connection)}


def check_connection(connection: schema.Connection, width: int, width_field: str = "width") -> None:
  """Raises ConfigError for the first field that is no choice of its own, out of range, or does not fit the width d."""
  for name in _FIELDS:
    check_field(name, getattr(connection, name))
  values = {_PREFIX + name: getattr(connection, name) for name in _FIELDS}
  ranges.check(values, _PREFIX)
  require(width >= 1, width_field, width, "at least 1")
  n, m = connection.streams, connection.segments
  require(1 <= m <= n, "connection.segments", m, f"1 to connection.streams={n}; 1 = hyper-connections")
  require(width % m == 0, "connection.segments", m, f"a divisor of {width_field}={width}")
  require(
    connection.reduce != "head" or n >= 2 * m,
    "connection.reduce",
    connection.reduce,
    f"at least two streams a segment (streams={n}, segments={m}) to weigh; or reduce='mean' or 'learned'",
  )


def check_field(name: str, value: Any) -> None:
  """Raises ConfigError for a value that the field's choices do not hold; fields without choices take any."""
  choices = _FIELDS[name].metadata["choices"]
  if choices:
    check_choice(_PREFIX + name, value, choices)
