"""Batches: the official packing, draw for draw; purity; random access; padding."""

import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jpmhc_jax import data
from jpmhc_jax.config.schema import ArcData, Data, SudokuData
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.data.batches import BatchPlan, Split

TINY = Data(
  epochs_per_interval=7,
  arc=ArcData(canvas=10, max_side=10, max_tasks=12, augmentations=8, evaluation_augmentations=8),
)
# A fresh interpreter with its own string-hash seed must print the same hash.
_OTHER_PROCESS = """
import hashlib
from jpmhc_jax import data
from jpmhc_jax.config.schema import ArcData, Data
arc = ArcData(canvas=10, max_side=10, max_tasks=12, augmentations=8, evaluation_augmentations=8)
batch = data.build(Data(epochs_per_interval=7, arc=arc), batch_size=32, seed=3).batch(41)
print(hashlib.sha256(b"".join(value.tobytes() for value in batch.values())).hexdigest())
"""


def _split(group_sizes: list[list[int]]) -> Split:
  """A split whose groups hold puzzles of the given numbers of examples; an example's only token is its number."""
  counts = [size for group in group_sizes for size in group]

  def encode(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tokens = (examples[:, None] % 250).astype(np.uint8)
    return tokens, tokens

  return Split(
    group_starts=np.cumsum([0, *map(len, group_sizes)]),
    puzzle_starts=np.cumsum([0, *counts]),
    identifiers=np.arange(len(counts), dtype=np.int32),
    encode=encode,
  )


def _packed_one_by_one(split: Split, batch_size: int, seed: int, epochs: int) -> list[list[tuple[int, int]]]:
  """Interval 1 as a plain loop: batches of (puzzle, number of its examples), the last partial one dropped."""
  rng = np.random.Generator(np.random.Philox(seed=seed + 1))
  order = np.concatenate([rng.permutation(split.groups) for _ in range(epochs)])
  batches, current, filled = [], [], 0
  for group in order:
    puzzle = int(rng.integers(split.group_starts[group], split.group_starts[group + 1]))
    size = int(split.puzzle_starts[puzzle + 1] - split.puzzle_starts[puzzle])
    current.append((puzzle, min(size, batch_size - filled)))
    filled += current[-1][1]
    if filled == batch_size:
      batches.append(current)
      current, filled = [], 0
  return batches


def _runs(puzzles: np.ndarray) -> list[tuple[int, int]]:
  """(puzzle, length) of each run of equal entries."""
  edges = np.flatnonzero(np.diff(puzzles)) + 1
  return [(int(run[0]), run.size) for run in np.split(puzzles, edges)]


@pytest.fixture(scope="module")
def arc():
  return data.build(TINY, batch_size=32, seed=3)


@pytest.mark.parametrize(
  "sizes",
  [[[3] * 4, [2] * 9, [5], [1] * 3, [4] * 2], [[3, 1], [2, 7, 1], [5], [1, 1, 12], [4]]],
  ids=["equal", "unequal"],
)
def test_packing_is_the_official_loop_draw_for_draw(sizes):
  split = _split(sizes)
  plan = BatchPlan(split, batch_size=11, seed=5, epochs=20)
  expected = _packed_one_by_one(split, 11, 5, 20)
  assert plan.interval_steps(1) == len(expected) > 15
  for step, batch in enumerate(expected):
    puzzles = split.puzzle_of(plan.examples(step))
    merged = _runs(np.repeat([p for p, _ in batch], [n for _, n in batch]))
    assert _runs(puzzles) == merged


def test_a_batch_holds_no_example_twice_per_visit_and_visits_each_group_once_an_epoch(arc):
  groups = np.searchsorted(arc.train.group_starts, arc.train.puzzle_of(arc.plan.examples(0)), side="right") - 1
  runs = _runs(groups)
  assert sum(length for _, length in runs) == 32
  assert len({group for group, _ in runs}) == len(runs)  # 32 rows are less than one pass over 24 groups
  examples = arc.plan.examples(0)
  assert np.unique(examples).size == 32
  for group, length in runs[:-1]:
    puzzle = arc.train.puzzle_of(examples)[groups == group][0]
    assert length == arc.train.puzzle_starts[puzzle + 1] - arc.train.puzzle_starts[puzzle]


def test_a_thousand_groups_of_single_examples_make_6510_steps_in_5000_epochs():
  plan = BatchPlan(_split([[1] * 3] * 1000), batch_size=768, seed=0, epochs=5000)
  assert plan.interval_steps(1) == 6_510


def test_a_batch_depends_on_seed_and_step_alone(arc):
  forward = [arc.batch(step) for step in range(60)]  # crosses several intervals
  assert arc.plan.interval_steps(1) < 30
  other = data.build(TINY, batch_size=32, seed=3)
  for step in (59, 0, 31, 30, 7):
    for name, value in other.batch(step).items():
      np.testing.assert_array_equal(value, forward[step][name])
  different = data.build(TINY, batch_size=32, seed=4).batch(0)
  assert (different["puzzle_identifiers"] != forward[0]["puzzle_identifiers"]).any()


def test_a_batch_is_the_same_in_another_process(arc):
  environment = dict(os.environ, PYTHONHASHSEED="123")
  command = [sys.executable, "-c", _OTHER_PROCESS]
  root = pathlib.Path(__file__).parents[2]
  run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, cwd=root)
  here = hashlib.sha256(b"".join(value.tobytes() for value in arc.batch(41).values())).hexdigest()
  assert run.stdout.strip() == here


