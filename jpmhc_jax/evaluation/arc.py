"""ARC voting: many augmented predictions of one test input become a ranked list of distinct answers.

Every augmented copy of a test input votes: its prediction is cropped to a grid, the augmentation is undone, and the
grid counts for the input it came from. Answers are ranked by (votes, mean sigmoid(q_halt)), both descending; a tie
keeps the order in which the answers were first seen. This is the rule of the official TRM evaluator.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Integer, UInt8
import numpy as np

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.data.arc_grids import COLOURS, crop, parse_augmented_name, restore

PASS_KS = (1, 2, 5, 10, 100, 1000)
STATE_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One distinct answer to one test input: its grid, how many copies voted for it, mean sigmoid(q_halt) of those."""

  grid: UInt8[np.ndarray, "rows cols"]
  votes: int
  q: float


@dataclasses.dataclass
class _Ballot:
  """Votes on one test input. `answers` keeps first-seen order, which decides exact ties."""

  answers: dict[bytes, list] = dataclasses.field(default_factory=dict)  # grid key -> [votes, sum of sigmoid(q)]
  plain: bytes | None = None  # the latest answer given to the un-augmented input

  def vote(self, answer: bytes, votes: int, q_sum: float) -> None:
    tally = self.answers.setdefault(answer, [0, 0.0])
    tally[0] += votes
    tally[1] += q_sum

  def total(self) -> int:
    return sum(votes for votes, _ in self.answers.values())

  def ranked(self) -> list[tuple[bytes, int, float]]:
    means = [(answer, votes, q_sum / votes) for answer, (votes, q_sum) in self.answers.items()]
    return sorted(means, key=lambda item: item[1:], reverse=True)  # sorted is stable in reverse, too


class _Outcome(NamedTuple):
  """Of a test input: the truth's place among the answers, among those that are no empty grid, and what voted."""

  rank: float
  attempt: float
  plain: bool
  votes: int


def _share(solved: Iterable[bool]) -> float:
  each = list(solved)
  return sum(each) / len(each)


