"""Whether a connection's fields can work: asked for a whole config, and where one connection is built by hand."""

import dataclasses
from typing import Any, SupportsIndex

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import check_choice, ConfigError, nearest, require
from jpmhc_jax.core.fields import check, convert
from jpmhc_jax.core.scalars import whole

_PREFIX = "connection."
_FIELDS = {field.name: field for field in dataclasses.fields(schema.Connection)}


def check_connection(
  connection: schema.Connection, width: SupportsIndex, width_field: str = "width"
) -> tuple[schema.Connection, int]:
  """The connection and the width d, with numbers of NumPy and JAX as Python's.

  Raises ConfigError for the first field of another kind, that is no choice of its own, out of range, or does not fit d.
  """
  values = {name: convert(field, getattr(connection, name), _PREFIX + name) for name, field in _FIELDS.items()}
  connection, d = schema.Connection(**values), whole(width)
  check(connection, _PREFIX)
  if d is None or d < 1:
    raise ConfigError(f"{width_field}={width!r}: expected at least 1, a whole number")
  n, m = connection.streams, connection.segments
  require(1 <= m <= n, "connection.segments", m, f"1 to connection.streams={n}; 1 = hyper-connections")
  require(d % m == 0, "connection.segments", m, f"a divisor of {width_field}={d}")
  require(
    connection.reduce != "head" or n >= 2 * m,
    "connection.reduce",
    connection.reduce,
    f"at least two streams a segment (streams={n}, segments={m}) to weigh; or reduce='mean' or 'learned'",
  )
  return connection, d


def connection_fields(**fields: Any) -> schema.Connection:
  """A connection's config from fields by name; raises ConfigError for one that there is not, with the nearest."""
  for name in fields:
    if name not in _FIELDS:
      raise ConfigError(f"unknown field {_PREFIX + name!r}.{nearest(name, _FIELDS)}")
  return schema.Connection(**fields)


def check_field(name: str, value: Any) -> None:
  """Raises ConfigError for a value that the field's choices do not hold; fields without choices take any."""
  choices = _FIELDS[name].metadata["choices"]
  if choices:
    check_choice(_PREFIX + name, value, choices)
