"""Groups of cells: a partition, with cuts where points differ most."""

import jax
import numpy as np

from jpmhc_jax.evaluation.spectra.cells import Cells, groups


def test_groups_are_a_partition_and_an_exception_has_one_to_itself():
  points = np.random.default_rng(0).normal(size=(60, 5))
  points[17] += 50

  def within(count):
    return sum(np.sum((points[part] - points[part].mean(axis=0)) ** 2) for part in groups(points, count))

  parts = groups(points, 7)
  assert len(parts) == 7
  assert sorted(np.concatenate(parts).tolist()) == list(range(60))
  assert [part.tolist() for part in parts if 17 in part] == [[17]]
  assert [len(part) for part in parts] == sorted((len(part) for part in parts), reverse=True)
  assert within(1) > within(2) > within(7) > within(60) == 0


def test_a_cut_is_the_one_that_leaves_the_least():
  points = np.array([0.0, 0.2, 0.1, 5.0, 5.3, 9.0])[:, None]
  assert [sorted(part.tolist()) for part in groups(points, 2)] == [[0, 1, 2], [3, 4, 5]]


def test_equal_points_are_one_group():
  assert [part.tolist() for part in groups(np.ones((4, 2)), 3)] == [[0, 1, 2, 3]]


def test_drawn_cells_are_different_and_no_more_than_there_are():
  cells = Cells.drawn(3, 4, 100, jax.random.key(0))
  pairs = set(zip(np.asarray(cells.tokens).tolist(), np.asarray(cells.features).tolist(), strict=True))
  assert pairs == {(token, feature) for token in range(3) for feature in range(4)}
  assert len(np.asarray(Cells.drawn(3, 4, 5, jax.random.key(0)).tokens)) == 5
