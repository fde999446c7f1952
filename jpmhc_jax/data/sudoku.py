"""Generated Sudoku: every puzzle has one solution, no two base puzzles are the same up to symmetry.

A group is a training puzzle with its shuffles (digits, bands, rows, stacks, columns, transposition), made when a
batch asks. Tokens: blank 1, digit d is d + 1, PAD 0 unused; one identifier for all. The puzzles do not depend on the
run's seed, so runs of different seeds train on the same data; only the batches differ.
"""

import dataclasses
import functools
import random

from jaxtyping import Int, UInt8, UInt64
import numpy as np

from jpmhc_jax.config.schema import Data, SudokuData
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.data.batches import BatchPlan, Split
from jpmhc_jax.data.dataset import digest
from jpmhc_jax.data.registry import register_dataset
from jpmhc_jax.data.sudoku_solver import BOXES, dig, filled, units
from jpmhc_jax.data.tokens import TokenDataset


def symmetry_class(
  puzzles: Int[np.ndarray, "n cells"], solutions: Int[np.ndarray, "n cells"], side: int, rounds: int = 4
) -> UInt64[np.ndarray, "n"]:
  """A number that equivalent puzzles share: under digits, bands, rows, stacks, columns and transposition.

  Colour refinement on cells, rows, columns, bands, stacks, boxes and digits: each takes the hash of the multiset of
  hashes around it. Equal for equivalent puzzles by construction; inequivalent ones may collide (rarely: refinement is
  not a complete invariant), so keeping one puzzle a class errs on the side of too few, never of a leak.
  Transposition counts only where boxes are square.
  """
  u = units(side)
  n = puzzles.shape[0]
  cell = mix((puzzles > 0).astype(np.uint64))
  column_salt = np.uint64(0 if u.height == u.width else 0xC01)
  digit_of = np.eye(side, dtype=np.uint64)[solutions - 1]  # (n, cells, side)
  for _ in range(rounds):
    square = mix(cell).reshape(n, side, side)
    bands = _with_parent(square.sum(2), u.height)
    stacks = _with_parent(square.sum(1) + column_salt, u.width)
    boxes = square.reshape(n, side // u.height, u.height, side // u.width, u.width).sum((2, 4)).reshape(n, side)
    digits = (digit_of * mix(cell)[:, :, None]).sum(1)
    lines = mix(bands)[:, list(u.row)] + mix(stacks)[:, list(u.column)]
    cell = mix(cell ^ mix(lines)) + mix(boxes + np.uint64(1))[:, list(u.box)]
    cell = mix(cell) + mix(np.take_along_axis(digits, solutions - 1, 1) + np.uint64(2))
  return mix(cell).sum(1)


def _with_parent(lines: UInt64[np.ndarray, "n side"], size: int) -> UInt64[np.ndarray, "n side"]:
  """Each line's hash joined with the hash of its band or stack."""
  parents = mix(mix(lines).reshape(lines.shape[0], -1, size).sum(2))
  return mix(lines) ^ np.repeat(parents, size, axis=1)


def mix(words: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
  """A bijection of 64-bit words under which neighbouring counters look independent.

  Source: the finaliser of splitmix64 (Steele, Lea, Flood 2014).
  """
  words = words + np.uint64(0x9E3779B97F4A7C15)
  words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return words ^ (words >> np.uint64(31))


_BUILDER_SEED = 0
_CHUNK = 64  # puzzles generated between two looks at their symmetry classes


@register_dataset("sudoku")
def build_sudoku(config: Data, *, batch_size: int, seed: int) -> TokenDataset:
  """Generates the puzzles (4×4: 0.1 ms each, 9×9: 2 ms each, more beyond 50 holes) and wraps them in batches."""
  options = config.sudoku
  _check(options)
  puzzles, solutions = generate(options)
  held = options.test_puzzles
  train = _split(puzzles[held:], solutions[held:], options.side, copies=options.shuffles + 1)
  return TokenDataset(
    kind="sudoku",
    drawn_as="sudoku",
    symbols=".123456789"[: options.side + 1],
    side=options.side,
    vocab_size=options.side + 2,
    train=train,
    evaluation=_split(puzzles[:held], solutions[:held], options.side, copies=1),
    plan=BatchPlan(train, batch_size=batch_size, seed=seed, epochs=config.epochs_per_interval),
    content=digest("sudoku", puzzles, solutions, str(held), str(options.shuffles)),
    notes={"holes": [int((puzzles == 0).sum(1).min()), int((puzzles == 0).sum(1).max())]},
  )


@functools.lru_cache(maxsize=4)  # the runs of a sweep, and a run and its evaluations, ask for the same puzzles
def generate(options: SudokuData) -> tuple[UInt8[np.ndarray, "n cells"], UInt8[np.ndarray, "n cells"]]:
  """Puzzles and solutions, test_puzzles first, then train_puzzles; all in different symmetry classes. Read-only.

  Raises ConfigError when new classes run out: a 4×4 grid has few.
  """
  rng = random.Random(_BUILDER_SEED)
  wanted = options.test_puzzles + options.train_puzzles
  classes: dict[int, tuple[np.ndarray, np.ndarray]] = {}
  barren = 0
  while len(classes) < wanted:
    before = len(classes)
    puzzles, solutions = _candidates(options, rng)
    keys = symmetry_class(puzzles, solutions, options.side).tolist() if len(puzzles) else []
    for key, puzzle, solution in zip(keys, puzzles, solutions, strict=True):
      classes.setdefault(key, (puzzle, solution))
    barren = 0 if len(classes) > before else barren + 1
    if barren > 10:
      raise ConfigError(
        f"data.sudoku.train_puzzles={options.train_puzzles}, test_puzzles={options.test_puzzles}: only {len(classes)} "
        f"puzzles of side {options.side} with {options.min_holes} to {options.max_holes} holes were found that differ "
        "under every symmetry and have one solution; ask for fewer, or change min_holes and max_holes."
      )
  pairs = list(classes.values())[:wanted]
  puzzles, solutions = (np.array(grids, np.uint8) for grids in zip(*pairs, strict=True))
  for grids in (puzzles, solutions):
    grids.flags.writeable = False
  return puzzles, solutions


def _candidates(options: SudokuData, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
  puzzles, solutions = [], []
  for _ in range(_CHUNK):
    solution = filled(options.side, rng)
    puzzle = dig(solution, options.side, rng.randint(options.min_holes, options.max_holes), rng)
    if puzzle is not None:
      puzzles.append(puzzle)
      solutions.append(solution)
  shape = (len(puzzles), options.side**2)
  return np.array(puzzles, np.int64).reshape(shape), np.array(solutions, np.int64).reshape(shape)


@dataclasses.dataclass(frozen=True)
class SudokuEncoder:
  """Example e is copy e mod `copies` of puzzle e // copies; copy 0 is the puzzle itself."""

  puzzles: UInt8[np.ndarray, "n cells"]
  solutions: UInt8[np.ndarray, "n cells"]
  side: int
  copies: int

  def __call__(self, examples: Int[np.ndarray, "b"]) -> tuple[UInt8[np.ndarray, "b s"], UInt8[np.ndarray, "b s"]]:
    """Inputs and labels of the examples, one row each."""
    base, copy = np.divmod(examples, self.copies)
    cells, digits = shuffles(examples, copy > 0, self.side)
    tokens = [
      np.take_along_axis(digits, np.take_along_axis(grids[base], cells, 1).astype(np.int64), 1) + 1
      for grids in (self.puzzles, self.solutions)
    ]
    return tokens[0].astype(np.uint8), tokens[1].astype(np.uint8)


def shuffles(
  counters: Int[np.ndarray, "b"], moved: np.ndarray, side: int
) -> tuple[Int[np.ndarray, "b cells"], Int[np.ndarray, "b side_and_1"]]:
  """A random symmetry for each counter: the cell that each cell takes its digit from, and the new name of each digit.

  Where `moved` is false both are the identity. Blanks (digit 0) stay blanks.
  """
  u = units(side)
  words = 2 * side + side // u.height + side // u.width + side + 1
  keys = mix(mix(counters.astype(np.uint64))[:, None] + np.arange(words, dtype=np.uint64))
  rows, keys = _line_order(keys, side, u.height)
  columns, keys = _line_order(keys, side, u.width)
  cells = rows[:, :, None] * side + columns[:, None, :]
  transposed = (keys[:, -1] & np.uint64(1)).astype(bool) & (u.height == u.width)
  cells = np.where(transposed[:, None, None], np.swapaxes(cells, 1, 2), cells).reshape(counters.size, -1)
  digits = np.concatenate([np.zeros((counters.size, 1), np.int64), keys[:, :side].argsort(1) + 1], 1)
  still = ~moved[:, None]
  return np.where(still, np.arange(side * side)[None], cells), np.where(still, np.arange(side + 1)[None], digits)


def _line_order(keys: np.ndarray, side: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """A random order of bands and of the lines in each band, and the keys that are left."""
  bands = side // size
  outer = keys[:, :bands].argsort(1)
  inner = keys[:, bands : bands + side].reshape(-1, bands, size).argsort(2)
  return (outer[:, :, None] * size + inner).reshape(-1, side), keys[:, bands + side :]


def _split(puzzles: np.ndarray, solutions: np.ndarray, side: int, copies: int) -> Split:
  examples = len(puzzles) * copies
  return Split(
    group_starts=np.arange(0, examples + 1, copies),
    puzzle_starts=np.arange(examples + 1),
    identifiers=np.zeros(examples, np.int32),
    encode=SudokuEncoder(puzzles, solutions, side, copies),
  )


def _check(options: SudokuData) -> None:
  if options.side not in BOXES:
    raise ConfigError(f"data.sudoku.side={options.side}: expected one of {', '.join(map(str, BOXES))}.")
  cells = options.side**2
  if not 0 < options.min_holes <= options.max_holes < cells:
    raise ConfigError(
      f"data.sudoku.min_holes={options.min_holes}, max_holes={options.max_holes}: "
      f"expected 0 < min_holes <= max_holes < {cells}."
    )
