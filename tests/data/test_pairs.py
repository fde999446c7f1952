"""Pairs of latents from files: split, matched by ids, standardised; what is no such file is named."""

import numpy as np
import pytest

from jpmhc_jax import data
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import DataError


def test_pairs_are_split_matched_by_ids_and_left_unpaired(tmp_path):
  rng = np.random.default_rng(1)
  ids, latents = np.arange(60), rng.normal(size=(60, 3)).astype(np.float32)
  order = rng.permutation(60)
  np.savez(tmp_path / "a.npz", latents=latents, ids=ids, labels=ids % 3 + 1)
  np.savez(tmp_path / "b.npz", latents=2 * latents[order] + 1, ids=ids[order])
  fields = schema.PairData(source=str(tmp_path / "a.npz"), target=str(tmp_path / "b.npz"), known=0.5)
  dataset = data.build(schema.Data(kind="pairs", pairs=fields), batch_size=8, seed=0)
  held = dataset.evaluation_batches(12)[0]
  np.testing.assert_allclose(held["x"], held["y"], atol=1e-5)  # both are standardised
  train = dataset.read(dataset.train, np.arange(48))
  x, y, known = train["x"], train["y"], train["paired"] == 1
  assert known.sum() == 24 and set(train["labels"]) == {0, 1, 2}
  np.testing.assert_allclose(x[known], y[known], atol=1e-5)
  apart = np.abs(x[~known] - y[~known]).max(1)
  assert (apart > 1e-3).mean() > 0.8
  np.testing.assert_allclose(np.sort(x[~known], 0), np.sort(y[~known], 0), atol=1e-5)  # the same cloud
  assert dataset.describe()["known_pairs"] == 24


def test_without_a_file_two_random_networks_see_the_digits():
  dataset = data.build(schema.Data(kind="pairs"), batch_size=64, seed=0)
  assert dataset.batch(0)["x"].shape == (64, 48) and dataset.batch(0)["y"].shape == (64, 64)
  assert dataset.coverage().held_out == 359


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"x": np.full((9, 2), np.nan), "y": np.ones((9, 2))}, "^data.pairs.source: 'x' has values that are not finite"),
    ({"x": np.ones((1, 2)), "y": np.ones((1, 2))}, r"^data.pairs.source: 'x' is float32 of shape \(1, 2\)"),
    ({"x": np.ones((9, 2)), "y": np.ones((8, 2))}, "^data.pairs.source: x has 9 rows and y 8"),
    ({"x": np.full((9, 2), 1e300), "y": np.ones((9, 2))}, "^data.pairs.source: 'x' has values that are not finite"),
    ({"x": np.ones((9, 2))}, "^data.pairs.source: the file holds x; expected an array 'y'"),
    ({"latents": np.ones((9, 2))}, "^data.pairs.source=.*: holds the latents of one side; expected data.pairs.target"),
    ({"x": np.ones((9, 2)), "y": np.ones((9, 2))}, "^data.pairs: all rows of x to train on are equal"),
  ],
)
def test_bad_latents_are_named(arrays, message, tmp_path):
  np.savez(tmp_path / "bad.npz", **arrays)
  fields = schema.PairData(source=str(tmp_path / "bad.npz"))
  with pytest.raises(DataError, match=message):
    data.build(schema.Data(kind="pairs", pairs=fields), batch_size=2, seed=0)


def test_what_is_no_file_of_latents_is_named(tmp_path):
  np.save(tmp_path / "lone.npy", np.ones((9, 2)))
  for path, words in ((tmp_path / "lone.npy", "is no .npz file"), (tmp_path, ".* is a folder; expected a regular")):
    with pytest.raises(DataError, match=f"^data.pairs.source='{path}': {words}"):
      data.build(schema.Data(kind="pairs", pairs=schema.PairData(source=str(path))), batch_size=2, seed=0)
