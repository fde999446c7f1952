"""Grids, symmetries and the canvas: worked examples, round trips, and the decoding of the official evaluator."""

import gzip
import json

import numpy as np
import pytest

from jpmhc_jax.data.arc_grids import (
  augment,
  augmented_name,
  crop,
  dihedral,
  encode,
  grid_hash,
  inverse_dihedral,
  parse_augmented_name,
  restore,
)

IDENTITY = np.arange(10, dtype=np.uint8)
SMALL = np.array([[1, 2], [3, 4]], np.uint8)


def _random_grid(rng: np.random.Generator, largest: int = 30) -> np.ndarray:
  return rng.integers(0, 10, rng.integers(1, largest + 1, 2), dtype=np.uint8)


def test_the_worked_example_of_a_two_by_two_grid():
  inputs, labels = encode(SMALL, SMALL[:1])
  assert inputs.reshape(30, 30)[:4, :5].tolist() == [[3, 4, 1, 0, 0], [5, 6, 1, 0, 0], [1, 1, 0, 0, 0], [0] * 5]
  assert labels.reshape(30, 30)[:3, :4].tolist() == [[3, 4, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
  assert np.count_nonzero(inputs) == 8 and np.count_nonzero(labels) == 5


def test_a_full_grid_has_no_frame_and_a_translated_one_crops_to_nothing():
  full = np.full((30, 30), 7, np.uint8)
  inputs, _ = encode(full, full)
  assert (inputs == 9).all()
  np.testing.assert_array_equal(crop(inputs), full)
  moved, _ = encode(SMALL, SMALL, offset=(1, 0))
  assert crop(moved).shape == (0, 0)


@pytest.mark.parametrize("canvas", [6, 10, 30])
def test_augmentation_survives_the_canvas_and_is_undone(canvas):
  rng = np.random.default_rng(canvas)
  for _ in range(250):
    grid, k = _random_grid(rng, canvas), int(rng.integers(8))
    permutation = np.concatenate([[0], rng.permutation(9) + 1]).astype(np.uint8)
    name, turn, colours = parse_augmented_name(augmented_name("8be77c9e", k, permutation))
    assert (name, turn) == ("8be77c9e", k)
    tokens, labels = encode(augment(grid, k, permutation), augment(grid, k, permutation), canvas=canvas)
    np.testing.assert_array_equal(restore(crop(tokens.astype(np.int32), canvas), turn, colours), grid)
    np.testing.assert_array_equal(tokens, labels)


def test_the_eight_symmetries_form_the_dihedral_group():
  grid = np.arange(12, dtype=np.uint8).reshape(3, 4)
  images = {(turned := dihedral(grid, k)).tobytes() + bytes(turned.shape) for k in range(8)}
  assert len(images) == 8
  for k in range(8):
    np.testing.assert_array_equal(dihedral(dihedral(grid, k), inverse_dihedral(k)), grid)
  np.testing.assert_array_equal(dihedral(SMALL, 1), [[2, 4], [1, 3]])  # a quarter turn counter-clockwise
  np.testing.assert_array_equal(dihedral(SMALL, 7), [[4, 2], [3, 1]])  # the mirror at the other diagonal
  for k in (-1, 8):
    with pytest.raises(ValueError, match="0 to 7"):
      dihedral(grid, k)
    with pytest.raises(ValueError, match="0 to 7"):
      inverse_dihedral(k)


@pytest.mark.parametrize(
  "name", ["a|||t8|||0123456789", "a|||t1|||0123456788", "a|||0123456789", "a|b|||t1|||0123456789"]
)
def test_malformed_names_are_refused(name):
  with pytest.raises(ValueError, match="permutation of 0123456789"):
    parse_augmented_name(name)


def test_a_plain_name_is_the_identity():
  name, k, permutation = parse_augmented_name("8be77c9e")
  assert (name, k) == ("8be77c9e", 0)
  np.testing.assert_array_equal(permutation, IDENTITY)


def test_crop_takes_the_largest_rectangle_and_the_flattest_of_equals():
  board = np.zeros((5, 5), np.int32)
  board[0, :4] = 2
  board[1, :2] = 2  # 1x4 and 2x2 tie
  assert crop(board.reshape(-1), 5).shape == (1, 4)
  board[2, :2] = 2
  assert crop(board.reshape(-1), 5).shape == (3, 2)
  board[0, 0] = 12  # no colour
  assert crop(board.reshape(-1), 5).shape == (0, 0)


def test_a_grid_that_leaves_the_canvas_is_refused():
  for offset in ((4, 0), (0, -1)):
    with pytest.raises(ValueError, match="leaves the 5x5 canvas"):
      encode(SMALL, SMALL, offset=offset, canvas=5)


def test_the_hash_depends_on_shape_and_not_on_memory_layout():
  wide, tall = np.zeros((1, 4), np.uint8), np.zeros((4, 1), np.uint8)
  assert grid_hash(wide) != grid_hash(tall)
  grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
  assert grid_hash(grid.T) == grid_hash(np.ascontiguousarray(grid.T))


def test_decoding_agrees_with_the_official_evaluator(shared):
  golden = json.loads(gzip.decompress((shared / "fixtures/arc_evaluator.json.gz").read_bytes()))
  for evaluation in golden["evaluations"]:
    rows = zip(*(evaluation[key] for key in ("puzzle_identifiers", "inputs", "preds", "decoded")), strict=True)
    for identifier, *tokens, expected in rows:
      task, k, permutation = parse_augmented_name(golden["identifiers"][identifier])
      grids = [restore(crop(np.array([int(c, 16) for c in row], np.int32)), k, permutation) for row in tokens]
      assert task == expected["task"]
      assert [grid_hash(grid) for grid in grids] == [expected["input_sha256"], expected["pred_sha256"]]
      assert list(grids[1].shape) == expected["pred_shape"]
