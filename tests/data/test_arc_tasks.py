"""Bad task files are refused with file, task and pair named; good folders load."""

import dataclasses
import json
import os

import numpy as np
import pytest

from jpmhc_jax.config.schema import ArcData, Data
from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.data.arc import build_arc
from jpmhc_jax.data.arc_files import remarks
from jpmhc_jax.data.arc_tasks import load_tasks

GOOD = {"train": [{"input": [[0, 1], [2, 3]], "output": [[1]]}], "test": [{"input": [[5]], "output": [[6, 7]]}]}


def _write(root, task, subset="training", name="aaaa0001"):
  folder = root / subset
  folder.mkdir(exist_ok=True)
  (folder / f"{name}.json").write_text(task if isinstance(task, str) else json.dumps(task))


def _load(root):
  return load_tasks(ArcData(dataset="folder", folder=str(root)))


def _with(grid, part="train", side="input"):
  return GOOD | {part: [GOOD[part][0] | {side: grid}]}


def test_a_folder_in_the_public_format_loads_in_order_of_ids(tmp_path):
  for name in ("b", "a"):
    _write(tmp_path, GOOD, name=name)
  _write(tmp_path, {"test": GOOD["test"], "train": GOOD["train"]}, "evaluation", "c")
  tasks = _load(tmp_path)
  assert [[task.name for task in subset] for subset in tasks.values()] == [["a", "b"], ["c"]]
  first = tasks["training"][0]
  np.testing.assert_array_equal(first.demonstrations[0][0], [[0, 1], [2, 3]])
  assert first.to_json() == GOOD
  assert [len(pair[0]) for pair in first.joined(True)] == [2, 1]
  assert [len(pair[0]) for pair in tasks["evaluation"][0].joined(True)] == [1, 2]  # in the order of the file's keys


@pytest.mark.parametrize(
  ("task", "message"),
  [
    (_with([[1, 2], [3]]), r"training.aaaa0001\.json: task 'aaaa0001', train pair 0, input: ragged"),
    (_with([[1, 10]], "test", "output"), r"task 'aaaa0001', test pair 0, output: cell \(0, 1\) is 10"),
    (_with([[1, -1]]), "cell .* is -1"),
    (_with([[1, 2.5]]), "cell .* is 2.5"),
    (_with([[True]]), "cell .* is True"),
    (_with([["3"]]), "cell .* is '3'"),
    (_with([[0] * 31]), "1x31 cells; ARC grids have at most 30x30"),
    (_with([[0]] * 31), "31x1 cells"),
    (_with([]), "non-empty"),
    (_with([[]]), "non-empty"),
    (_with(3), "non-empty list of non-empty rows"),
    (GOOD | {"train": [{"input": [[1]]}]}, "train pair 0: the output is missing; a demonstration needs one"),
    (GOOD | {"test": [{"output": [[1]]}]}, "test pair 0: expected an object"),
    (GOOD | {"train": []}, "'train' must be a list with at least one pair"),
    ({"train": GOOD["train"]}, "'test' must be a list"),
    ([1], "expected an object with 'train' and 'test', found list"),
    ("{", r"aaaa0001\.json: not readable as JSON"),
    ("[" * 10_000, r"aaaa0001\.json: JSON nested 10,000 levels deep; expected at most 64"),
    (_with([["[" * 9 + "3"]]), "cell .* is '"),
  ],
)
def test_malformed_tasks_name_file_task_and_pair(tmp_path, task, message):
  _write(tmp_path, task)
  _write(tmp_path, GOOD, "evaluation", "bbbb0002")
  with pytest.raises(DataError, match=message):
    _load(tmp_path)


def _kaggle(root, subset, challenges, solutions=None):
  (root / f"arc-agi_{subset}_challenges.json").write_text(json.dumps(challenges))
  if solutions is not None:
    (root / f"arc-agi_{subset}_solutions.json").write_text(json.dumps(solutions))


ASKED = {"train": GOOD["train"], "test": [{"input": [[5]]}, {"input": [[8]]}]}


def test_challenges_and_solutions_of_kaggle_are_one_task_each_in_the_order_of_the_file(tmp_path):
  answers = [[[6, 7]], [[1], [2]]]
  _kaggle(tmp_path, "training", {"b": ASKED, "a": {"test": ASKED["test"], "train": GOOD["train"]}}, {"b": answers})
  _write(tmp_path, GOOD, "evaluation", "c")
  tasks = _load(tmp_path)
  assert [[task.name for task in subset] for subset in tasks.values()] == [["b", "a"], ["c"]]
  first, second = tasks["training"]
  assert [pair["output"] for pair in first.to_json()["test"]] == answers
  assert [list(pair) for pair in second.to_json()["test"]] == [["input"], ["input"]]
  assert (len(first.solved), len(second.solved), first.tests_first, second.tests_first) == (2, 0, False, True)
  assert second.longest_sides() == [1, 1, 2, 1]  # of what is there


@pytest.mark.parametrize(
  ("challenges", "solutions", "message"),
  [
    ({"a": ASKED}, {"a": [[[1]]]}, "training_solutions.json: task 'a': solutions: 1; expected a list of 2 grids"),
    ({"a": ASKED}, {"a": {}}, "task 'a': solutions: a dict; expected a list of 2 grids"),
    ({"a": ASKED}, {"a": [[[1]], [[10]]]}, "task 'a', test pair 1, output: cell .0, 0. is 10"),
    ({"a": ASKED}, [], "training_solutions.json: expected an object with an entry for each task id"),
    (GOOD, None, "training_challenges.json: expected an object with an entry for each task id"),
    ({"a": {"train": [3], "test": [4]}}, {"a": [[[1]]]}, "task 'a', train pair 0: expected an object"),
  ],
)
def test_solutions_that_do_not_fit_are_named(tmp_path, challenges, solutions, message):
  _kaggle(tmp_path, "training", challenges, solutions)
  _write(tmp_path, GOOD, "evaluation", "c")
  with pytest.raises(DataError, match=message):
    _load(tmp_path)


