"""What each piece of code on the pages is, and how it is checked without running it.

`check` takes what `kind` recognises and raises or asserts where the page is wrong; a piece that nothing recognises is
an error, so that a new line of a page cannot go untested.
"""

import argparse
import contextlib
import functools
import io
import itertools
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from typing import Any
from unittest import mock

from pages import Code, ROOT

from jpmhc_jax import commands
from jpmhc_jax.commands import launch
from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema, sources
from jpmhc_jax.main import main, parser
from jpmhc_jax.sweeps.plan import load_sweep
from jpmhc_jax.training.hosts import launches

PLACEHOLDER = re.compile(r"[A-Z]+|[a-z]|.*…")  # NAME, N, m, …/corpus
_GROUPS = {name.split(".")[0] for name, _ in configs.leaves(schema.Config()) if "." in name}
_PROGRAMS = {"jpmhc", "python", "make", "pip"}


class Uncovered(Exception):
  """Nothing here knows what a piece of code on a page is: add a rule, or a reason to leave it out."""


def words(text: str) -> tuple[dict[str, str], list[str]]:
  """(variables in front, words) of a line of shell. `jpmhc` and `python -m jpmhc_jax` are the same program, and so is
  what `.venv/bin` has of it."""
  found = shlex.split(text, comments=True)
  assigned = list(itertools.takewhile(lambda word: re.match(r"[A-Z_]+=", word), found))
  found = [word.removeprefix(".venv/bin/") for word in found[len(assigned) :]]
  if found[:3] == ["python", "-m", "jpmhc_jax"]:
    found = ["jpmhc", *found[3:]]
  if found[:1] == ["eval"]:  # eval "$(jpmhc completion)"
    found = shlex.split(found[1].strip("$()"))
  return dict(word.split("=", 1) for word in assigned), found


def is_command(piece: Code) -> bool:
  """Whether it is a line of shell."""
  if piece.language or not piece.text.split():
    return False
  with contextlib.suppress(ValueError):
    return bool(words(piece.text)[1][:1]) and words(piece.text)[1][0] in _PROGRAMS
  return False


def check_command(piece: Code) -> None:
  """Parses a line of shell with the parsers of the programs it calls; renders what only machines elsewhere can run."""
  environment, argv = words(piece.text)
  folders = [str(ROOT / environment.pop("PYTHONPATH"))] if "PYTHONPATH" in environment else []
  assert not environment or launches.detect(environment) == launches.Launch("environment", "host0:1234", 4, 0), piece
  with mock.patch.object(sys, "path", [*folders, *sys.path]):
    _check_call(argv, piece)


def _check_call(argv: list[str], piece: Code) -> None:
  if ">" in argv:
    assert (ROOT / argv[argv.index(">") + 1]).is_file(), piece
    argv = argv[: argv.index(">")]
  program, *rest = argv
  if program == "make":
    subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, check=True, capture_output=True)
  elif program == "pip":
    _check_installation(rest)
  elif program == "jpmhc":
    _check_verb(rest)
  elif rest[:2] == ["-m", "pytest"]:
    named = [word for word in rest if word.startswith("tests/")]
    assert named and all((ROOT / word).exists() for word in named), piece
  elif rest[:1] == ["-m"] and ".NAME." in rest[1]:
    options = [word.strip("[]") for word in rest[2:]]
    for folder in claims():
      parse_module(_file(rest[1].replace("NAME", folder)), options)
  elif rest[:1] == ["-m"] and piece.span and len(rest) == 2:  # a sentence names the program
    module_help(_file(rest[1]))
  elif rest[:1] == ["-m"]:
    parse_module(_file(rest[1]), rest[2:])
  elif rest[0].startswith("examples/"):  # programs without options, which tests/examples runs
    assert (ROOT / rest[0]).is_file() and not rest[1:], piece
  else:
    parse_module(ROOT / rest[0], rest[1:])


def claims() -> list[str]:
  """The experiments that are a published claim."""
  runs = sorted(ROOT.glob("experiments/*/run.py"))
  return [run.parent.name for run in runs if "experiments.claim import" in run.read_text(encoding="utf-8")]


def _file(module: str) -> pathlib.Path:
  return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _check_installation(argv: list[str]) -> None:
  """The extras that are installed are those that the project declares; a file of versions is there."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert argv[0] == "install", argv
  for word in argv[1:]:
    if extras := re.fullmatch(rf"(?:\.|{project['name']})\[([\w,]+)\]", word):
      assert set(extras[1].split(",")) <= set(project["optional-dependencies"]), word
    assert not word.endswith(".txt") or (ROOT / word).is_file(), word


def _check_verb(argv: list[str]) -> None:
  """A call of `jpmhc`: the verb's own parser, the config with its overrides, the sweep file."""
  if not argv or "…" in argv:  # the program's name alone, or the arguments left to the reader
    assert argv[:1] in ([], *([command.name] for command in commands.COMMANDS)), argv
    return
  if argv == ["--version"]:
    return
  if argv[0] == "launch":
    _check_launch(argv[1:] or ["slurm"])
    return
  options, overrides = parser().parse_known_args(argv)
  assert not overrides or options.command.takes_overrides, overrides
  given = vars(options)
  if given.get("config"):
    config = configs.load(options.config, overrides)
    assert not given.get("profile") or int(options.profile.split(":")[1]) <= config.steps
  else:
    configs.load_default(overrides)
  if given.get("sweep"):
    load_sweep(options.sweep)


