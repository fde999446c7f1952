"""Text examples of a report: prompt, truth and what the model wrote on."""

from collections.abc import Mapping, Sequence
import os.path
from typing import Any

from jpmhc_jax.reporting import markup
from jpmhc_jax.reporting.markup import Markup, tag


def draw(example: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> Markup:
  """The three as preformatted text; of a continuation, what follows the first difference from the truth is marked."""
  truth = example.get("truth")
  figures = [_figure("Prompt", example.get("input")), _figure("Truth", truth)]
  for prediction in predictions:
    figures.append(_figure("Continuation, always the likeliest byte", prediction.get("text"), truth))
  if not predictions:
    figures.append(markup.note("No continuation was recorded."))
  return tag("div", *figures, class_="passages")


def _figure(label: str, text: Any, truth: Any = None) -> Markup:
  if not isinstance(text, str):
    return tag("figure", tag("figcaption", label), markup.note("Not recorded."))
  right = len(os.path.commonprefix([text, truth])) if isinstance(truth, str) else len(text)
  rest = tag("mark", text[right:]) if right < len(text) else None
  counted = tag("small", f"{right} of {len(truth)} characters before the first difference") if truth else None
  return tag("figure", tag("figcaption", label), tag("pre", text[:right], rest, tabindex="0"), counted)
