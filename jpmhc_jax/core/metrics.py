"""Which of the recorded metrics a run is judged by."""

from collections.abc import Collection

# The first of these that a run has recorded; the flag says whether larger is better.
HEADLINES = (
  ("pass@2", True),
  ("exact_accuracy", True),
  ("accuracy", True),
  ("bits_per_byte", False),
  ("perplexity", False),
  ("loss", False),
)


def headline(recorded: Collection[str], asked: str = "") -> tuple[str, bool] | None:
  """Name of the metric and whether larger is better; `asked` comes first where it was recorded. None for no metric."""
  if asked and asked in recorded:
    return asked, larger_is_better(asked)
  return next((choice for choice in HEADLINES if choice[0] in recorded), None)


def larger_is_better(name: str) -> bool:
  """True for everything but losses, perplexities and bits."""
  return not any(word in name for word in ("loss", "perplexity", "bits_per_byte"))
