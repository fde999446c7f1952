"""Pictures of ten shapes, 32×32 pixels in three channels: images that need no file and no other package.

A shape lies anywhere in the picture, of any size and turn, in one colour on another, under noise; its inside is given
in coordinates of its own, turned and scaled to the unit disc. Pictures depend on the seed and their number only.
"""

from collections.abc import Callable, Mapping

from jaxtyping import Bool, Float, Int, UInt8
import numpy as np

SIDE = 32
NOISE = 0.06  # standard deviation, of brightness from 0 to 1
_CONTRAST = 0.35  # smallest distance of the two colours, as a root mean square over the channels

Plane = Float[np.ndarray, "n side side"]


def _triangle(u: Plane, v: Plane) -> Bool[np.ndarray, "n side side"]:
  return (v > -0.5) & (v < 1 - np.sqrt(3) * np.abs(u))


def _cross(u: Plane, v: Plane) -> Bool[np.ndarray, "n side side"]:
  return (np.maximum(abs(u), abs(v)) < 1) & (np.minimum(abs(u), abs(v)) < 0.33)


_INSIDE: Mapping[str, Callable[[Plane, Plane], Bool[np.ndarray, "n side side"]]] = {
  "disc": lambda u, v: np.hypot(u, v) < 0.9,
  "ring": lambda u, v: abs(np.hypot(u, v) - 0.75) < 0.25,
  "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.8,
  "frame": lambda u, v: abs(np.maximum(abs(u), abs(v)) - 0.65) < 0.2,
  "triangle": _triangle,
  "cross": _cross,
  "half disc": lambda u, v: (np.hypot(u, v) < 1) & (v > 0),
  "crescent": lambda u, v: (np.hypot(u, v) < 1) & (np.hypot(u - 0.5, v) > 0.8),
  "star": lambda u, v: np.hypot(u, v) < 0.65 + 0.35 * np.cos(5 * np.arctan2(v, u)),
  "bars": lambda u, v: (np.maximum(abs(u), abs(v)) < 0.9) & (np.mod(u + 0.9, 0.72) < 0.36),
}
NAMES = tuple(_INSIDE)


def draw(count: int, seed: int) -> tuple[UInt8[np.ndarray, "count 32 32 3"], Int[np.ndarray, "count"]]:
  """(pictures, numbers of their shapes in `NAMES`), every shape as often as the others."""
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.arange(count) % len(NAMES))
  middle, turn = rng.uniform(-0.35, 0.35, (2, count, 1, 1)), rng.uniform(0, 2 * np.pi, (count, 1, 1))
  size = rng.uniform(0.4, 0.75, (count, 1, 1))
  axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
  x, y = axis[None, None, :] - middle[0], axis[None, :, None] - middle[1]
  u, v = (x * np.cos(turn) + y * np.sin(turn)) / size, (y * np.cos(turn) - x * np.sin(turn)) / size
  inside = np.zeros((count, SIDE, SIDE), bool)
  for number, name in enumerate(NAMES):
    of_it = labels == number
    inside[of_it] = _INSIDE[name](u[of_it], v[of_it])
  ground, colour = _colours(rng, count)
  pictures = np.where(inside[..., None], colour, ground) + rng.normal(0, NOISE, (count, SIDE, SIDE, 3))
  return (255 * pictures.clip(0, 1)).round().astype(np.uint8), labels


def _colours(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Two colours a picture, (count, 1, 1, 3) each; where they are close, the second is half the range from the first."""
  ground, colour = rng.uniform(0, 1, (2, count, 1, 1, 3))
  close = np.sqrt(np.mean((ground - colour) ** 2, axis=-1, keepdims=True)) < _CONTRAST
  opposite = np.where(ground > 0.5, ground - 0.5, ground + 0.5)
  return ground, np.where(close, opposite, colour)
