"""Mazes: one shortest path by an independent count, disjoint splits, symmetric copies."""

import dataclasses

import numpy as np
import pytest

from jpmhc_jax import data
from jpmhc_jax.config.schema import Data, MazeData
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.data.maze import canonical, FLOOR, generate, GOAL, PATH, START, WALL

SMALL = MazeData(side=9, train_mazes=60, test_mazes=20, min_path=8, loops=0.2)


@pytest.fixture(scope="module")
def mazes():
  return generate(SMALL)


def _walks(maze: np.ndarray) -> tuple[int, int]:
  """Length in cells and number of shortest walks from S to G: powers of the adjacency matrix, no search involved."""
  free = np.argwhere(maze != WALL)
  adjacency = (np.abs(free[:, None] - free[None]).sum(-1) == 1).astype(np.int64)
  start, goal = (int(np.flatnonzero((free == np.argwhere(maze == mark)[0]).all(1))[0]) for mark in (START, GOAL))
  reached, length = np.eye(len(free), dtype=np.int64)[start], 1
  while not reached[goal]:
    reached, length = adjacency @ reached, length + 1
  return length, int(reached[goal])


def test_every_maze_has_one_shortest_path_of_the_asked_length_and_the_label_marks_it(mazes):
  for maze, label in zip(*mazes, strict=True):
    length, count = _walks(maze)
    assert count == 1 and length >= SMALL.min_path
    assert (label == PATH).sum() == length - 2
    assert (maze[label == PATH] == FLOOR).all()
    np.testing.assert_array_equal(maze[label != PATH], label[label != PATH])
    narrow = np.where(np.isin(label, (PATH, START, GOAL)), maze, WALL)
    assert _walks(narrow) == (length, 1)  # the marked cells alone connect S and G
    assert (maze == START).sum() == (maze == GOAL).sum() == 1
    assert (maze[[0, -1]] == WALL).all() and (maze[:, [0, -1]] == WALL).all()


def test_loops_are_opened_and_none_without(mazes):
  def cycles(maze):
    free = np.argwhere(maze != WALL)
    edges = (np.abs(free[:, None] - free[None]).sum(-1) == 1).sum() // 2
    return edges - len(free) + 1

  assert all(cycles(maze) == 0 for maze in generate(dataclasses.replace(SMALL, loops=0.0))[0])
  assert np.mean([cycles(maze) for maze in mazes[0]]) > 1


def test_mazes_differ_under_the_symmetries_of_the_square(mazes):
  assert len({canonical(maze) for maze in mazes[0]}) == 80
  assert canonical(np.rot90(mazes[0][0])) == canonical(mazes[0][0].T) == canonical(mazes[0][0])


def test_a_group_is_the_eight_symmetric_copies(mazes):
  built = data.build(Data(kind="maze", maze=SMALL), batch_size=16, seed=0)
  assert (built.vocab_size, built.sequence_length, built.num_identifiers) == (6, 81, 1)
  assert built.train.groups == 60 and built.train.examples == 480
  inputs, labels = (tokens.reshape(-1, 9, 9) for tokens in built.train.encode(np.arange(480)))
  for group in range(60):
    copies = inputs[8 * group : 8 * group + 8]
    np.testing.assert_array_equal(copies[0], mazes[0][20 + group])
    assert {canonical(copy) for copy in copies} == {canonical(copies[0])}
    assert len({copy.tobytes() for copy in copies}) == 8
  for maze, label in zip(inputs, labels, strict=True):
    np.testing.assert_array_equal(maze, np.where(label == PATH, FLOOR, label))
  plain = data.build(Data(kind="maze", maze=dataclasses.replace(SMALL, dihedral=False)), batch_size=16, seed=0)
  assert plain.train.examples == 60 and plain.evaluation.examples == 20


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"side": 8}, "data.maze.side=8: expected an odd number"),
    ({"loops": 1.5}, "data.maze.loops=1.5"),
    ({"test_mazes": 0}, "data.maze.test_mazes=0"),
    ({"side": 5, "min_path": 12}, "data.maze.side=5, min_path=12: only 0 of 80"),
    ({"side": 5, "min_path": 3, "train_mazes": 5000}, "only .* of 5020 different mazes"),
  ],
)
def test_settings_out_of_range_name_the_field(change, message):
  with pytest.raises(ConfigError, match=message):
    data.build(Data(kind="maze", maze=dataclasses.replace(SMALL, **change)), batch_size=4, seed=0)
