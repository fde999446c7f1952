"""ARC grids: symmetries, colour permutations, names of augmented tasks, and the token canvas.

A grid is a uint8 array of colours 0–9. On a canvas of side c it becomes c² tokens: PAD 0, EOS 1, colour + 2. EOS marks
the row below and the column right of the grid where they fall inside the canvas; the corner between them stays PAD.
Convention (bit for bit): the TRM ARC builder, github SamsungSAILMontreal/TinyRecursiveModels @ e7b6871.
"""

from collections.abc import Callable
import hashlib
import re

from jaxtyping import Bool, Integer, UInt8
import numpy as np

END, FIRST_COLOUR = 1, 2  # 0 is PAD
COLOURS = 10
VOCABULARY = COLOURS + FIRST_COLOUR
SEPARATOR = "|||"
_AUGMENTED = re.compile(r"(?P<task>[^|]+)\|{3}t(?P<turn>[0-7])\|{3}(?P<digits>[0-9]{10})")

_DIHEDRAL: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
  lambda grid: grid,
  lambda grid: np.rot90(grid, 1),  # counter-clockwise
  lambda grid: np.rot90(grid, 2),
  lambda grid: np.rot90(grid, 3),
  lambda grid: grid[:, ::-1],
  lambda grid: grid[::-1],
  lambda grid: np.swapaxes(grid, 0, 1),
  lambda grid: np.rot90(grid, 1)[:, ::-1],  # mirror at the other diagonal
)
DIHEDRAL_ORDER = len(_DIHEDRAL)


def dihedral(grid: np.ndarray, k: int) -> np.ndarray:
  """Symmetry k of the square: 0 none, 1–3 quarter turns counter-clockwise, 4 left-right, 5 up-down, 6 and 7 diagonals.

  Acts on the first two axes of any array and keeps its dtype. ValueError if k is not in 0–7.
  """
  if not 0 <= k < DIHEDRAL_ORDER:
    raise ValueError(f"dihedral: k={k}; expected a symmetry of the square, 0 to {DIHEDRAL_ORDER - 1}.")
  return _DIHEDRAL[k](grid)


def inverse_dihedral(k: int) -> int:
  """The symmetry that undoes k: the quarter turns 1 and 3 swap, every other one is its own inverse.

  Raises ValueError outside 0 to 7.
  """
  if not 0 <= k < DIHEDRAL_ORDER:
    raise ValueError(f"inverse_dihedral: k={k}; expected a symmetry of the square, 0 to {DIHEDRAL_ORDER - 1}.")
  return (0, 3, 2, 1, 4, 5, 6, 7)[k]


def augment(
  grid: UInt8[np.ndarray, "rows columns"], k: int, permutation: UInt8[np.ndarray, "10"]
) -> UInt8[np.ndarray, "_ _"]:
  """Recolours, then turns: dihedral(permutation[grid], k)."""
  return dihedral(permutation[grid], k)


def restore(
  grid: UInt8[np.ndarray, "rows columns"], k: int, permutation: UInt8[np.ndarray, "10"]
) -> UInt8[np.ndarray, "_ _"]:
  """Undoes `augment`: restore(augment(g, k, p), k, p) = g."""
  return np.argsort(permutation).astype(np.uint8)[dihedral(grid, inverse_dihedral(k))]


def augmented_name(task: str, k: int, permutation: UInt8[np.ndarray, "10"]) -> str:
  """'<task>|||t<k>|||<10 digits>', digit c being the colour that c turns into."""
  return f"{task}{SEPARATOR}t{k}{SEPARATOR}{''.join(map(str, permutation.tolist()))}"


def parse_augmented_name(name: str) -> tuple[str, int, UInt8[np.ndarray, "10"]]:
  """(task, k, permutation) of an augmented name; a plain task name gives the identity. ValueError if malformed."""
  if SEPARATOR not in name:
    return name, 0, np.arange(COLOURS, dtype=np.uint8)
  match = _AUGMENTED.fullmatch(name)
  if match is None or len(set(match["digits"])) != COLOURS:
    raise ValueError(f"augmented name {name!r}: expected '<task>|||t<0-7>|||<permutation of 0123456789>'.")
  return match["task"], int(match["turn"]), np.array(list(match["digits"]), dtype=np.uint8)


def place(tokens: np.ndarray, grid: UInt8[np.ndarray, "rows columns"], row: int, column: int) -> None:
  """Writes one grid and its EOS frame into a zeroed (canvas, canvas) array, its top left cell at (row, column)."""
  bottom, right = row + grid.shape[0], column + grid.shape[1]
  canvas = tokens.shape[0]
  tokens[row:bottom, column:right] = grid + FIRST_COLOUR
  if bottom < canvas:
    tokens[bottom, column:right] = END
  if right < canvas:
    tokens[row:bottom, right] = END


def encode(
  grid_in: UInt8[np.ndarray, "rows_in columns_in"],
  grid_out: UInt8[np.ndarray, "rows_out columns_out"],
  offset: tuple[int, int] = (0, 0),
  canvas: int = 30,
) -> tuple[UInt8[np.ndarray, "cells"], UInt8[np.ndarray, "cells"]]:
  """Token rows (inputs, labels) of one pair, both grids at the same offset; row-major, canvas² tokens each.

  Labels hold PAD outside the framed output; batches turn that into the ignored label. ValueError if a grid overhangs.
  """
  tokens = np.zeros((2, canvas, canvas), np.uint8)
  for target, grid in zip(tokens, (grid_in, grid_out), strict=True):
    if min(offset) < 0 or any(o + s > canvas for o, s in zip(offset, grid.shape, strict=True)):
      size = f"{grid.shape[0]}x{grid.shape[1]}"
      raise ValueError(f"encode: a {size} grid at offset {offset} leaves the {canvas}x{canvas} canvas.")
    place(target, grid, *offset)
  return tokens[0].reshape(-1), tokens[1].reshape(-1)


def _leading_run(cells: Bool[np.ndarray, "rows columns"]) -> Integer[np.ndarray, "rows"]:
  """Number of true cells before the first false one, for each row."""
  return np.where(cells.all(1), cells.shape[1], cells.argmin(1))


def crop(tokens: Integer[np.ndarray, "cells"], canvas: int = 30) -> UInt8[np.ndarray, "rows columns"]:
  """The grid on a canvas: the largest rectangle of colours with its corner at the top left; ties go to fewest rows.

  A frame, a PAD or any other token ends the rectangle: a predicted shape is the one its frame says. Empty: (0, 0).
  A grid that was encoded at another offset crops to (0, 0) too: voting reads untranslated grids only.
  """
  board = tokens.reshape(canvas, canvas)
  columns = np.minimum.accumulate(_leading_run((board >= FIRST_COLOUR) & (board < VOCABULARY)))
  area = columns * np.arange(1, canvas + 1)
  best = int(area.argmax())
  if area[best] == 0:
    return np.zeros((0, 0), np.uint8)
  return (board[: best + 1, : columns[best]] - FIRST_COLOUR).astype(np.uint8)


def grid_hash(grid: UInt8[np.ndarray, "rows columns"]) -> str:
  """sha256 (hex) of the bytes [rows, columns] followed by the colours in row-major order."""
  return hashlib.sha256(bytes(grid.shape) + grid.tobytes()).hexdigest()
