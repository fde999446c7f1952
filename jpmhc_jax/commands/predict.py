"""jpmhc predict: what a trained run answers to tasks and grids of one's own."""

import argparse
from collections.abc import Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Any

from jpmhc_jax.core import arguments


@dataclasses.dataclass(frozen=True)
class Predict:
  """The command `jpmhc predict`."""

  name: str = "predict"
  help: str = "Answer ARC tasks, Sudokus or mazes of your own with a trained run."
  takes_overrides: bool = False
  computes: bool = True
  joins: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
      "inputs",
      nargs="+",
      help="ARC: a task, Kaggle's *_challenges.json or a folder of them, in the public JSON format; else a text of "
      "grids with an empty line between two, or a JSON list of them; - reads standard input",
    )
    parser.add_argument("--workdir", required=True, type=arguments.stored, help="folder of a run of `jpmhc train`")
    parser.add_argument(
      "--step", type=arguments.whole(0), default=None, help="step of the checkpoint; the latest by default"
    )
    parser.add_argument("--attempts", type=arguments.whole(1, 1000), default=2, help="ARC: answers to each test input")
    parser.add_argument(
      "--fit",
      type=arguments.whole(0),
      default=None,
      metavar="STEPS",
      help="ARC: steps of fitting to the demonstrations; by default 200 where the puzzle table has no row of a task, 0 "
      "for none",
    )
    parser.add_argument(
      "--fitted", choices=("rows", "all"), default="rows", help="what the fit moves: the tasks' rows alone, or all"
    )
    parser.add_argument(
      "--votes", type=arguments.whole(1), default=None, help="ARC: copies of a test input that vote; those of the run"
    )
    parser.add_argument("--out", type=arguments.path, help="file for the answers: the prize's submission, or JSON rows")
    parser.add_argument("--page", type=arguments.path, help="file for an HTML page of all grids")
    parser.add_argument("--show", type=arguments.whole(0), default=8, help="grids of so many inputs on the terminal")

  def run(self, options: argparse.Namespace) -> int:
    """Prints the answers and writes what is asked for; 0."""
    from jpmhc_jax import runs

    run = runs.load(options.workdir, options.step)
    answered = _arc(run, options) if run.config.data.kind == "arc" else _grids(run, options)
    _show(answered, options)
    return 0


@dataclasses.dataclass(frozen=True)
class _Answered:
  """content: of the file of answers. words: above the page. lines: below the table."""

  examples: Sequence[dict[str, Any]]
  content: Any
  words: str
  lines: Sequence[str]


def _arc(run: Any, options: argparse.Namespace) -> _Answered:
  from jpmhc_jax.data.arc_tasks import parse_task
  from jpmhc_jax.training.progress import Waiting

  tasks = [parse_task(*raw) for name in options.inputs for raw in _raw_tasks(name)]
  asked = {"steps": options.fit, "everything": options.fitted == "all", "votes": options.votes}
  with Waiting() as waiting:
    answers = run.answer(tasks, tick=waiting.tick, **asked)
  what = "all parameters" if options.fitted == "all" else "rows of the puzzle table"
  fitted = f"{what} fitted in {answers.steps} steps; " if answers.steps else ""
  each = answers.seconds / len(tasks)
  words = f"{len(tasks)} task{'s' * (len(tasks) > 1)}, {len(answers.new)} new to the run; {fitted}{each:.3g} s a task."
  scores = [f"{name:28s} {value:.4g}" for name, value in answers.scores().items() if name in _SCORES]
  return _Answered(answers.examples(options.attempts), answers.submission(options.attempts), words, [words, *scores])


_SCORES = ("pass@1", "pass@2", "strict/pass@2", "outputs/pass@2")


def _raw_tasks(name: str) -> list[Any]:
  from jpmhc_jax.core.errors import DataError
  from jpmhc_jax.data import arc_files

  if name != "-":
    return arc_files.read_tasks(arguments.path(name))
  try:
    raw = json.loads(sys.stdin.read())
  except (ValueError, RecursionError) as error:
    raise DataError(
      f"standard input: not readable as JSON ({error}); expected a task in the public ARC format"
    ) from error
  source = pathlib.Path("standard input")
  return (
    [(task, each, source) for task, each in raw.items()] if arc_files.is_collection(raw) else [("task", raw, source)]
  )


def _grids(run: Any, options: argparse.Namespace) -> _Answered:
  from jpmhc_jax.runs.prediction import read_grids

  side = getattr(run.dataset, "side", 0)  # `solve` refuses data that is no grid
  solved = run.solve([grid for name in options.inputs for grid in read_grids(_text(name), side)])
  examples = [each.example | {"task": f"grid {number}"} for number, each in enumerate(solved, start=1)]
  content = [{"input": each.given, "answer": each.answer} for each in solved]
  words = f"{len(solved)} grid{'s' * (len(solved) > 1)} of {side}×{side}."
  return _Answered(examples, content, words, [words])


def _text(name: str) -> str:
  from jpmhc_jax.core.errors import DataError
  from jpmhc_jax.core.reading import read_bytes, shown

  if name == "-":
    return sys.stdin.read()
  path = arguments.path(name)
  try:
    return read_bytes(path).decode()
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f"{shown(path)}: cannot be read as text ({error}); expected rows of a grid") from error


def _show(answered: _Answered, options: argparse.Namespace) -> None:
  """The terminal, the file of answers and the page."""
  from jpmhc_jax.core.files import make_folder, storing, to_json, write_atomically
  from jpmhc_jax.reporting.grids import print_examples
  from jpmhc_jax.reporting.report import write_answers
  from jpmhc_jax.training.progress import output

  print_examples(output(), answered.examples, options.show)
  for line in answered.lines:
    print(line)
  if options.out:
    with storing(str(options.out)):
      make_folder(options.out.parent)
      write_atomically(options.out, to_json(answered.content) + "\n")
    print(f"written: {options.out}")
  if options.page:
    write_answers(f"Answers of {options.workdir.name}", answered.words, answered.examples, options.page)
    print(f"written: {options.page}")
