"""The site builds without a warning and needs no network; its tutorials run, in a small size."""

import ast
import os
import pathlib
import re
import subprocess
import sys

from pages import ROOT
import pytest
from test_readme_runs import SHRUNK

from scripts import docs_site

TUTORIALS = ROOT / "docs" / "tutorials"
SUDOKU = SHRUNK["=sudoku:"]
OPTIONS = [f"--config.{name}={value}" for name, value in SUDOKU.items()]
FAST = {"mixer": {}}
SLOW = {
  "wrap": {"STEPS": 4},
  "spectrum": {"DEPTHS": (2,)},
  "train": {"FIELDS": SUDOKU},
  "task": {"FIELDS": {"steps": 20, "model.layers": 1, "evaluation.every": 20}},
  "arc": {"FIELDS": SHRUNK["=arc_tiny:"]},
  "sweep": {"FIELDS": OPTIONS, "SEEDS": 1},
  "pods": {"CONFIG": ["--config=sudoku:tiny", *OPTIONS], "PLAN": ["--plan"]},
}


def test_every_tutorial_is_run_here():
  assert {path.stem for path in TUTORIALS.glob("*.py")} == set(FAST | SLOW)


def _run(name, constants, tmp_path, monkeypatch):
  """Runs a tutorial in an empty folder, with constants of another size."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  path = TUTORIALS / f"{name}.py"
  tree = ast.parse(path.read_text(encoding="utf-8"))
  for node in tree.body:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in constants:
      node.value = ast.parse(repr(constants[ast.unparse(node.targets[0])])).body[0].value
  exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), {"__name__": f"tutorial_{name}"})


@pytest.mark.parametrize("name", FAST)
def test_a_tutorial_runs(name, tmp_path, monkeypatch, capfd):
  _run(name, FAST[name], tmp_path, monkeypatch)
  assert capfd.readouterr().out.strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_longer_tutorial_runs(name, tmp_path, monkeypatch, capfd):
  _run(name, SLOW[name], tmp_path, monkeypatch)
  assert capfd.readouterr().out.strip()


def test_a_page_is_made_of_comments_and_code():
  source = '"""A title.\n\nText.\n"""\n\nimport a\n\n# Words `of`\n# two lines.\nx = 1  # stays\n'
  assert docs_site.tutorial(source) == (
    "# A title\n\nText.\n\n```python\nimport a\n```\n\nWords `of`\ntwo lines.\n\n```python\nx = 1  # stays\n```\n"
  )


def test_the_words_of_inline_code_are_kept_whole_and_blocks_stay():
  page = "<p><code>jpmhc --version</code></p><pre><span></span><code>a b</code></pre><pre><code>c d\n</code></pre>"
  words = '<span class="word">jpmhc</span> <span class="word">--version</span>'
  assert docs_site.on_page_content(page, None, None, None) == page.replace("jpmhc --version", words)


def test_the_reference_has_every_public_name_with_signature_and_text_and_the_glossary_every_metric():
  page = "\n".join(docs_site.reference("jp.optim", "optax transformations"))
  assert "| `exact_accuracy` | Exact accuracy | Share of examples" in "\n".join(docs_site.metrics())
  assert "## jp.optim.adam_atan2\nadam_atan2(" in page.replace("```python\n", "") and ">>> " in page


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_for_nothing_elsewhere(tmp_path):
  pytest.importorskip("mkdocs", reason="the site is built where the extra docs is installed")
  command = [sys.executable, "-m", "mkdocs", "build", "--quiet", f"--site-dir={tmp_path}"]
  built = subprocess.run(
    command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
  )
  assert built.returncode == 0, built.stderr
  pages = [path.read_text(encoding="utf-8") for path in pathlib.Path(tmp_path).rglob("*.html")]
  assert len(pages) > 40
  tag = re.compile(r"<(?:script|img|link|iframe)[^>]*?(?:src|href)=\"?([^\" >]+)")
  loaded = [word for page in pages for word in tag.findall(page)]
  assert loaded and not [word for word in loaded if "://" in word]