def test_a_subset_comes_from_one_place(tmp_path):
  _kaggle(tmp_path, "training", {"a": GOOD})
  _write(tmp_path, GOOD)
  with pytest.raises(
    DataError, match="arc-agi_training_challenges.json and training hold the training tasks; keep one"
  ):
    _load(tmp_path)


def test_capitals_and_subfolders_are_taken_and_hidden_files_left_out_with_a_remark(tmp_path):
  _write(tmp_path, GOOD, "evaluation", "c")
  (tmp_path / "training" / "more").mkdir(parents=True)
  (tmp_path / "training" / "more" / "B.JSON").write_text(json.dumps(GOOD))
  for name in ("._aaaa0001.json", ".hidden.json", "._aaaa0001.JSON"):
    (tmp_path / "training" / name).write_bytes(b"\0\5\x16\7")
  (tmp_path / "__MACOSX").mkdir()
  (tmp_path / "__MACOSX" / "d.json").write_bytes(b"\0")
  _write(tmp_path, GOOD)
  assert [task.name for task in _load(tmp_path)["training"]] == ["B", "aaaa0001"]
  (remark,) = remarks(tmp_path)
  assert remark == (
    "hidden files are left out: 4 (__MACOSX/d.json, training/._aaaa0001.JSON, training/._aaaa0001.json, …)"
  )


def test_the_tasks_of_a_contest_are_learned_from_their_demonstrations_and_answered(tmp_path):
  _write(tmp_path, GOOD)
  _write(tmp_path, GOOD, "evaluation", "c")
  _kaggle(tmp_path, "test", {"t": ASKED})
  arc = ArcData(
    dataset="folder", folder=str(tmp_path), test_subset="test", canvas=3, augmentations=0, evaluation_augmentations=0
  )
  built = build_arc(Data(arc=arc), batch_size=2, seed=0)
  assert built.describe().items() >= {
    "train_examples": 2 + 2 + 1, "evaluation_examples": 2, "scored_test_inputs": 0, "test_inputs_without_solution": 2,
  }.items()  # fmt: skip
  assert built.test_puzzles == {"t": ASKED}
  (batch,) = built.evaluation_batches(2)
  assert (batch["labels"] == -100).all() and batch["inputs"].any(axis=1).all()
  with pytest.raises(ConfigError, match="test_subset='test': data.arc.dataset='arc1' has training and evaluation"):
    load_tasks(ArcData(test_subset="test"))
  _kaggle(tmp_path, "test", {"c": ASKED})
  with pytest.raises(DataError, match="'c' is already taken by .*leave a subset out by data.arc.subsets=training"):
    load_tasks(arc)
  assert load_tasks(dataclasses.replace(arc, subsets="training")).keys() == {"training", "test"}


def test_an_id_may_occur_once_and_without_the_separator(tmp_path):
  _write(tmp_path, GOOD)
  _write(tmp_path, GOOD, "evaluation")
  with pytest.raises(DataError, match="evaluation.*'aaaa0001' is already taken by .*training"):
    _load(tmp_path)
  _write(tmp_path, GOOD, "training", "a|b")
  with pytest.raises(DataError, match="must not contain"):
    _load(tmp_path)


@pytest.mark.parametrize("name", [b"e9\n2", b"e\r", b"tab\t", b"caf\xe9", "e\u2028".encode(), b"\x7f"])
def test_an_id_that_no_list_of_names_can_keep_is_refused_with_its_file(tmp_path, name):
  _write(tmp_path, GOOD, "evaluation")
  _write(tmp_path, GOOD, name=os.fsdecode(name))
  escaped = ascii(os.fsdecode(name))[1:-1].replace("\\", r"\\")
  with pytest.raises(
    DataError, match=rf"training/{escaped}\.json': task .* UTF-8 without line breaks.*rename"
  ) as refused:
    _load(tmp_path)
  assert str(refused.value).isprintable()


def test_odd_but_whole_ids_are_taken(tmp_path):
  names = ["a b", "ünï", "日本", "🙂", "x,y=z", "%", "<b>"]
  _write(tmp_path, GOOD, "evaluation")
  for name in names:
    _write(tmp_path, GOOD, name=name)
  assert [task.name for task in _load(tmp_path)["training"]] == sorted(names)


def test_missing_parts_of_a_data_set_are_named(tmp_path):
  _write(tmp_path, GOOD)
  with pytest.raises(DataError, match=r"evaluation: no \*.json task found"):
    _load(tmp_path)
  with pytest.raises(DataError, match=r"ExtractObjects10\.json: no such file"):
    load_tasks(ArcData(dataset="arc1concept", concept_folder=str(tmp_path)))


def test_the_built_in_sets_have_the_published_sizes(shared):
  corpus = str(shared / "data/ConceptARC/corpus")
  one = load_tasks(ArcData(dataset="arc1concept", concept_folder=corpus))
  two = load_tasks(ArcData(dataset="arc2"))

  def sizes(tasks):
    return len(tasks), sum(len(task.demonstrations) for task in tasks), sum(len(task.tests) for task in tasks)

  assert {name: sizes(tasks) for name, tasks in one.items()} == {
    "training": (400, 1302, 416),
    "evaluation": (400, 1363, 419),
    "concept": (160, 427, 480),
  }
  assert {name: sizes(tasks) for name, tasks in two.items()} == {
    "training": (1000, 3232, 1076),
    "evaluation": (120, 358, 172),
  }
