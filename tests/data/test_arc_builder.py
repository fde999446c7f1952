"""The lazy builder against the official arrays: counts, hashes of every token, identifiers; and its filters."""

import dataclasses
import gzip
import hashlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jpmhc_jax import data
from jpmhc_jax.config.schema import ArcData, Data
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.data.arc import build_splits, LegacyRandom
from jpmhc_jax.data.arc_grids import crop, grid_hash, parse_augmented_name, restore
from jpmhc_jax.data.arc_tasks import load_tasks

# dataset, augmentations -> identifiers, (groups, puzzles, examples) of train and evaluation, groups short of copies.
COUNTS = {
  ("arc1", 0): (801, (800, 800, 3081), (400, 400, 419), 0),
  ("arc1", 8): (7201, (800, 7200, 27729), (400, 3600, 3771), 0),
  ("arc1concept", 0): (961, (960, 960, 3988), (400, 400, 419), 0),
  ("arc1concept", 8): (8641, (960, 8640, 35892), (400, 3600, 3771), 0),
  ("arc2concept", 0): (1281, (1280, 1280, 5573), (120, 120, 172), 0),
  ("arc2concept", 8): (11520, (1280, 11519, 50153), (120, 1080, 1548), 1),
}
# The same with 1,000 copies, and the batches of the ten intervals of the published runs (their checkpoint names).
FULL_COUNTS = {
  "arc1concept": [876406, [960, 876405, 3633410], [400, 368150, 385815], 164],
  "arc1": [730515, [800, 730514, 2810923], [400, 368150, 385815], 140],
  "arc2concept": [1191730, [1280, 1191729, 5163277], [120, 118766, 170393], 175],
}
FULL_STEPS = {"arc1concept": 518_071, "arc2concept": 723_914}
# In an interpreter of its own: the run-time type checks of the tests slow millions of small calls tenfold.
_FULL_BUILD = """
import json, sys
from jpmhc_jax import data
from jpmhc_jax.config.schema import ArcData, Data
arc = ArcData(dataset=sys.argv[1], concept_folder=sys.argv[2] if sys.argv[1].endswith("concept") else "")
built = data.build(Data(arc=arc, epochs_per_interval=10_000), batch_size=768, seed=0)
splits = [[split.groups, split.puzzles, split.examples] for split in (built.train, built.evaluation)]
counts = [built.num_identifiers, *splits, built.notes["tasks_short_of_augmentations"]]
print(json.dumps([counts, [built.plan.interval_steps(k) for k in range(1, 11)]]))
"""
# First 16 hex digits of sha256: inputs, labels, puzzle identifiers, puzzle indices, group indices.
ARC1_CONCEPT_8 = (
  ("4ad10b6280762e73", "ab54c2d1ad17e94d", "4f6a94f559f3b397", "1e64648a1d28b053", "a0eb3b8a31f7e35a"),
  ("f87da0045339061f", "d0984473232a29f0", "ef810aefa3e507f4", "c2fea48ec6f5e23c", "7e60cea37544983f"),
)
TINY = ArcData(canvas=10, max_side=10, max_tasks=12, augmentations=8, evaluation_augmentations=8)


def _config(shared, dataset: str, augmentations: int) -> ArcData:
  folder = str(shared / "data/ConceptARC/corpus") if dataset.endswith("concept") else ""
  return ArcData(
    dataset=dataset, concept_folder=folder, augmentations=augmentations, evaluation_augmentations=augmentations
  )


def _counts(groups, names, train, evaluation, augmentations):
  splits = [(split.groups, split.puzzles, split.examples) for split in (train, evaluation)]
  return len(names), *splits, sum(len(group.copies) <= augmentations for group in groups)


def _sha(array) -> str:
  return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _arrays(split) -> dict[str, np.ndarray]:
  inputs, labels = split.encode(np.arange(split.examples))
  indices = {"puzzle_indices": split.puzzle_starts, "group_indices": split.group_starts}
  return {
    "inputs": inputs,
    "labels": labels,
    "puzzle_identifiers": split.identifiers,
    **{name: array.astype(np.int32) for name, array in indices.items()},
  }


def _build(config: ArcData):
  return build_splits(load_tasks(config), config)


@pytest.mark.parametrize(("dataset", "augmentations"), COUNTS)
def test_counts_are_those_of_the_official_builder(shared, dataset, augmentations):
  built = _build(_config(shared, dataset, augmentations))
  assert _counts(*built, augmentations) == COUNTS[dataset, augmentations]


