"""The shipped recipe learns: sudoku:tiny reaches its promise on unseen puzzles, and its streams separate."""

import json

import pytest

from jpmhc_jax.main import main


@pytest.mark.slow
def test_sudoku_tiny_solves_unseen_puzzles_and_its_streams_separate(tmp_path):
  workdir = tmp_path / "sudoku"
  assert main(["train", "--config=sudoku:tiny", f"--workdir={workdir}", "--config.mesh.data=8"]) == 0
  metrics = json.loads((workdir / "evaluation" / "step_1000.json").read_text())["metrics"]
  assert metrics["exact_accuracy"] > 0.95
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  energy = [line["mixer/block0.features/difference_energy"] for line in lines if "mixer/block0.features/cosine" in line]
  assert energy[-1] > 0.05
  distance = [line["mixer/block0.features/distance_to_set"] for line in lines if "mixer/block0.features/cosine" in line]
  assert max(distance) < 1e-5
