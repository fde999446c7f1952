"""jpmhc score: a submission to the ARC Prize, from here or elsewhere, checked and scored."""

import argparse
import dataclasses

from jpmhc_jax.core import arguments


@dataclasses.dataclass(frozen=True)
class Score:
  """The command `jpmhc score`."""

  name: str = "score"
  help: str = "Check a submission to the ARC Prize and score it as the prize does."
  takes_overrides: bool = False
  computes: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("submission", type=arguments.path, help="the file: {id: [{attempt_1, attempt_2}, …]}")
    parser.add_argument(
      "tasks", nargs="+", type=arguments.path, help="tasks with outputs: files, Kaggle's challenges, or folders of them"
    )

  def run(self, options: argparse.Namespace) -> int:
    """Prints a line for each task and the scores; 0."""
    from jpmhc_jax.core.errors import DataError
    from jpmhc_jax.core.reading import shown
    from jpmhc_jax.data import arc_files
    from jpmhc_jax.data.arc_tasks import parse_task
    from jpmhc_jax.evaluation.submission import check_submission, score_submission

    tasks = {raw[0]: parse_task(*raw).to_json() for path in options.tasks for raw in arc_files.read_tasks(path)}
    content = arc_files.read_file(options.submission)
    check_submission(content, tasks, shown(options.submission))
    scores = score_submission(content, tasks)
    if not scores:
      raise DataError(
        f"{shown(options.tasks[0])}: no output is known, so that nothing can be scored; add the solutions"
      )
    for task, judged in scores.items():
      print(f"{task:28s} {sum(judged)} of {len(judged)}")
    outputs = [solved for judged in scores.values() for solved in judged]
    print(f"{'outputs/pass@2':28s} {sum(outputs) / len(outputs):.6g}")
    print(f"{'strict/pass@2':28s} {sum(map(all, scores.values())) / len(scores):.6g}")
    return 0