@pytest.mark.slow
@pytest.mark.parametrize("dataset", FULL_COUNTS)
def test_full_counts_and_steps_are_those_of_the_official_runs(shared, dataset):
  command = [sys.executable, "-c", _FULL_BUILD, dataset, str(shared / "data/ConceptARC/corpus")]
  run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=pathlib.Path(__file__).parents[2])
  counts, steps = json.loads(run.stdout)
  assert counts == FULL_COUNTS[dataset]
  assert sum(steps) == FULL_STEPS.get(dataset, sum(steps))
  assert dataset != "arc1concept" or steps[0] == 51_807


@pytest.mark.slow
def test_every_token_of_arc1_with_concepts_is_that_of_the_official_builder(shared):
  _, names, *splits = _build(_config(shared, "arc1concept", 8))
  for split, expected in zip(splits, ARC1_CONCEPT_8, strict=True):
    assert tuple(_sha(array)[:16] for array in _arrays(split).values()) == expected
  assert names[:4] == ["<blank>", "8be77c9e", "8be77c9e|||t7|||0612397845", "8be77c9e|||t7|||0821593764"]
  assert [group.task.name for group in _build(ArcData(augmentations=0))[0][:3]] == ["8be77c9e", "b548a754", "1f0c79e5"]


def test_arrays_of_a_few_tasks_match_the_golden_build(shared):
  golden = json.loads(gzip.decompress((shared / "fixtures/arc_evaluator.json.gz").read_bytes()))
  config = ArcData(augmentations=8)
  chosen = {name: set(tasks) for name, tasks in golden["challenges"].items()}
  subsets = {name: [t for t in tasks if t.name in chosen[name]] for name, tasks in load_tasks(config).items()}
  _, names, train, evaluation = build_splits(subsets, config)
  assert names == golden["identifiers"]
  for split, key in ((train, "train"), (evaluation, "test")):
    for name, array in _arrays(split).items():
      expected = golden["builder_arrays"][f"{key}/all__{name}"]
      found = {"sha256": _sha(array), "shape": list(array.shape), "dtype": str(array.dtype)}
      assert found == {k: expected[k] for k in found}, f"{key}/{name}"


def test_test_puzzles_are_the_golden_tasks_with_their_answers(shared):
  golden = json.loads(gzip.decompress((shared / "fixtures/arc_evaluator.json.gz").read_bytes()))
  config = Data(arc=ArcData(augmentations=0))
  built = data.build(config, batch_size=8, seed=0)
  assert len(built.test_puzzles) == 400
  for task, puzzle in golden["test_puzzles"].items():
    assert built.test_puzzles[task] == {"train": puzzle["train"], "test": puzzle["test"]}


@pytest.mark.slow
def test_no_answer_of_an_evaluation_task_is_trained_on_but_its_demonstrations_are():
  config = dataclasses.replace(TINY, max_tasks=0, translate=False)
  groups, names, train, _ = _build(config)
  inputs, labels = train.encode(np.arange(train.examples))
  puzzles = train.puzzle_of(np.arange(train.examples))
  pairs_of: dict[str, set[tuple[str, str]]] = {}
  for i, puzzle in enumerate(puzzles):
    task, k, colours = parse_augmented_name(names[train.identifiers[puzzle]])
    pair = [grid_hash(restore(crop(tokens, 10), k, colours)) for tokens in (inputs[i], labels[i])]
    pairs_of.setdefault(task, set()).add((pair[0], pair[1]))
  scored = [group.task for group in groups if group.evaluation]
  assert len(scored) > 20
  for task in scored:
    hashed = [{(grid_hash(a), grid_hash(b)) for a, b in pairs} for pairs in (task.demonstrations, task.tests)]
    assert pairs_of[task.name] == hashed[0]
    assert not pairs_of[task.name] & hashed[1]


def test_copies_of_a_task_differ_from_it_and_from_each_other():
  groups, _, train, _ = _build(TINY)
  for g, group in enumerate(groups[:12]):
    puzzles = range(train.group_starts[g], train.group_starts[g + 1])
    unplaced = dataclasses.replace(train.encode, offsets=None)
    images = set()
    for puzzle in puzzles:
      inputs, labels = unplaced(np.arange(train.puzzle_starts[puzzle], train.puzzle_starts[puzzle + 1]))
      images.add(b"".join(sorted(a.tobytes() + b.tobytes() for a, b in zip(inputs, labels, strict=True))))
    assert len(images) == len(group.copies)


