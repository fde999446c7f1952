"""The page of a classifier: its confusion matrix, accuracy by class and calibration are those of the kept answers."""

import json

import numpy as np
from page_parser import read
import pytest

from jpmhc_jax.reporting.classes import Answers


def _run(folder, truth, answer, confidence):
  (folder / "evaluation").mkdir(parents=True)
  columns = {"truth": truth, "answer": answer, "confidence": confidence}
  content = {"step": 3, "metrics": {"accuracy": 0.5}, "examples": [], "answers": columns}
  (folder / "evaluation" / "step_3.json").write_text(json.dumps(content))
  return folder


def test_a_classifier_shows_what_it_takes_for_what(tmp_path):
  run = _run(tmp_path / "a", [0, 0, 0, 2, 2], [0, 0, 1, 2, 0], [0.95, 0.85, 0.55, 0.65, 0.15])
  page = read(run, out=tmp_path / "report.html")
  assert page.values("Confusion matrix") == {"0": ["2", "1", "0"], "1": ["0", "0", "0"], "2": ["1", "0", "1"]}
  by_class = {float(k): float(v[0]) for k, v in page.values("Accuracy by class: sampled values").items()}
  assert by_class == {0.0: pytest.approx(2 / 3), 2.0: 0.5}  # class 1 has no example
  measured = {row[0][1]: row[1][1] for row in page.table("Calibration: sampled values")[1:] if row[1][1]}
  assert measured == {"0.15": "0.0", "0.55": "0.0", "0.65": "1.0", "0.85": "1.0", "0.95": "1.0"}
  assert "Calibration error 25 points" in page.text  # (0.05 + 0.15 + 0.55 + 0.35 + 0.15) / 5


def test_answers_that_come_true_as_often_as_they_say_are_calibrated():
  rng = np.random.default_rng(0)
  confidence = rng.uniform(size=200_000)
  right = rng.uniform(size=confidence.size) < confidence
  bins, error = Answers(np.where(right, 1, 0), np.ones(confidence.size, np.int64), confidence).calibration()
  assert error < 0.01 and bins[:, 0].sum() == confidence.size
  assert Answers(np.zeros(4, np.int64), np.ones(4, np.int64), np.ones(4)).calibration()[1] == 1.0


def test_of_many_classes_those_mixed_up_most_are_listed(tmp_path):
  truth = np.repeat(np.arange(30), 10)
  answer = np.where(np.arange(300) % 10 < 3, 29 - truth, truth)
  answer[:10] = 7
  run = _run(tmp_path / "a", truth.tolist(), answer.tolist(), [0.5] * 300)
  rows = read(run, out=tmp_path / "report.html").table("Classes that are mixed up most")[1:]
  assert [cell[1] or cell[0] for cell in rows[0]] == ["0", "7", "10", "1.0"] and len(rows) == 20
  assert all(row[2][1] == "3" for row in rows[1:])


def test_classes_are_called_by_the_names_that_the_data_set_has(tmp_path):
  run = _run(tmp_path / "a", [0, 0, 1], [0, 1, 1], [0.9, 0.8, 0.7])
  (run / "environment.json").write_text(json.dumps({"data": {"classes": ["cat", "dog"]}}))
  page = read(run, out=tmp_path / "report.html")
  assert page.values("Confusion matrix") == {"cat": ["1", "1"], "dog": ["0", "1"]}


@pytest.mark.parametrize("answer", [[0], [0, "x"], [0, -1], None])
def test_answers_that_are_no_classes_are_left_out(tmp_path, answer):
  page = read(_run(tmp_path / "a", [0, 1], answer, [0.5, 0.5]), out=tmp_path / "report.html")
  assert not any("Confusion" in table["caption"] for table in page.tables)
