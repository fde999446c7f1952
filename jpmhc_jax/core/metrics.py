"""Which of the recorded metrics a run is judged by."""

from collections.abc import Collection, Mapping
from typing import Any

# The first of these that a run has recorded; the flag says whether larger is better.
HEADLINES = (
  ("pass@2", True),
  ("exact_accuracy", True),
  ("accuracy", True),
  ("bits_per_byte", False),
  ("perplexity", False),
  ("loss", False),
)


def headline(
  recorded: Collection[str], asked: str = "", main: tuple[str, bool] | None = None
) -> tuple[str, bool] | None:
  """Name of the metric and whether larger is better; None for no metric.

  `asked` comes first where it was recorded, then `main`, what the run's task is judged by.
  """
  if asked and asked in recorded:
    return main if main and main[0] == asked else (asked, larger_is_better(asked))
  if main and main[0] in recorded:
    return main
  return next((choice for choice in HEADLINES if choice[0] in recorded), None)


def larger_is_better(name: str) -> bool:
  """True for everything but losses, errors, perplexities and bits."""
  return not any(word in name for word in ("loss", "error", "perplexity", "bits_per_byte"))


def judged_by(evaluation: Mapping[str, Any]) -> tuple[str, bool] | None:
  """The main metric that an evaluation/step_N.json names, and whether larger is better; None where it names none."""
  judge = evaluation.get("judged_by")
  if isinstance(judge, Mapping) and isinstance(judge.get("metric"), str):
    return judge["metric"], bool(judge.get("higher_is_better", True))
  return None
