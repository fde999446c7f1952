"""Examples in memory: batches of any arrays, their order, their padding, and what is refused."""

import re

import numpy as np
import pytest

from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.data import ArrayDataset, Dataset

X = np.arange(30, dtype=np.float64).reshape(10, 3)
ARRAYS = {
  "x": X,
  "label": np.arange(10),
  "kept": np.arange(10) % 2 == 0,
  "image": np.arange(40, dtype=np.uint8).reshape(10, 2, 2),
}


def _build(train=ARRAYS, held=None, seed=3, **changes):
  held = {name: array[:5] for name, array in train.items()} if held is None else held
  return ArrayDataset.of(train, held, **{"kind": "numbers", "batch_size": 4, "seed": seed} | changes)


def test_a_batch_holds_rows_of_every_array_that_belong_together():
  dataset = _build()
  assert isinstance(dataset, Dataset)
  specs = {name: (spec.shape, str(spec.dtype)) for name, spec in dataset.element_spec.items()}
  assert specs == {
    "x": ((3,), "float32"), "label": ((), "int32"), "kept": ((), "bool"), "image": ((2, 2), "uint8"),
  }  # fmt: skip
  for step in (0, 7):
    batch = dataset.batch(step)
    for name, array in ARRAYS.items():
      np.testing.assert_array_equal(batch[name], array[batch["label"]])
      assert (batch[name].dtype, batch[name].shape[1:]) == (specs[name][1], specs[name][0])


def test_an_epoch_shows_every_example_once_and_depends_on_the_seed_alone():
  dataset = _build(batch_size=5)
  seen = [dataset.batch(step)["label"] for step in range(4)]
  for epoch in (seen[:2], seen[2:]):
    assert sorted(np.concatenate(epoch)) == list(range(10))
  again = _build(batch_size=5)
  np.testing.assert_array_equal(again.batch(3)["label"], seen[3])
  np.testing.assert_array_equal(again.batch(3, np.array([1, 4]))["label"], seen[3][[1, 4]])
  np.testing.assert_array_equal(again.batch(3, slice(2, 5))["x"], X[seen[3][2:5]])
  assert any((_build(batch_size=5, seed=4).batch(step)["label"] != seen[step]).any() for step in range(4))


def test_the_last_evaluation_batch_is_padded_by_zeros():
  batches = _build().evaluation_batches(4)
  assert len(batches) == 2
  last = batches[1]
  assert last["valid"].tolist() == [True, False, False, False] and last["index"].tolist() == [4, -1, -1, -1]
  assert last["x"].tolist() == [[12, 13, 14], *[[0, 0, 0]] * 3] and last["kept"].tolist() == [True, False, False, False]
  assert {name: array.dtype for name, array in last.items()}["image"] == np.uint8


def test_the_fingerprint_is_that_of_names_dtypes_and_values():
  prints = [
    _build().fingerprint(),
    _build(train={**ARRAYS, "x": X + 1}).fingerprint(),
    _build(train={**ARRAYS, "kept": ARRAYS["kept"].astype(np.uint8)}).fingerprint(),
    _build(train={("y" if name == "x" else name): array for name, array in ARRAYS.items()}).fingerprint(),
    _build(kind="others").fingerprint(),
  ]
  assert len(set(prints)) == len(prints) and prints[0] == _build(seed=9).fingerprint()
  facts = _build(notes={"source": "here"}).describe()
  assert (facts["train_examples"], facts["evaluation_examples"], facts["x"], facts["source"]) == (
    10,
    5,
    "float32[3]",
    "here",
  )


@pytest.mark.parametrize(
  ("train", "held", "message"),
  [
    ({}, None, "train={}: expected arrays by name"),
    ({"x": np.array(["a"])}, None, "train['x'] holds <U1; expected numbers or truth values"),
    ({"valid": X}, None, "train['valid']: the evaluation has an array of that name"),
    ({"x": np.ones(())}, {}, "train['x'] has the shape (); expected (examples, …) with at least one example"),
    ({"x": X, "y": X[:9]}, None, "train: arrays of {'x': 10, 'y': 9} examples; expected as many in each"),
    ({"xs": X}, {"x": X}, "train['xs']: the other side has no such array. Did you mean 'x'?"),
    ({"x": X}, {"x": X[:, :2]}, "'x': rows of float32[3] to train on and of float32[2] held out"),
    ({"x": np.array([0, 2**40])}, None, "train['x'] holds 0 to 1099511627776; expected numbers of 32 bits"),
  ],
)
def test_arrays_that_do_not_fit_are_refused(train, held, message):
  with pytest.raises(DataError, match=re.escape(message)):
    _build(train, held)


def test_more_rows_in_a_batch_than_examples_in_a_plan_are_refused():
  with pytest.raises(ConfigError, match="one plan holds 20 examples, fewer than batch_size=32"):
    _build(batch_size=32, epochs=2)