class ArcVotes:
  """Votes of one evaluation, or of several pooled ones.

  identifiers: puzzle names by id, index 0 blank; augmented names are `<task>|||t<dihedral>|||<ten digits>`.
  canvas: side of the square token canvas (30 in the official layout).

  A grid is stored once per test input it answers, as its bytes, so memory grows with the number of distinct answers and
  not with the number of votes. Pooling over evaluations: keep one object and call `add` for each evaluation.
  """

  def __init__(self, identifiers: Sequence[str], canvas: int = 30):
    self._identifiers = identifiers
    self._canvas = canvas
    self._tasks: dict[str, dict[bytes, _Ballot]] = {}

  def add(
    self,
    puzzle_identifiers: Integer[np.ndarray, " batch"],
    inputs: Integer[np.ndarray, "batch tokens"],
    predictions: Integer[np.ndarray, "batch tokens"],
    q_halt_logits: Float[np.ndarray, " batch"],
    valid: Bool[np.ndarray, " batch"] | None = None,
  ) -> None:
    """Counts one batch. Rows that are not `valid`, and rows of the blank identifier 0, are padding and do not vote.

    An empty prediction (no colour in the corner) is an answer like any other. A q that is not a number counts as 0.
    Raises DataError when an identifier has no name.
    """
    keep = puzzle_identifiers != 0 if valid is None else valid & (puzzle_identifiers != 0)
    q = np.nan_to_num(_sigmoid(q_halt_logits.astype(np.float64)), nan=0.0)
    for row in np.flatnonzero(keep):
      task, turn, permutation = self._augmentation(int(puzzle_identifiers[row]))
      question, answer = (_key(restore(crop(t[row], self._canvas), turn, permutation)) for t in (inputs, predictions))
      ballot = self._tasks.setdefault(task, {}).setdefault(question, _Ballot())
      ballot.vote(answer, 1, float(q[row]))
      if turn == 0 and np.array_equal(permutation, np.arange(COLOURS)):
        ballot.plain = answer

  def merge(self, other: "ArcVotes") -> None:
    """Adds the votes of `other`, as if they had been cast after this object's own (q sums to float64 rounding)."""
    for task, ballots in other._tasks.items():
      for question, ballot in ballots.items():
        mine = self._tasks.setdefault(task, {}).setdefault(question, _Ballot())
        for answer, (votes, q_sum) in ballot.answers.items():
          mine.vote(answer, votes, q_sum)
        mine.plain = ballot.plain or mine.plain

  def ranking(self, task: str, test_input: Any) -> list[Candidate]:
    """Distinct answers to one test input (a grid), best first; empty when no copy of it was evaluated."""
    ballot = self._ballot(task, test_input)
    return [Candidate(_grid(answer), votes, q) for answer, votes, q in ballot.ranked()] if ballot else []

  def results(self, test_puzzles: Mapping[str, Mapping], ks: Sequence[int] = PASS_KS) -> dict[str, float]:
    """pass@k over all tasks, each in [0, 1]; of tests with an output, see `with_outputs`.

    `pass@k`: mean over tasks of (test inputs whose truth is among the first k answers) / (test inputs).
    `strict/pass@k`: share of tasks with every test input so solved (the rule of ARC-AGI).
    `outputs/pass@k`: share of all test inputs so solved; with k = 2 what the ARC Prize scores on Kaggle.
    `unaugmented/pass@1`: as pass@1, from the one prediction on the un-augmented input.
    `augmentations_voted`: mean number of votes on a test input.
    A test input that was never evaluated counts as not solved (see `voted_on`). An empty answer takes up a place among
    the first k of `pass@k`, as in the official evaluator, and none in `strict/pass@k` and `outputs/pass@k`, as in a
    submission. Raises DataError when there is no test task.
    """
    if not test_puzzles:
      raise DataError("test_puzzles is empty: pass@k needs a test task; check data.arc.test_subset and its filters")
    tasks = [self._outcomes(task, puzzle) for task, puzzle in test_puzzles.items()]
    outputs = [outcome for outcomes in tasks for outcome in outcomes]
    means = {f"pass@{k}": sum(_share(o.rank <= k for o in task) for task in tasks) / len(tasks) for k in ks}
    means |= {f"strict/pass@{k}": _share(all(o.attempt <= k for o in task) for task in tasks) for k in ks}
    means |= {f"outputs/pass@{k}": _share(o.attempt <= k for o in outputs) for k in ks}
    means["unaugmented/pass@1"] = sum(_share(o.plain for o in task) for task in tasks) / len(tasks)
    return means | {"augmentations_voted": float(np.mean([o.votes for o in outputs]))}

  def by_task(self, test_puzzles: Mapping[str, Mapping]) -> dict[str, dict[str, float]]:
    """Of every task: its number of test inputs, the shares that one and two attempts solve, mean votes on an input."""
    tasks = {task: self._outcomes(task, puzzle) for task, puzzle in test_puzzles.items()}
    return {
      task: {"tests": float(len(outcomes))}
      | {f"outputs/pass@{k}": _share(o.attempt <= k for o in outcomes) for k in (1, 2)}
      | {"augmentations_voted": float(np.mean([o.votes for o in outcomes]))}
      for task, outcomes in tasks.items()
    }

  def voted_on(self, test_puzzles: Mapping[str, Mapping]) -> dict[str, dict]:
    """The test inputs that any copy voted on, in the same layout; tasks without one are left out."""
    tests = {
      task: [pair for pair in puzzle["test"] if self._ballot(task, pair["input"])]
      for task, puzzle in test_puzzles.items()
    }
    return {task: {**test_puzzles[task], "test": pairs} for task, pairs in tests.items() if pairs}

  def submission(
    self, test_puzzles: Mapping[str, Mapping], fill_missing: bool = True, attempts: int = 2
  ) -> dict[str, list[dict]]:
    """The best answers per test input in Kaggle layout: {task: [{"attempt_1": grid, "attempt_2": grid}, ...]}.

    Every attempt is a grid of 1×1 to 30×30: the next best answer takes the place of an empty one, the best one fills
    the attempts that are left, and a test input without any gets [[0]], because entries are matched by position. With
    fill_missing=False empty answers are attempts, [], and a test input that was never evaluated gets no entry: this is
    what the official evaluator writes.
    """
    entries: dict[str, list[dict]] = {}
    for task, puzzle in test_puzzles.items():
      entries[task] = []
      for pair in puzzle["test"]:
        answers = (candidate.grid for candidate in self.ranking(task, pair["input"]))
        grids = [grid.tolist() for grid in answers if grid.size or not fill_missing][:attempts]
        if not grids and fill_missing:
          grids = [[[0]]]
        if grids:
          grids += grids[:1] * (attempts - len(grids))
          entries[task].append({f"attempt_{number}": grid for number, grid in enumerate(grids, start=1)})
    return entries

  def examples(self, test_puzzles: Mapping[str, Mapping], limit: int = 60, answers: int = 3) -> list[dict]:
    """Test inputs with demonstrations, truth and best answers, as evaluation/step_N.json holds them (plain lists)."""
    pairs = ((task, i) for task, puzzle in test_puzzles.items() for i in range(len(puzzle["test"])))
    return [self._example(task, i, test_puzzles[task], answers) for task, i in itertools.islice(pairs, limit)]

  def to_state(self) -> dict[str, Any]:
    """The votes as plain JSON values; grids are digit rows joined by '/'. `from_state` restores them bit for bit."""
    tasks = {
      task: [[_text(question), _text(ballot.plain), list(_lines(ballot))] for question, ballot in ballots.items()]
      for task, ballots in self._tasks.items()
    }
    return {"format": STATE_FORMAT, "canvas": self._canvas, "tasks": tasks}

  @classmethod
  def from_state(cls, identifiers: Sequence[str], state: Mapping[str, Any]) -> "ArcVotes":
    """Rebuilds pooled votes. Raises DataError for a state that another version wrote."""
    if state.get("format") != STATE_FORMAT:
      raise DataError(
        f"ARC votes: format={state.get('format')!r}, expected {STATE_FORMAT}; delete the pooled votes to start anew"
      )
    votes = cls(identifiers, state["canvas"])
    for task, ballots in state["tasks"].items():
      for question, plain, answers in ballots:
        ballot = _Ballot({_from_text(text): [count, q_sum] for text, count, q_sum in answers})
        ballot.plain = None if plain is None else _from_text(plain)
        votes._tasks.setdefault(task, {})[_from_text(question)] = ballot
    return votes

  def _augmentation(self, identifier: int) -> tuple[str, int, np.ndarray]:
    if not 0 < identifier < len(self._identifiers):
      raise DataError(
        f"puzzle identifier {identifier} has no name: expected 1..{len(self._identifiers) - 1}; "
        "the predictions and the identifier map come from different data builds"
      )
    return parse_augmented_name(self._identifiers[identifier])

  def _ballot(self, task: str, test_input: Any) -> _Ballot | None:
    return self._tasks.get(task, {}).get(_key(test_input))

  def _outcomes(self, task: str, puzzle: Mapping) -> list[_Outcome]:
    outcomes = []
    for pair in puzzle["test"]:
      ballot, truth = self._ballot(task, pair["input"]), _key(pair["output"])
      plain, votes = ballot is not None and ballot.plain == truth, ballot.total() if ballot else 0
      outcomes.append(_Outcome(_rank(ballot, truth), _rank(ballot, truth, attempts=True), plain, votes))
    return outcomes

  def _example(self, task: str, test: int, puzzle: Mapping, answers: int) -> dict:
    pair = puzzle["test"][test]
    truth = pair.get("output")
    rank = np.inf if truth is None else _rank(self._ballot(task, pair["input"]), _key(truth))
    best = self.ranking(task, pair["input"])[:answers]
    example = {
      "kind": "arc",
      "task": task,
      "test": test,
      "demonstrations": list(puzzle.get("train", ())),
      "input": np.asarray(pair["input"]).tolist(),
      "predictions": [{"grid": c.grid.tolist(), "votes": c.votes, "q": c.q} for c in best],
    }
    if truth is None:
      return example
    return example | {"truth": np.asarray(truth).tolist(), "solved_at": int(rank) if np.isfinite(rank) else None}


