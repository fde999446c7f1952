"""A published claim as a command: measure numbers, print them, compare them with what was recorded.

  python -m experiments.NAME.run [--quick | --part=NAME] [--check] [--record] [--cache=FILE]

`expected.json` beside each `run.py` holds, for the full and the quick budget, every number with its spread over seeds
and the tolerance within which a rerun must come, or the bounds it must keep, the seeds, the budget and the hardware.
What depends on the machine (bytes that a compiler plans) is noted only, and the claim is a bound on a ratio. `--check`
exits with 1 when a number is missing or further away. `--record` writes what was measured; look at it before you commit
it. What is slow is kept in the cache file as it comes: an interrupted command, run again, goes on where it stopped. A
long claim may have parts, such as one task of several, which are measured, checked and recorded one by one.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import os
import pathlib
import platform
from typing import Any

import jax

from jpmhc_jax.core import arguments
from jpmhc_jax.core.files import from_json, to_json, write_atomically
from jpmhc_jax.core.process import restart_with_fast_allocation
from jpmhc_jax.reporting.statistics import spread


@dataclasses.dataclass(frozen=True)
class Number:
  """A measured value, its standard deviation over seeds (0 when it has none) and what a rerun must keep.

  tolerance: how far a rerun may be from the value; None where it may be anywhere. least, most: bounds, None for none.
  """

  value: float
  tolerance: float | None
  spread: float = 0.0
  least: float | None = None
  most: float | None = None

  @classmethod
  def over(cls, values: list[float], floor: float) -> "Number":
    """Mean over seeds; a rerun must come within two standard deviations of a seed, or `floor` where that is more."""
    sample = spread(values)
    deviation = 0.0 if math.isnan(sample.deviation) else sample.deviation
    return cls(sample.mean, max(2 * deviation, floor), deviation)

  @classmethod
  def bounded(cls, value: float, least: float | None = None, most: float | None = None) -> "Number":
    """What is claimed is the bound; the value is what this machine gave."""
    return cls(value, None, least=least, most=most)

  @classmethod
  def noted(cls, value: float) -> "Number":
    """A value of this machine, kept beside the hardware and compared with nothing."""
    return cls(value, None)

  def to_json(self) -> dict[str, float | None]:
    """The fields; bounds that are not set are left out."""
    return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("least", "most") or v is not None}


@dataclasses.dataclass(frozen=True)
class Claim:
  """One experiment. `measure(quick, cache)` returns its numbers by name and prints its tables.

  folder: where expected.json lies. seeds, budget: what the numbers cost, in words, for the full measurement. parts:
  names for `--part=NAME`: `measure` is then given (NAME,) as a third argument, and the numbers' names begin with NAME/.
  """

  folder: pathlib.Path
  measure: Callable[..., Mapping[str, Number]]
  seeds: str
  budget: str
  parts: tuple[str, ...] = ()

  def command(self, words: list[str] | None = None) -> int:
    """Runs the command line of the module's docstring; returns its exit code."""
    parser = argparse.ArgumentParser(description=f"The claim of experiments/{self.folder.name}; see its README.md.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a smaller measurement, with its own expected numbers")
    if self.parts:
      size.add_argument("--part", choices=self.parts, help="this part of the full measurement alone")
    parser.add_argument("--check", action="store_true", help="compare with expected.json; exit 1 on a difference")
    parser.add_argument("--record", action="store_true", help="write the numbers to expected.json")
    parser.add_argument("--cache", type=arguments.path, default=None, help="where finished parts are kept")
    options = parser.parse_args(words)
    if words is None:
      restart_with_fast_allocation()
    mode = "quick" if options.quick else "full"
    cache = Cache(options.cache or pathlib.Path("runs") / "experiments" / f"{self.folder.name}_{mode}.json")
    part = getattr(options, "part", None)
    numbers = dict(self.measure(options.quick, cache, *([(part,)] if part else ())))
    path, prefix = self.folder / "expected.json", f"{part}/" if part else ""
    if options.record:
      self._record(path, mode, prefix, numbers)
    if not options.check:
      return 0
    recorded = from_json(path.read_text()).get(mode, {}).get("numbers", {}) if path.is_file() else {}
    expected = {name: number for name, number in recorded.items() if name.startswith(prefix)}
    if not expected:
      print(f"{path}: no {part or mode} numbers to compare with; --record writes them")
      return 1
    complaints = compare(numbers, expected)
    print("\n".join(complaints) or f"all {len(numbers)} numbers within tolerance of {path}")
    return 1 if complaints else 0

  def _record(self, path: pathlib.Path, mode: str, prefix: str, numbers: Mapping[str, Number]) -> None:
    """Writes the numbers in the place of all recorded ones whose names begin with the prefix."""
    kept = from_json(path.read_text()) if path.is_file() else {}
    others = {k: v for k, v in kept.get(mode, {}).get("numbers", {}).items() if not k.startswith(prefix)}
    kept[mode] = {
      "seeds": self.seeds if mode == "full" else "the first",
      "budget": self.budget if mode == "full" else "a part of the full one",
      "hardware": hardware(),
      "numbers": others | {name: number.to_json() for name, number in numbers.items()},
    }
    ordered = {name: kept[name] for name in ("full", "quick") if name in kept}
    write_atomically(path, to_json(ordered, words=True, indent=1) + "\n")


