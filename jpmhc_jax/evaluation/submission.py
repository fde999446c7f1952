"""Submissions to the ARC Prize: what they must be, and how they are scored.

{id: [{"attempt_1": grid, "attempt_2": grid}, …one for each test input, in order]}
"""

from collections.abc import Mapping
from typing import Any

from jpmhc_jax.core.errors import DataError, nearest
from jpmhc_jax.data.arc_tasks import parse_grid

ATTEMPTS = ("attempt_1", "attempt_2")


def check_submission(content: Any, tasks: Mapping[str, Mapping], where: str = "submission") -> None:
  """Raises DataError, with task, test input and attempt, unless it answers every test input of exactly these tasks.

  An entry has attempt_1 and attempt_2, and may have more, each a grid of 1×1 to 30×30 colours.
  """
  if not isinstance(content, Mapping):
    raise DataError(f"{where}: a {type(content).__name__}; expected an object with an entry for each task id")
  if missing := [task for task in tasks if task not in content]:
    raise DataError(f"{where}: no entry for task {missing[0]!r} (and {len(missing) - 1} more); answer every task")
  for task, entries in content.items():
    if task not in tasks:
      raise DataError(f"{where}: task {task!r} is none of the {len(tasks)} tasks; remove it.{nearest(task, tasks)}")
    _check_entries(entries, len(tasks[task]["test"]), f"{where}: task {task!r}")


def _check_entries(entries: Any, tests: int, where: str) -> None:
  if not isinstance(entries, list) or len(entries) != tests:
    count = len(entries) if isinstance(entries, list) else f"a {type(entries).__name__}"
    raise DataError(f"{where}: {count} entries; expected a list of {tests}, one for each test input in order")
  for number, entry in enumerate(entries):
    if not isinstance(entry, Mapping) or not set(ATTEMPTS) <= set(entry):
      raise DataError(f"{where}, test input {number}: expected an object with {' and '.join(ATTEMPTS)}")
    for name, grid in entry.items():
      parse_grid(grid, f"{where}, test input {number}, {name}")


def score_submission(content: Mapping[str, list], tasks: Mapping[str, Mapping]) -> dict[str, list[bool]]:
  """Of every task with known outputs: whether one of two attempts is the output of each of its test inputs.

  The prize's score is the share of True over all test inputs; a task counts as solved in ARC-AGI where all are.
  """
  scores = {}
  for task, puzzle in tasks.items():
    judged = [
      any(entry[name] == pair["output"] for name in ATTEMPTS)
      for entry, pair in zip(content[task], puzzle["test"], strict=True)
      if pair.get("output") is not None
    ]
    if judged:
      scores[task] = judged
  return scores
