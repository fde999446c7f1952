"""Sudoku: unique solutions, symmetry classes against brute force, disjoint splits, lazy shuffles."""

import dataclasses
import itertools
import random

import numpy as np
import pytest

from jpmhc_jax import data
from jpmhc_jax.config.schema import Data, SudokuData
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.data.sudoku import generate, shuffles, symmetry_class
from jpmhc_jax.data.sudoku_solver import BOXES, count_solutions, dig, filled, units

SIZES = {
  4: SudokuData(train_puzzles=150, test_puzzles=50, shuffles=20),
  6: SudokuData(side=6, train_puzzles=20, test_puzzles=10, min_holes=12, max_holes=20, shuffles=20),
  9: SudokuData(side=9, train_puzzles=5, test_puzzles=3, min_holes=35, max_holes=45, shuffles=20),
}


@pytest.fixture(scope="module", params=SIZES)
def generated(request):
  return SIZES[request.param], *generate(SIZES[request.param])


def _violations(grid: np.ndarray, side: int) -> int:
  """Units that repeat a digit."""
  u = units(side)
  lines = [
    [grid[c] for c in range(side**2) if unit[c] == i and grid[c]]
    for unit in (u.row, u.column, u.box)
    for i in range(side)
  ]
  return sum(len(line) != len(set(line)) for line in lines)


def test_solutions_are_valid_and_the_only_ones(generated):
  options, puzzles, solutions = generated
  for puzzle, solution in zip(puzzles, solutions, strict=True):
    assert solution.min() >= 1 and _violations(solution, options.side) == 0
    assert (solution[puzzle > 0] == puzzle[puzzle > 0]).all()
    assert options.min_holes <= (puzzle == 0).sum() <= options.max_holes
    assert count_solutions(puzzle.tolist(), options.side) == 1


def test_the_solver_counts_all_288_grids_of_side_four():
  assert count_solutions([0] * 16, 4, limit=1000) == 288
  assert count_solutions([1, 2, 3, 4, 3, 4, 1, 2, *[0] * 8], 4, limit=1000) == 4
  assert count_solutions([1, 2, 0, 0, 0, 0, 1, 0, 3, 4, 0, 0, 0, 0, 0, 0], 4, limit=2) <= 2


def test_every_symmetric_copy_keeps_the_rules_the_uniqueness_and_the_class(generated):
  options, puzzles, solutions = generated
  side = options.side
  n = 40
  base = np.arange(n) % len(puzzles)
  cells, digits = shuffles(np.arange(n), np.ones(n, bool), side)
  moved = [
    np.take_along_axis(digits, np.take_along_axis(g[base], cells, 1).astype(int), 1) for g in (puzzles, solutions)
  ]
  assert len({m.tobytes() for m in moved[1]}) > n // 2
  for puzzle, solution in zip(*moved, strict=True):
    assert _violations(solution, side) == 0
    assert count_solutions(puzzle.tolist(), side) == 1
  keys = symmetry_class(puzzles.astype(int), solutions.astype(int), side)
  np.testing.assert_array_equal(symmetry_class(*moved, side), keys[base])


def _four_by_four_symmetries() -> np.ndarray:
  """All 128 cell permutations: bands, rows, stacks, columns, transposition."""
  orders = [(*a, *b) for x, y in (((0, 1), (2, 3)), ((2, 3), (0, 1))) for a in (x, x[::-1]) for b in (y, y[::-1])]
  cells = [[4 * r + c for r in rows for c in columns] for rows, columns in itertools.product(orders, orders)]
  return np.array(cells + [np.reshape(c, (4, 4)).T.reshape(-1).tolist() for c in cells])


def _canonical(puzzle: np.ndarray, symmetries: np.ndarray) -> bytes:
  """The smallest image under every cell symmetry, digits renamed by first appearance: exact, by brute force."""
  images = []
  for image in puzzle[symmetries].tolist():
    names = {0: 0}
    images.append(bytes(names.setdefault(digit, len(names)) for digit in image))
  return min(images)


def test_classes_of_side_four_separate_what_brute_force_separates():
  rng = random.Random(1)
  pairs = []
  while len(pairs) < 300:
    solution = filled(4, rng)
    if puzzle := dig(solution, 4, rng.randint(4, 9), rng):
      pairs.append((puzzle, solution))
  puzzles, solutions = (np.array(side) for side in zip(*pairs, strict=True))
  keys = symmetry_class(puzzles, solutions, 4).tolist()
  symmetries = _four_by_four_symmetries()
  exact = [_canonical(puzzle, symmetries) for puzzle in puzzles]
  assert len(set(zip(keys, exact, strict=True))) == len(set(exact)) > 150  # equivalent puzzles share a key: no leak
  assert len(set(keys)) >= 0.97 * len(set(exact))  # and hardly any others do


def test_training_and_test_puzzles_differ_under_every_symmetry():
  options = SIZES[4]
  puzzles, _ = generate(options)
  canonical = [_canonical(puzzle, _four_by_four_symmetries()) for puzzle in puzzles]
  assert len(set(canonical)) == options.train_puzzles + options.test_puzzles


@pytest.mark.parametrize("side", SIZES)
def test_a_data_set_speaks_the_tokens_of_trm(side):
  built = data.build(Data(kind="sudoku", sudoku=SIZES[side]), batch_size=16, seed=0)
  assert (built.vocab_size, built.sequence_length, built.num_identifiers) == (side + 2, side**2, 1)
  assert built.train.groups == SIZES[side].train_puzzles and np.diff(built.train.group_starts).max() == 21
  batch = built.batch(0)
  given = batch["inputs"] > 1
  assert (batch["inputs"][given] == batch["labels"][given]).all() and batch["inputs"].min() == 1
  assert batch["labels"].min() == 2 and batch["labels"].max() == side + 1
  assert (batch["puzzle_identifiers"] == 0).all()
  puzzles, solutions = generate(SIZES[side])
  inputs, labels = built.evaluation.encode(np.arange(built.evaluation.examples))
  np.testing.assert_array_equal(inputs, puzzles[: len(inputs)] + 1)
  np.testing.assert_array_equal(labels, solutions[: len(labels)] + 1)
  original, _ = built.train.encode(built.train.puzzle_starts[built.train.group_starts[:-1]])
  np.testing.assert_array_equal(original, puzzles[len(inputs) :] + 1)  # copy 0 of each group is the puzzle itself


def test_more_puzzles_than_exist_are_refused():
  with pytest.raises(
    ConfigError, match=r"train_puzzles=500, test_puzzles=10: only \d+ puzzles of side 4 with 1 to 1 holes"
  ):
    generate(SudokuData(train_puzzles=500, test_puzzles=10, min_holes=1, max_holes=1))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"side": 5}, "data.sudoku.side=5: expected one of 4, 6, 9"),
    ({"min_holes": 9, "max_holes": 8}, "min_holes=9, max_holes=8"),
    ({"max_holes": 16}, "max_holes < 16"),
    ({"train_puzzles": 0}, "data.sudoku.train_puzzles=0"),
    ({"shuffles": -1}, "data.sudoku.shuffles=-1"),
  ],
)
def test_settings_out_of_range_name_the_field(change, message):
  with pytest.raises(ConfigError, match=message):
    data.build(Data(kind="sudoku", sudoku=dataclasses.replace(SIZES[4], **change)), batch_size=4, seed=0)


def test_boxes_tile_the_grid():
  for side, (height, width) in BOXES.items():
    assert height * width == side
    assert sorted(units(side).box) == sorted(list(range(side)) * side)
