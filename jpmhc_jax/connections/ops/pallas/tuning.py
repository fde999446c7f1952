"""What was measured of the kernels on real devices, as data: block sizes, and who computes under 'auto'.

`measured.json` beside this file maps a device kind ('NVIDIA H100 80GB HBM3') to

    measured   hardware, versions, command and date
    auto       for numbers of streams: implementation ('xla': formulas) and ratio, its time over that of the formulas
    blocks     for implementation, kernel, streams, width and dtype: tokens of a block, features of a chunk, warps

`python -m experiments.benchmarks.kernels` writes it, on the device. Where a device has no row, the constants in
`layout` and the formulas hold.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from importlib import resources
import json
from typing import Any

from jpmhc_jax.core import sharding
from jpmhc_jax.core.errors import ConfigError

__all__ = ["FILE", "Auto", "Blocks", "Device", "Row", "blocks", "choice", "parse", "table"]

FILE = "measured.json"
_LEAST = {"pallas_gpu": (16, 16), "pallas_tpu": (8, 128), "mosaic_gpu": (1, 128)}  # tokens, features
_WORDS = {int: "a whole number above 0", float: "a number above 0", str: "a text"}
_REMEDY = "measure anew with python -m experiments.benchmarks.kernels, or remove the row"


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Tokens of a block, features of a chunk and, for Triton, warps."""

  tokens: int
  features: int
  warps: int = 4


@dataclasses.dataclass(frozen=True)
class Row:
  """The fastest blocks of one kernel at one size, and the microseconds that it took beside the formulas."""

  implementation: str
  kernel: str
  streams: int
  width: int
  dtype: str
  tokens: int
  features: int
  warps: int
  us: float
  formulas_us: float

  @property
  def blocks(self) -> Blocks:
    """What a kernel takes."""
    return Blocks(self.tokens, self.features, self.warps)


@dataclasses.dataclass(frozen=True)
class Auto:
  """Who computes so many streams: 'xla' or an implementation by kernels. ratio: its time over that of the formulas."""

  streams: int
  implementation: str
  ratio: float


@dataclasses.dataclass(frozen=True)
class Device:
  """All that was measured on one kind of device."""

  measured: Mapping[str, Any]
  auto: tuple[Auto, ...] = ()
  blocks: tuple[Row, ...] = ()


def blocks(implementation: str, kernel: str, streams: int, width: int, dtype: str) -> Blocks | None:
  """The measured blocks for the devices that are traced for: those of the nearest size that is not smaller.

  What fits a processor's own memory with more streams or features fits with fewer. So of the rows of this
  implementation, kernel and dtype with at least as many streams and features, that with the fewest streams counts, and
  of these that with the fewest features. None where there is no such row. Raises ConfigError for a malformed table.
  """
  device = table().get(sharding.device_kind())
  asked = (implementation, kernel, dtype)
  fitting = [
    row
    for row in (device.blocks if device else ())
    if (row.implementation, row.kernel, row.dtype) == asked and row.streams >= streams and row.width >= width
  ]
  return min(fitting, key=lambda row: (row.streams, row.width)).blocks if fitting else None


def choice(streams: int) -> str | None:
  """Who computes under 'auto' on the devices that are traced for: as measured with the fewest streams >= `streams`.

  None where nothing was measured with so many. Raises ConfigError for a malformed table.
  """
  device = table().get(sharding.device_kind())
  fitting = [auto for auto in (device.auto if device else ()) if auto.streams >= streams]
  return min(fitting, key=lambda auto: auto.streams).implementation if fitting else None


@functools.cache
def table() -> Mapping[str, Device]:
  """The packaged table, read when a kernel or 'auto' first asks for it."""
  return parse(resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8"), FILE)


def parse(text: str, name: str) -> Mapping[str, Device]:
  """The table of a file. Raises ConfigError, which names file, device, row and field, for what is none."""
  try:
    found = json.loads(text)
  except ValueError as error:
    raise ConfigError(f"{name}: expected JSON ({error}); {_REMEDY}") from error
  _expect(isinstance(found, dict), name, found, "an object with a device kind for each key")
  return {kind: _device(fields, f"{name}, {kind!r}") for kind, fields in found.items()}


def _device(fields: Any, place: str) -> Device:
  _expect(isinstance(fields, dict), place, fields, "an object with measured, auto and blocks")
  _expect(isinstance(fields.get("measured"), dict), f"{place}: measured", fields.get("measured"), "where and when")
  device = Device(
    fields["measured"],
    tuple(_made(Auto, each, f"{place}: auto[{k}]") for k, each in enumerate(fields.get("auto", ()))),
    tuple(_made(Row, each, f"{place}: blocks[{k}]") for k, each in enumerate(fields.get("blocks", ()))),
  )
  for k, auto in enumerate(device.auto):
    _expect_name(f"{place}: auto[{k}].implementation", auto.implementation, ("xla", *_LEAST))
  for k, row in enumerate(device.blocks):
    where = f"{place}: blocks[{k}]"
    _expect_name(f"{where}.implementation", row.implementation, tuple(_LEAST))
    for field, least in zip(("tokens", "features"), _LEAST[row.implementation], strict=True):
      size, powers = getattr(row, field), row.implementation == "pallas_gpu"
      good = size >= least and size % least == 0 and not (powers and size & (size - 1))
      _expect(good, f"{where}.{field}", size, f"a {'power of two' if powers else 'multiple'} from {least} on")
    _expect(row.warps in (1, 2, 4, 8, 16), f"{where}.warps", row.warps, "1, 2, 4, 8 or 16")
  return device


def _made(kind: Any, fields: Any, place: str) -> Any:
  """The dataclass of these fields, each with its type."""
  _expect(isinstance(fields, dict), place, fields, "an object")
  known: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(kind)}
  for field in (*known, *fields):
    _expect(field in fields and field in known, f"{place}: fields", sorted(fields), ", ".join(known))
    value, of = fields[field], known[field]
    good = isinstance(value, (int, float) if of is float else of) and not isinstance(value, bool)
    _expect(good and (of is str or value > 0), f"{place}.{field}", value, _WORDS[of])
  return kind(**{field: known[field](value) for field, value in fields.items()})


def _expect_name(place: str, value: str, choices: Sequence[str]) -> None:
  _expect(value in choices, place, value, f"one of {', '.join(choices)}")


def _expect(good: bool, place: str, value: Any, expected: str) -> None:
  if not good:
    raise ConfigError(f"{place}={value!r}: expected {expected}; {_REMEDY}")