def test_a_small_canvas_holds_the_same_grids():
  small, large = (dataclasses.replace(TINY, canvas=canvas, translate=False) for canvas in (10, 30))
  (_, _, few, _), (_, _, many, _) = _build(small), _build(large)
  examples = np.arange(few.examples)
  for a, b in zip(few.encode(examples)[0], many.encode(examples)[0], strict=True):
    np.testing.assert_array_equal(crop(a, 10), crop(b, 30))


def test_translation_keeps_one_pair_of_each_puzzle_at_the_corner_and_moves_others():
  _, _, train, evaluation = _build(TINY)
  at_corner = (train.encode.offsets == 0).all(1)
  per_puzzle = np.add.reduceat(at_corner, train.puzzle_starts[:-1])
  assert per_puzzle.min() >= 1 and at_corner.mean() < 0.7
  assert evaluation.encode.offsets is None


def test_voting_copies_can_be_fewer_than_trained_ones():
  _, _, train, evaluation = _build(dataclasses.replace(TINY, evaluation_augmentations=2))
  assert np.diff(train.group_starts).max() == 9
  assert np.diff(evaluation.group_starts).max() == 3
  assert set(evaluation.identifiers) <= set(train.identifiers)


def test_validation_tasks_replace_the_test_set_and_leave_training():
  groups, names, train, evaluation = _build(dataclasses.replace(TINY, validation_tasks=3))
  scored = [group for group in groups if group.evaluation]
  assert [group.task.name for group in scored] == [group.task.name for group in groups[:3]]
  assert all(group.train == group.task.demonstrations for group in scored)
  untouched = groups[12:]
  assert len(untouched) == 12 and all(group.train == group.task.demonstrations for group in untouched)
  assert {names[i].split("|||")[0] for i in evaluation.identifiers} == {group.task.name for group in scored}
  with pytest.raises(ConfigError, match=r"validation_tasks=13: only 12 tasks"):
    _build(dataclasses.replace(TINY, validation_tasks=13))


def test_subsets_choose_what_is_trained_on():
  groups, names, train, evaluation = _build(dataclasses.replace(TINY, subsets="training"))
  assert [bool(group.train) for group in groups] == [True] * 12 + [False] * 12
  assert not set(evaluation.identifiers) & set(train.identifiers)
  np.testing.assert_array_equal(np.sort(np.r_[train.identifiers, evaluation.identifiers]), np.arange(1, len(names)))
  own = _build(dataclasses.replace(TINY, subsets="training", test_subset="training"))
  assert len(own[0]) == 12 and own[3].groups == 12


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"canvas": 31}, "data.arc.canvas=31"),
    ({"canvas": 9}, "data.arc.max_side=9"),
    ({"augmentations": -1}, "data.arc.augmentations=-1"),
    ({"min_side": 11}, "min_side=11 exceeds"),
    ({"min_side": 1, "max_side": 1}, "widen it"),
    ({"dataset": "arc1concept"}, "data.arc.concept_folder=''"),
    ({"folder": "/mine"}, "data.arc.folder='/mine' is not read with data.arc.dataset='arc1'; expected 'folder'"),
    ({"concept_folder": "/corpus"}, "data.arc.concept_folder='/corpus' is not read with data.arc.dataset='arc1'"),
    ({"dataset": "folder", "folder": "/nowhere"}, "data.arc.folder='/nowhere'"),
  ],
)
def test_settings_out_of_range_name_the_field(change, message):
  with pytest.raises(ConfigError, match=message):
    data.build(Data(arc=dataclasses.replace(TINY, **change)), batch_size=8, seed=0)


def test_the_legacy_stream_is_numpys():
  ours, theirs = LegacyRandom(42), np.random.RandomState(42)
  order = list(range(400))
  ours.shuffle(order)
  expected = list(range(400))
  theirs.shuffle(expected)
  assert order == expected
  for largest in [0, 1, 7, 22, 29, 1000] * 50:
    assert ours.at_most(largest) == theirs.randint(0, largest + 1)
    colours = bytearray(range(1, 10))
    ours.shuffle(colours)
    assert list(colours) == theirs.permutation(np.arange(1, 10, dtype=np.uint8)).tolist()


def test_the_fingerprint_changes_with_tasks_seed_and_copies():
  builds = [
    TINY,
    TINY,
    *(dataclasses.replace(TINY, **c) for c in ({"builder_seed": 1}, {"max_tasks": 11}, {"translate": False})),
  ]
  prints = [data.build(Data(arc=config), batch_size=8, seed=0).fingerprint() for config in builds]
  assert prints[0] == prints[1]
  assert len(set(prints)) == 4