def with_outputs(test_puzzles: Mapping[str, Mapping]) -> dict[str, dict]:
  """The test inputs whose output is known, in the same layout; tasks without one are left out."""
  tests = {
    task: [pair for pair in puzzle["test"] if pair.get("output") is not None] for task, puzzle in test_puzzles.items()
  }
  return {task: {**test_puzzles[task], "test": pairs} for task, pairs in tests.items() if pairs}


def _rank(ballot: _Ballot | None, truth: bytes, attempts: bool = False) -> float:
  """1 for the best answer; infinity when the truth is not among the answers. attempts: empty answers are skipped."""
  if ballot is None or truth not in ballot.answers:
    return np.inf
  ranked = [answer for answer, _, _ in ballot.ranked() if answer == truth or not attempts or _grid(answer).size]
  return 1.0 + ranked.index(truth)


def _sigmoid(x: Float[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
  small = np.exp(-np.abs(x))  # never overflows
  return np.where(x >= 0, 1.0, small) / (1.0 + small)


# A grid's key is its height, its width and its cells: equal keys mean equal grids, as equal hashes do upstream.
def _key(grid: Any) -> bytes:
  cells = np.asarray(grid, dtype=np.uint8)
  rows, cols = cells.shape if cells.ndim == 2 else (0, 0)
  return bytes((rows, cols)) + cells.tobytes()


def _grid(key: bytes) -> UInt8[np.ndarray, "rows cols"]:
  return np.frombuffer(key, dtype=np.uint8, offset=2).reshape(key[0], key[1])


def _text(key: bytes | None) -> str | None:
  return None if key is None else "/".join("".join(map(str, row)) for row in _grid(key))


def _from_text(text: str) -> bytes:
  return _key([[int(cell) for cell in row] for row in text.split("/")] if text else [])


def _lines(ballot: _Ballot) -> Iterator[list]:
  for answer, (votes, q_sum) in ballot.answers.items():
    yield [_text(answer), votes, q_sum]
