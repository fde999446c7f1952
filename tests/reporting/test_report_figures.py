"""Figures and tables for a paper: a file a chart, equal for equal runs; exact values in tables; plot draws a metric."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from jpmhc_jax.core.errors import UserError
from jpmhc_jax.main import main
from jpmhc_jax.reporting import figures
from jpmhc_jax.reporting.markup import Cell, number
from jpmhc_jax.reporting.tables import Table
from jpmhc_jax.reporting.workdir import read_runs


def test_figures_of_a_comparison_are_files_for_a_paper(tmp_path, capsys):
  folders = [_run(tmp_path / f"{mixer}-{seed}", mixer, seed) for mixer in ("cayley", "iso") for seed in (0, 1)]
  out = tmp_path / "paper"
  assert main(["figures", *map(str, folders), "--format=svg", f"--out={out}", "--width=3.5"]) == 0
  names = {path.name for path in out.iterdir()}
  assert names == {
    "last-accuracy.svg", "accuracy.svg", "loss.svg", "train-loss.svg", "runs.csv", "runs.tex", "settings.csv",
    "settings.tex",
  }  # fmt: skip
  assert f"figures: {len(names)} files in {out}" in capsys.readouterr().out
  drawing = ElementTree.parse(out / "train-loss.svg").getroot()
  assert float(drawing.get("width").removesuffix("pt")) == pytest.approx(72 * 3.5)
  words = "".join(drawing.itertext())
  assert "cayley (n=2)" in words and "step" in words and "train/loss" in words
  again = tmp_path / "again"
  assert main(["figures", *map(str, folders), "--format=svg", f"--out={again}", "--width=3.5"]) == 0
  assert all((again / name).read_bytes() == (out / name).read_bytes() for name in names)
  rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
  assert [(row["run"], float(row["last accuracy"])) for row in rows] == [
    (f"{mixer}-{seed}", accuracy(mixer, seed, 60)) for mixer in ("cayley", "iso") for seed in (1, 0)
  ]
  settings = list(csv.DictReader((out / "settings.csv").read_text().splitlines()))
  mean = np.mean([accuracy("cayley", seed, 60) for seed in (0, 1)])
  assert float(settings[0]["last accuracy"]) == pytest.approx(mean, rel=1e-12)


def accuracy(mixer, seed, step):
  return {"cayley": 0.8, "iso": 0.5}[mixer] + 0.01 * seed + step / 1000


def _run(folder, mixer, seed):
  (folder / "evaluation").mkdir(parents=True)
  lines = [{"step": k, "train/loss": 1 / k + seed, "mixer/block0/singular_value_0": 1.0} for k in range(1, 61)]
  (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  (folder / "config.json").write_text(json.dumps({"steps": 60, "seed": seed, "connection": {"mixer": mixer}}))
  for step in (30, 60):
    content = {"step": step, "metrics": {"accuracy": accuracy(mixer, seed, step), "loss": 1.0 + step + seed}}
    (folder / "evaluation" / f"step_{step}.json").write_text(json.dumps(content))
  return folder


def test_one_run_gives_a_pdf_with_embedded_fonts(tmp_path):
  (run,) = read_runs([_run(tmp_path / "a", "iso", 0)])
  files = figures.write_figures([run], tmp_path / "out")
  assert {path.name for path in files} == {"loss.pdf", "accuracy.pdf", "runs.csv", "runs.tex"}
  content = (tmp_path / "out" / "loss.pdf").read_bytes()
  assert content.startswith(b"%PDF") and b"/FontFile2" in content and b"/Type3" not in content
  with pytest.raises(UserError, match="nothing was recorded in .*none"):
    figures.write_figures(read_runs([tmp_path / "none"]), tmp_path / "out")


def test_plot_draws_one_metric_of_runs_and_names_what_there_is(tmp_path):
  runs = read_runs([_run(tmp_path / name, "iso", seed) for seed, name in enumerate("ab")])
  axes = figures.plot(runs, "loss")
  lines = {line.get_label(): line for line in axes.lines}
  assert list(lines) == ["a, train", "a, evaluation", "b, train", "b, evaluation"]
  np.testing.assert_array_equal(lines["b, train"].get_xdata(), np.arange(1, 61))
  np.testing.assert_allclose(lines["b, train"].get_ydata(), 1 / np.arange(1, 61) + 1)
  assert axes.get_ylabel() == "Loss" and figures.plot(runs[:1], "loss", axes) is axes
  with pytest.raises(UserError, match="'lss': no such scalar was recorded; .*Did you mean 'loss'?"):
    figures.plot(runs, "lss")


def test_a_table_is_escaped_for_latex_and_exact_in_csv():
  rows = [[Cell("a_b & 50%"), number(0.123456789, percent=True)], [Cell("c, d"), number(None)]]
  table = Table("± of x^2", ["set", "value"], rows)
  assert table.csv() == 'set,value\na_b & 50%,0.123456789\n"c, d",\n'
  latex = table.latex()
  assert r"a\_b \& 50\% & 12.35\,\% \\" in latex and r"\caption{$\pm$ of x\textasciicircum{}2}" in latex
  assert r"\begin{tabular}{lr}" in latex and not re.search(r"(?<!\\)[%&_](?=[a-z0-9])", latex)
