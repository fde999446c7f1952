"""Command lines of the experiments: a number without sense is refused with its bounds, before anything is measured."""

import argparse
import ast
import pathlib

import pytest

from experiments.claim import Claim
from experiments.faults import launch, run
from jpmhc_jax.core import arguments

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
SOURCES = sorted(path for path in FOLDER.rglob("*.py") if "add_argument" in path.read_text(encoding="utf-8"))
UNBOUNDED = {"int", "float", "pathlib.Path"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_number_and_no_path_is_read_without_bounds(path):
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
      options = {option.arg: ast.unparse(option.value) for option in node.keywords}
      assert options.get("type") not in UNBOUNDED, ast.unparse(node)
      if "action" not in options and "choices" not in options:
        names = {word.value for word in node.args if isinstance(word, ast.Constant)}
        assert "type" in options or names <= {"--config", "--mixers", "--mixer"}, ast.unparse(node)


@pytest.mark.parametrize(
  "option",
  ("--kills=-1", "--kills=nan", "--jobs=0", "--size=0", "--seed=-1", "--seed=4294967296", "--faults=1e3", "--folder=",
   "--layouts=0x1", "--layouts=2", "--layouts=1x1,", "--kinds=kill,thunder", "--kinds="),
)  # fmt: skip
def test_the_harness_of_faults_refuses_what_it_cannot_do(option, capsys):
  with pytest.raises(SystemExit) as end:
    run.main([option])
  name, _, value = option.partition("=")
  assert end.value.code == 2
  assert f"argument {name}: {value!r}: expected " in capsys.readouterr().err


def test_a_claim_refuses_a_cache_without_a_name(tmp_path, capsys):
  with pytest.raises(SystemExit) as end:
    Claim(tmp_path, lambda quick, cache: pytest.fail(), seeds="1", budget="none").command(["--cache="])
  assert end.value.code == 2
  assert "argument --cache: '': expected " in capsys.readouterr().err


def test_layouts_and_lists_of_names_are_read():
  assert launch.Layout.parse("12x4") == launch.Layout(12, 4)
  read = arguments.names(("kill", "tail"))
  assert (read("kill"), read("tail, kill")) == (("kill",), ("tail", "kill"))
  with pytest.raises(argparse.ArgumentTypeError, match=r"'kill,': expected some of kill, tail, separated by commas"):
    read("kill,")