def _check_launch(argv: list[str]) -> None:
  """Renders a launcher's commands; one that stands alone gets what it asks for."""
  needed = {"tpu": ["--name=n", "--zone=z"], "gke": ["--name=n", "--image=i"]}
  given = argv if len(argv) > 1 else [*argv, *needed.get(argv[0], ()), "--", "--config=arc1:cayley", "--workdir=w"]
  if "--" in argv:
    _check_verb(["train", *argv[argv.index("--") + 1 :]])
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    assert main(["launch", given[0], "--dry-run", *given[1:]]) == 0
  assert printed.getvalue()


class _Parsed(Exception):
  """The arguments were taken; what would run now does not."""


@functools.cache
def module_help(path: pathlib.Path) -> str:
  """The help of a module that is run as a program."""
  return _parse(path, None).format_help()


def parse_module(path: pathlib.Path, argv: list[str]) -> None:
  """Runs a module as a program up to where its own parser has taken the arguments."""
  _parse(path, tuple(argv))


@functools.cache
def _parse(path: pathlib.Path, argv: tuple[str, ...] | None) -> argparse.ArgumentParser:
  """The parser of a module, after it has taken the arguments, if there are any to take."""
  parse = argparse.ArgumentParser.parse_args

  def parse_and_stop(self: Any, *arguments: Any) -> None:
    if argv is not None:
      parse(self, *arguments)
    raise _Parsed(self)

  with (
    mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
    mock.patch("sys.argv", [str(path), *(argv or ())]),
    mock.patch("sys.path", [str(path.parent), *sys.path]),
    mock.patch("jpmhc_jax.core.process.restart_with_fast_allocation"),  # it would replace the process of the tests
  ):
    try:
      runpy.run_path(str(path), run_name="__main__")
    except _Parsed as reached:
      return reached.args[0]
  raise AssertionError(f"{path}: it parses no arguments")


def check_options(piece: Code) -> None:
  """Options that a sentence names: fields take their values, the rest belongs to a program that the page is about."""
  given = shlex.split(piece.text)
  fields = [word for word in given if word.startswith("--config.")]
  for values in itertools.product(*map(_alternatives, fields)):
    configs.load_default([value for value in values if value])
  for word in given:
    name = word.split("=")[0]
    assert name in _all_help(piece.page) or word in fields, f"{piece.place}: no program of this page takes {word}"


def _alternatives(word: str) -> list[str]:
  """'--config.a=x|y' is one of two; a placeholder only names the field."""
  name, _, value = word.partition("=")
  if PLACEHOLDER.fullmatch(value) and "/" not in value:
    assert name.removeprefix("--config.") in dict(configs.leaves(schema.Config())), word
    return [""]
  return [f"{name}={one}" for one in value.split("|")]


@functools.cache
def _all_help(page: pathlib.Path) -> str:
  """The help of every program that a page may speak of: all verbs and launchers, and the folder's own modules."""
  texts = []
  for verb in re.findall(r"^ {4}(\w+) ", parser().format_help(), re.MULTILINE):
    texts.append(_help_of(lambda verb=verb: parser().parse_args([verb, "--help"])))
  for place in launch.LAUNCHERS:
    texts.append(_help_of(lambda place=place: parser().parse_args(["launch", place, "--help"])))
  for path in sorted(page.parent.glob("*.py")):
    if page.parent.parent.name == "experiments" and "if __name__ ==" in path.read_text(encoding="utf-8"):
      texts.append(module_help(path))
  return "\n".join(texts)


def _help_of(call: Any) -> str:
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
    call()
  return printed.getvalue()


RECIPE = re.compile(rf"({'|'.join(sources.bundled())}):(\{{[\w,]+\}}|\w+|…)")


def is_recipe(piece: Code) -> bool:
  """`arc_tiny:demo`, `maze:{tiny,hard}`: a config of the package and its variants."""
  return bool(RECIPE.fullmatch(piece.text))


def check_recipe(piece: Code) -> None:
  """Loads it in every variant."""
  name, variants = RECIPE.fullmatch(piece.text).groups()  # type: ignore[union-attr]
  for variant in variants.strip("{}…").split(","):
    configs.load(f"{name}:{variant}")


def is_field(piece: Code) -> bool:
  """`model.rematerialise=products`: a config field, with a value or without."""
  return bool(re.fullmatch(r"[a-z]+(\.[a-z_0-9]+)+(=\S+)?", piece.text)) and piece.text.split(".")[0] in _GROUPS


def check_field(piece: Code) -> None:
  """The field exists and takes the value."""
  name, _, value = piece.text.partition("=")
  assert name in dict(configs.leaves(schema.Config())), piece
  if value and not PLACEHOLDER.fullmatch(value):
    configs.load_default([f"--config.{piece.text}"])


def is_path(piece: Code) -> bool:
  """`jpmhc_jax/manifolds`, `results/step_cpu.json`: a file or folder of the project, but not one of a workdir."""
  return (
    bool(re.fullmatch(r"[\w.-]+/[\w./-]*", piece.text)) and piece.page.name != "runs.md" and piece.text != "damaged/"
  )


def check_path(piece: Code) -> None:
  """It is there: from the root, beside the page, or in the package."""
  places = (ROOT, piece.page.parent, ROOT / "jpmhc_jax")
  assert any((place / piece.text).exists() for place in places), f"{piece.place}: no {piece.text}"


def check_python(piece: Code, scope: dict[str, Any]) -> None:
  """Runs a block of Python in `scope`."""
  exec(compile(piece.text, str(piece.place), "exec"), scope)


def check_tree(block: Code) -> None:
  """The listing of the house names every package, and nothing that is not there."""
  entries = [(len(line) - len(line.lstrip()), line.split()[0].strip("/")) for line in block.text.splitlines()]
  packages = {name for depth, name in entries if depth}
  there = {path.parent.name for path in (ROOT / "jpmhc_jax").glob("*/*.py")}
  assert packages == there and all((ROOT / name).is_dir() for depth, name in entries if not depth)
