"""Axes: from data to places on a chart, and the round values that are written beside them."""

import dataclasses
import math

from jaxtyping import Float
import numpy as np


@dataclasses.dataclass(frozen=True)
class Scale:
  """Maps data in [low, high] to [start, end]; `log` takes log10 first."""

  low: float
  high: float
  start: int | float
  end: int | float
  log: bool = False

  def __call__(self, value: int | float) -> float:
    low, high, v = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
    return round(self.start + (v - low) / (high - low) * (self.end - self.start), 1)

  def ticks(self, whole: bool = False) -> list[float]:
    """Round values inside; of a log scale powers of ten. whole: integers, for what is counted."""
    if not self.log:
      ticks = nice_ticks(self.low, self.high)
      counted = [t for t in ticks if t == int(t)]  # steps and depths are counted: no tick at 1.5 connections
      return counted if whole and counted else ticks
    powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
    step = max(1, len(powers) // 6)
    decades = [10.0**p for p in powers[::step] if self.low <= 10.0**p <= self.high]
    return decades if len(decades) >= 2 else [t for t in nice_ticks(self.low, self.high) if t > 0]


def nice_ticks(low: float, high: float, target: int = 5) -> list[float]:
  """Round values (1, 2 or 5 times a power of ten apart) inside [low, high], about `target` of them.

  >>> nice_ticks(0.0, 1.0)
  [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
  """
  raw = (high - low) / target
  power = 10.0 ** math.floor(math.log10(raw))
  step = power * min((1, 2, 5, 10), key=lambda m: abs(m * power - raw))
  first = math.ceil(low / step - 1e-9)
  count = math.floor(high / step + 1e-9) - first + 1
  digits = max(0, -math.floor(math.log10(step)))
  return [round((first + i) * step, digits) + 0.0 for i in range(count)]


def tick_label(value: int | float) -> str:
  """Short axis label: `12000 -> 12k`, `0.25 -> 0.25`, `1e-06 -> 1e-6`."""
  size = abs(value)
  for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
    if limit <= size < 1e15:
      return f"{value / (1e3 if suffix == 'k' else limit):g}{suffix}"
  short = f"{size:.6g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
  return f"\N{MINUS SIGN}{short}" if value < 0 else short


def x_range(xs: Float[np.ndarray, " points"], log: bool) -> tuple[float, float]:
  """Of an axis that ends where the data end; a single value gets room to both sides."""
  low, high = float(xs.min()), float(xs.max())
  return (low, high) if high > low else (low * 0.5, low * 2.0) if log else (low - 0.5, high + 0.5)


def y_range(values: Float[np.ndarray, " values"], smallest: float, log: bool) -> tuple[float, float]:
  """Of an axis with a little room around all values; a log axis reaches a decade below `smallest` at most."""
  low, high = float(values.min()), float(values.max())
  if log:
    return max(low, smallest / 10) * 0.9, high * 1.1
  if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
    margin = abs(high) / 10 or 1.0
    return (low - margin if low else 0.0), high + margin
  margin = (high - low) * 0.05
  return (0.0 if low >= 0 and low - margin < 0 else low - margin), high + margin
