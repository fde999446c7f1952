"""The examples learn: a few steps of each in a small size, and, slow, what their docstrings promise of the whole."""

import ast
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest

import jpmhc_jax as jp
from jpmhc_jax.main import main

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(EXAMPLES.rglob("*.py"))
TUTORIALS = sorted((EXAMPLES.parent / "docs" / "tutorials").glob("*.py"))
PROJECT = sorted((EXAMPLES.parent / "jpmhc_jax" / "commands" / "project").glob("*.py"))
SMALL = {
  "equinox_mlp": {"STREAMS": 2, "WIDTH": 8, "DEPTH": 1},
  "linen": {"STREAMS": 2, "WIDTH": 8, "DEPTH": 1},
  "matrix_on_manifold": {},
  "nnx_transformer": {"STREAMS": 2, "WIDTH": 8, "HEADS": 2, "BLOCKS": 1, "WINDOW": 16},
  "own_mixer": {"DEPTH": 2},
  "plain_functions": {"DEPTH": 2},
}
# The mean of the last twenty losses, at most; the share of right answers, at least.
PROMISED = {
  "equinox_mlp": (0.001, None),
  "linen": (0.1, 0.94),
  "matrix_on_manifold": (0.715, None),
  "nnx_transformer": (3.5, None),
  "own_mixer": (0.05, None),
  "plain_functions": (0.15, 0.95),
}
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where it is not called as what is imported


def _load(name, **constants):
  """An example's module of its own, with constants of another size."""
  spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  assert vars(module).keys() >= constants.keys()
  vars(module).update(constants)
  return module


def _losses(result):
  """The losses; some examples return a second number beside them."""
  return result[0] if isinstance(result, tuple) else result


