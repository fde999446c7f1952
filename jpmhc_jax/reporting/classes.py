"""Classification: confusion matrix, accuracy by class and calibration of the last evaluation that kept its answers."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from jaxtyping import Float, Int
import numpy as np

from jpmhc_jax.reporting import charts, markup
from jpmhc_jax.reporting.charts import Chart
from jpmhc_jax.reporting.glossary import HIGHER
from jpmhc_jax.reporting.lines import Line
from jpmhc_jax.reporting.markup import Cell, join, Markup, number, tag
from jpmhc_jax.reporting.tables import Table
from jpmhc_jax.reporting.workdir import Run

BINS = 10
MATRIX = 20  # classes up to which the whole confusion matrix is shown
MIXED_UP = 20  # pairs of classes that are listed otherwise


@dataclasses.dataclass(frozen=True)
class Answers:
  """Class, answer and its probability of every held-out example."""

  truth: Int[np.ndarray, " examples"]
  answer: Int[np.ndarray, " examples"]
  confidence: Float[np.ndarray, " examples"]

  @property
  def classes(self) -> int:
    """One more than the largest class that occurs."""
    return 1 + int(max(self.truth.max(), self.answer.max()))

  def confusion(self) -> Int[np.ndarray, "classes classes"]:
    """How many examples of class i were answered by class j."""
    matrix = np.zeros((self.classes, self.classes), np.int64)
    np.add.at(matrix, (self.truth, self.answer), 1)
    return matrix

  def calibration(self) -> tuple[Float[np.ndarray, "bins 3"], float]:
    """(examples, mean confidence, accuracy) of each of `BINS` equal bins of confidence, and the calibration error.

    The error is Σ_b n_b/n · |accuracy_b − confidence_b| (Naeini et al. 2015). An empty bin is NaN.
    """
    bins = np.minimum((self.confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS).astype(np.float64)
    some = np.where(counts > 0, counts, np.nan)
    confidence = np.bincount(bins, self.confidence, BINS) / some
    accuracy = np.bincount(bins, self.truth == self.answer, BINS) / some
    error = float(np.nansum(counts * np.abs(accuracy - confidence)) / counts.sum())
    return np.stack([counts, confidence, accuracy], axis=1), error


def section(run: Run) -> Markup | None:
  """What the classifier takes for what, and whether its probabilities mean what they say; None for other tasks."""
  evaluation = next((e for e in reversed(run.evaluations) if e.answers), None)
  answers = _read(evaluation.answers) if evaluation else None
  if evaluation is None or answers is None:
    return None
  words = f"{markup.format_number(len(answers.truth))} held-out examples of the evaluation at step {evaluation.step}."
  drawn = charts.gallery([by_class(answers), calibration(answers)])
  return join([tag("p", words, class_="quiet"), _confusion(answers, _labels(run, answers.classes)), drawn])


def _labels(run: Run, classes: int) -> Sequence[str | int]:
  """Names of the classes where the data set has some, else their numbers."""
  names = run.environment.get("data.classes")
  if isinstance(names, list) and len(names) >= classes and all(isinstance(name, str) for name in names):
    return names[:classes]
  return range(classes)


def by_class(answers: Answers) -> Chart:
  """Accuracy of each class that occurs among the held-out examples."""
  matrix = answers.confusion()
  counts = matrix.sum(1)
  known = np.flatnonzero(counts)
  line = Line("accuracy", known.astype(np.float64), np.diag(matrix)[known] / counts[known])
  return Chart("Accuracy by class", [line], "class", "Of the examples of one class.", HIGHER, percent=True, dots=True)


def calibration(answers: Answers) -> Chart:
  """Accuracy over confidence, beside what a calibrated model would show."""
  bins, error = answers.calibration()
  known = bins[bins[:, 0] > 0]
  lines = [
    Line("measured", known[:, 1], known[:, 2], 0),
    Line("calibrated", np.array([0.0, 1.0]), np.array([0.0, 1.0]), 7, dash=1),
  ]
  words = f"Below the broken line the model is too sure. Calibration error {100 * error:.2g} points."
  return Chart("Calibration", lines, "probability that the model gives its answer", words, percent=True, linear_y=True)


def _confusion(answers: Answers, labels: Sequence[str | int]) -> Markup:
  matrix = answers.confusion()
  if answers.classes > MATRIX:
    return _mixed_up(matrix, labels)
  shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  rows = [
    [Cell(labels[i]), *(_heat(int(matrix[i, j]), float(shares[i, j]), i == j) for j in range(len(matrix)))]
    for i in range(len(matrix))
  ]
  caption = "Confusion matrix: rows are the true classes, columns the answers"
  return Table(caption, ["class", *labels], rows).html(class_="confusion")


def _heat(count: int, share: float, right: bool) -> Cell:
  shown = tag("span", count or "·", title=f"{100 * share:.1f} % of the class")
  return Cell(shown, count, "hit" if right else "miss", style=f"--share:{share * (0.35 if right else 1):.3f}")


def _mixed_up(matrix: Int[np.ndarray, "classes classes"], labels: Sequence[str | int]) -> Markup:
  """The most frequent wrong answers, for more classes than a matrix can show."""
  wrong = matrix - np.diag(np.diag(matrix))
  order = np.argsort(-wrong, axis=None, kind="stable")[:MIXED_UP]
  pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
  counts = matrix.sum(1)
  rows = [
    [Cell(labels[i]), Cell(labels[j]), number(int(wrong[i, j])), number(float(wrong[i, j] / counts[i]), percent=True)]
    for i, j in pairs
  ]
  return Table("Classes that are mixed up most", ["class", "answer", "examples", "share of the class"], rows).html()


def _read(columns: Mapping[str, Any]) -> Answers | None:
  """None for answers that are no classes with probabilities, all of one length."""
  try:
    truth, answer = (np.asarray(columns[name], np.int64) for name in ("truth", "answer"))
    confidence = np.asarray(columns["confidence"], np.float64)
  except (KeyError, TypeError, ValueError, OverflowError):
    return None
  listed = truth.ndim == 1 and truth.size and truth.shape == answer.shape == confidence.shape
  whole = listed and min(truth.min(), answer.min()) >= 0 and np.isfinite(confidence).all()
  return Answers(truth, answer, np.clip(confidence, 0, 1)) if whole else None