def compare(numbers: Mapping[str, Number], expected: Mapping[str, Mapping[str, float | None]]) -> list[str]:
  """Complaints: a number that one side lacks, or that breaks the expected one's tolerance or bounds."""
  complaints = [f"{name}: measured, but not in expected.json; --record it" for name in numbers.keys() - expected.keys()]
  for name, wanted in expected.items():
    complaint = (
      _complaint(numbers[name], wanted) if name in numbers else f"expected {wanted['value']:.6g}, but not measured"
    )
    if complaint:
      complaints.append(f"{name}: {complaint}")
  return sorted(complaints)


def _complaint(number: Number, wanted: Mapping[str, float | None]) -> str:
  """What is wrong with a number; '' if nothing. Two values that are not finite agree when they are the same."""
  value, tolerance, least, most = number.value, wanted["tolerance"], wanted.get("least"), wanted.get("most")
  if tolerance is not None and str(value) != str(wanted["value"]) and not abs(value - wanted["value"]) <= tolerance:
    return f"{value:.6g}, expected {wanted['value']:.6g} ± {tolerance:.2g}"
  if least is not None and not value >= least:
    return f"{value:.6g}, expected at least {least:.6g}"
  if most is not None and not value <= most:
    return f"{value:.6g}, expected at most {most:.6g}"
  return ""


class Cache:
  """Finished parts in one JSON file. A part made with other settings is made anew."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._parts: dict[str, Any] = from_json(path.read_text()) if path.is_file() else {}

  def get(self, name: str, settings: Any, make: Callable[[], Any]) -> Any:
    """The part's plain JSON value, from the file or from `make`, which is then written."""
    return self.get_all([name], settings, lambda missing: [make()])[0]

  def get_all(self, names: Sequence[str], settings: Any, make: Callable[[list[int]], list[Any]]) -> list[Any]:
    """The values of parts with the same settings. `make` is given the positions of those to be made, all at once."""
    settings = from_json(to_json(settings, words=True))
    parts = [self._parts.get(name) for name in names]
    missing = [k for k, part in enumerate(parts) if part is None or part["settings"] != settings]
    if missing:
      for k, value in zip(missing, make(missing), strict=True):
        self._parts[names[k]] = {"settings": settings, "value": value}
      self.path.parent.mkdir(parents=True, exist_ok=True)
      write_atomically(self.path, to_json(self._parts, words=True, indent=1) + "\n")
    return [self._parts[name]["value"] for name in names]


def hardware() -> str:
  """Processor, cores, devices and versions, in a line."""
  model = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  if cpuinfo.is_file():
    names = [
      line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    model = names[0] if names else model
  devices = sorted({device.device_kind for device in jax.devices()})
  return f"{os.cpu_count()} cores of {model}, device {', '.join(devices)}, jax {jax.__version__}"


def table(header: list[str], rows: list[list[Any]]) -> str:
  """A Markdown table; floats with four digits."""
  cells = [[f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
  return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *cells])