def _imports(path):
  """(module, name or None) of every import."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from ((node.module, alias.name) for alias in node.names)


def _chain(node):
  """['jp', 'optim', 'cayley_adam'] of `jp.optim.cayley_adam`; empty for what does not begin with a name."""
  if isinstance(node, ast.Attribute):
    chain = _chain(node.value)
    return [*chain, node.attr] if chain else []
  return [node.id] if isinstance(node, ast.Name) else []


@pytest.mark.parametrize("name", SMALL)
def test_the_loss_falls_within_a_few_steps(name):
  losses = _losses(_load(name, **SMALL[name]).main(steps=8))
  assert len(losses) == 8 and np.all(np.isfinite(losses))
  assert np.mean(losses[-2:]) < np.mean(losses[:2])


def _train(config, workdir, *fields):
  """The losses of `jpmhc train`, one a step."""
  shown = ("logging.every=1", "logging.tensorboard=False")
  argv = ["train", f"--config={config}", f"--workdir={workdir}", *(f"--config.{field}" for field in (*fields, *shown))]
  assert main(argv) == 0
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.slow
def test_the_task_of_ones_own_learns_from_the_data_of_ones_own(tmp_path):
  small = ("steps=12", "model.layers=1", "evaluation.every=12", "model.regression.delta=0.5")
  losses = _train(EXAMPLES / "own_task" / "config.py", tmp_path, *small)
  assert len(losses) == 12 and np.mean(losses[-3:]) < np.mean(losses[:3])
  evaluation = json.loads((tmp_path / "evaluation" / "step_12.json").read_text())
  assert evaluation["metrics"]["examples"] == 89 and evaluation["metrics"]["squared_error"] < 3


@pytest.mark.parametrize(
  ("name", "steps", "metric", "bound"),
  [
    ("regression", 60, "absolute_error", 0.8),
    pytest.param("classification", 60, "accuracy", 0.6, marks=pytest.mark.slow),
    pytest.param("sequence", 100, "exact", 0.3, marks=pytest.mark.slow),
  ],
)
def test_data_task_and_config_in_one_short_file(name, steps, metric, bound, tmp_path):
  """Float inputs, parameters without metadata, and a metric of its own that ranks checkpoints and heads the report."""
  path = EXAMPLES / f"{name}.py"
  assert len([line for line in path.read_text().splitlines() if line.strip()]) <= 40
  losses = _train(path, tmp_path, f"steps={steps}", f"evaluation.every={steps}")
  assert np.mean(losses[-5:]) < np.mean(losses[:5])
  evaluation = jp.load(tmp_path).evaluations[-1]
  value, (judged, larger) = evaluation.metrics[metric], evaluation.judged_by
  assert judged == metric and (value > bound if larger else value < bound)
  assert json.loads((tmp_path / "checkpoints" / "scores.json").read_text())["metric"] == metric
  assert f"Best {metric}" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_the_promise_of_the_task_of_ones_own_is_kept(tmp_path):
  _train(EXAMPLES / "own_task" / "config.py", tmp_path)
  evaluation = json.loads((tmp_path / "evaluation" / "step_100.json").read_text())
  assert evaluation["metrics"]["squared_error"] < 0.5


@pytest.mark.slow
def test_a_recipe_trains_with_the_mixer_of_ones_own(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(EXAMPLES)
  losses = _train(
    "sudoku:tiny", tmp_path, "plugins=own_mixer", "connection.mixer=leak", "steps=40",
    "model.width=16", "model.heads=2", "model.recursion.outer=1", "model.recursion.inner=1",
    "evaluation.every=40", "optimizer.warmup_steps=5",
  )  # fmt: skip
  assert np.mean(losses[-5:]) < np.mean(losses[:5])
  assert json.loads((tmp_path / "config.json").read_text())["plugins"] == ["own_mixer"]


def test_the_page_lists_every_example():
  page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
  cells = (row.split("|")[1] for row in page.splitlines() if row.startswith("| `"))
  rows = {name.rstrip("/") for cell in cells for name in re.findall("`([^`]+)`", cell)}
  assert rows == {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py" or (path / "config.py").exists()}


# In a process without the flags that make tests compile quickly: what is promised is what a user's compilation gives.
_WHOLE = """
import json, runpy, sys
result = runpy.run_path(sys.argv[1])["main"]()
losses, *right = result if isinstance(result, tuple) else (result,)
print(json.dumps([[float(loss) for loss in losses], *map(float, right[:1])]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISED)
def test_the_whole_example_keeps_its_promise(name):
  environment = {
    key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
  }
  command = [sys.executable, "-c", _WHOLE, str(EXAMPLES / f"{name}.py")]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  losses, *right = json.loads(done.stdout.splitlines()[-1])
  most, least = PROMISED[name]
  assert np.mean(losses[-20:]) < most
  assert least is None or right[0] >= least


def test_the_components_are_those_of_the_closed_form():
  losses, closed = _load("matrix_on_manifold").main()
  np.testing.assert_allclose(losses[-1], closed, atol=1e-5)


@pytest.mark.parametrize("path", [*FILES, *PROJECT, *TUTORIALS], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_example_is_short_and_uses_public_names_only(path):
  text = path.read_text(encoding="utf-8")
  assert len(text.splitlines()) <= 90 and ast.get_docstring(ast.parse(text))
  ours = [(module, name) for module, name in _imports(path) if module.split(".")[0] == "jpmhc_jax"]
  assert ours in ([], [("jpmhc_jax", None)]), f"{path}: `import jpmhc_jax as jp` and nothing else of the package"
  for node in ast.walk(ast.parse(text)):
    chain = _chain(node)
    if chain[:1] == ["jp"]:
      place = jp
      for name in chain[1:]:
        if not hasattr(place, "__all__"):  # a class, whose attributes are its own
          break
        assert name in place.__all__, f"{path}: {'.'.join(chain)} is no public name"
        place = getattr(place, name)


@pytest.mark.slow
def test_the_extra_installs_what_the_examples_import():
  project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
  extras = project["optional-dependencies"]
  requirements = [
    *project["dependencies"],
    *(need for name in ("examples", "train", "vision") for need in extras[name]),
  ]
  installed = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
  folders = {path.name for path in EXAMPLES.iterdir()}
  for path in FILES:
    roots = {module.split(".")[0] for module, _ in _imports(path)} - set(sys.stdlib_module_names) - {"jpmhc_jax"}
    missing = {DISTRIBUTIONS.get(root, root) for root in roots - folders} - installed
    assert not missing, f"{path}: {missing} in no extra"