@pytest.mark.parametrize("kind", ["arc", "sudoku", "maze"])
def test_rows_are_a_slice_of_the_global_batch(kind, arc):
  small = SudokuData(train_puzzles=40, test_puzzles=8, shuffles=5)
  built = arc if kind == "arc" else data.build(Data(kind=kind, sudoku=small), batch_size=32, seed=0)
  whole = built.batch(9)
  for rows in (slice(0, 8), slice(8, 32), slice(31, 32)):
    for name, value in built.batch(9, rows=rows).items():
      np.testing.assert_array_equal(value, whole[name][rows])
  assert {name: value.dtype for name, value in whole.items()} == dict.fromkeys(whole, np.dtype(np.int32))
  assert whole["inputs"].shape == whole["labels"].shape == (32, built.sequence_length)
  assert whole["inputs"].max() < built.vocab_size and whole["labels"].min() >= -100
  assert {name: (array.shape[1:], array.dtype) for name, array in whole.items()} == {
    name: (spec.shape, spec.dtype) for name, spec in built.element_spec.items()
  }
  assert (whole["labels"] != 0).all() and whole["puzzle_identifiers"].max() < built.num_identifiers


def test_evaluation_visits_every_example_once_in_order_and_pads_at_the_end(arc):
  batches = arc.evaluation_batches(50)
  total = arc.evaluation.examples
  assert len(batches) == -(-total // 50) and total % 50
  valid = np.concatenate([batch["valid"] for batch in batches])
  np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in batches])[valid], np.arange(total))
  np.testing.assert_array_equal(valid, np.arange(valid.size) < total)
  last = batches[-1]
  missing = ~last["valid"]
  assert (last["inputs"][missing] == 0).all() and (last["labels"][missing] == -100).all()
  assert (last["puzzle_identifiers"][missing] == 0).all() and (last["index"][missing] == -1).all()
  inputs, _ = arc.evaluation.encode(np.arange(total))
  np.testing.assert_array_equal(np.concatenate([batch["inputs"] for batch in batches])[valid], inputs)


def test_evaluation_can_be_cut_and_shared_among_hosts(arc):
  few = arc.evaluation_batches(20, max_examples=30)
  assert len(few) == 2 and few[1]["valid"].sum() == 10
  share = arc.evaluation_batches(20, max_examples=30, rows=slice(8, 20))[1]
  for name, value in few[1].items():
    np.testing.assert_array_equal(share[name], value[8:20])
  with pytest.raises(IndexError):
    few[2]
  with pytest.raises(ValueError, match="batch_size=0"):
    arc.evaluation_batches(0)


def test_a_plan_that_cannot_fill_a_batch_says_what_to_raise():
  split = _split([[2], [3, 1], [4]])
  with pytest.raises(ConfigError, match=r"data.epochs_per_interval=2: one plan holds 14 .* at least 3 "):
    BatchPlan(split, batch_size=15, seed=0, epochs=2)
  assert BatchPlan(split, batch_size=15, seed=0, epochs=3).examples(0).size == 15
  with pytest.raises(ConfigError, match="batch_size=0"):
    BatchPlan(split, batch_size=0, seed=0, epochs=2)
  with pytest.raises(ValueError, match="step=-1"):
    BatchPlan(split, batch_size=5, seed=0, epochs=3).examples(-1)


def test_the_description_counts_what_is_there(arc):
  facts = arc.describe()
  assert facts["tasks"] == 24 and facts["train_groups"] == 24 and facts["scored_tasks"] == 12
  assert facts["train_examples"] == arc.train.examples and facts["identifiers"] == len(arc.identifiers)
  assert facts["scored_test_inputs"] == sum(len(puzzle["test"]) for puzzle in arc.test_puzzles.values())


def test_an_unknown_kind_names_the_known_ones():
  with pytest.raises(ConfigError, match="data.kind='mazes'.*Did you mean 'maze'"):
    data.build(Data(kind="mazes"), batch_size=8, seed=0)
