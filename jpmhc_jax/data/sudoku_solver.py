"""Search in Sudoku grids: completions, random grids, and puzzles with one solution."""

from collections.abc import Sequence
import dataclasses
import functools
import random

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # rows and columns of a box by side


@dataclasses.dataclass(frozen=True)
class Units:
  """Row, column and box of every cell; a box has `height` rows and `width` columns."""

  side: int
  height: int
  width: int
  row: tuple[int, ...]
  column: tuple[int, ...]
  box: tuple[int, ...]


@functools.cache
def units(side: int) -> Units:
  """The layout of a 4×4, 6×6 or 9×9 grid."""
  height, width = BOXES[side]
  cells = [divmod(cell, side) for cell in range(side * side)]
  boxes = tuple((row // height) * (side // width) + column // width for row, column in cells)
  return Units(side, height, width, tuple(r for r, _ in cells), tuple(c for _, c in cells), boxes)


class Solver:
  """Depth-first search on digit bit masks that always branches on the cell with the fewest candidates."""

  def __init__(self, grid: Sequence[int], side: int):
    self._units = units(side)
    self.grid = list(grid)
    full = (1 << side) - 1
    self._rows, self._columns, self._boxes = [full] * side, [full] * side, [full] * side  # digits still free
    for cell, digit in enumerate(self.grid):
      if digit:
        self._flip(cell, 1 << (digit - 1))

  def candidates(self, cell: int) -> int:
    """Bit mask of the digits that no peer of the cell holds."""
    u = self._units
    return self._rows[u.row[cell]] & self._columns[u.column[cell]] & self._boxes[u.box[cell]]

  def put(self, cell: int, bit: int) -> None:
    """Writes the digit of a bit into a blank cell."""
    self.grid[cell] = bit.bit_length()
    self._flip(cell, bit)

  def erase(self, cell: int) -> int:
    """Blanks the cell and returns the bit of its digit."""
    bit = 1 << (self.grid[cell] - 1)
    self.grid[cell] = 0
    self._flip(cell, bit)
    return bit

  def _flip(self, cell: int, bit: int) -> None:
    u = self._units
    self._rows[u.row[cell]] ^= bit
    self._columns[u.column[cell]] ^= bit
    self._boxes[u.box[cell]] ^= bit

  def solvable(self, rng: random.Random | None = None) -> bool:
    """Whether a completion exists. With rng it is left in `grid`, a random one; without, the grid is left as it was."""
    best, best_mask, fewest = -1, 0, 99
    for cell, digit in enumerate(self.grid):
      if digit:
        continue
      mask = self.candidates(cell)
      count = mask.bit_count()
      if count < fewest:
        best, best_mask, fewest = cell, mask, count
        if count <= 1:
          break
    if best < 0:
      return True
    bits = [1 << i for i in range(self._units.side) if best_mask >> i & 1]
    if rng is not None:
      rng.shuffle(bits)
    for bit in bits:
      self.put(best, bit)
      solved = self.solvable(rng)
      if not (solved and rng is not None):
        self.erase(best)
      if solved:
        return True
    return False


def filled(side: int, rng: random.Random) -> tuple[int, ...]:
  """A random completed grid."""
  solver = Solver([0] * side**2, side)
  solver.solvable(rng)
  return tuple(solver.grid)


def dig(solution: Sequence[int], side: int, holes: int, rng: random.Random) -> tuple[int, ...] | None:
  """Blanks `holes` cells in random order, each only if the solution stays unique; None if that many cannot be blanked.

  A blanked cell keeps the solution unique exactly when no other digit in it leads to a completion.
  """
  solver = Solver(solution, side)
  for cell in rng.sample(range(side * side), side * side):
    if not holes:
      break
    bit = solver.erase(cell)
    if _other_completion(solver, cell, solver.candidates(cell) & ~bit):
      solver.put(cell, bit)
    else:
      holes -= 1
  return None if holes else tuple(solver.grid)


def _other_completion(solver: Solver, cell: int, others: int) -> bool:
  while others:
    bit = others & -others
    others ^= bit
    solver.put(cell, bit)
    solved = solver.solvable()
    solver.erase(cell)
    if solved:
      return True
  return False


def count_solutions(grid: Sequence[int], side: int, limit: int = 2) -> int:
  """Number of completions of a grid without conflicts, counted up to `limit`."""
  solver = Solver(grid, side)

  def count(remaining: int) -> int:
    blanks = [cell for cell, digit in enumerate(solver.grid) if not digit]
    if not blanks:
      return 1
    cell = min(blanks, key=lambda c: solver.candidates(c).bit_count())
    solutions, mask = 0, solver.candidates(cell)
    while mask and solutions < remaining:
      bit = mask & -mask
      mask ^= bit
      solver.put(cell, bit)
      solutions += count(remaining - solutions)
      solver.erase(cell)
    return solutions

  return count(limit)
