"""Every command, option, recipe, field, path and block of Python on the project's pages is what the program takes."""

import dataclasses

import checks
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from pages import Code, code, lines, PAGES, ROOT
import pytest

from jpmhc_jax import commands, connections, sweeps
from jpmhc_jax.commands import train
from jpmhc_jax.config import schema
from jpmhc_jax.core import errors
from jpmhc_jax.core.terminal import EXIT_CTRL_C
from jpmhc_jax.training.hosts import monitor

PIECES = [piece for page in PAGES for piece in code(page)]
BLOCKS = [piece for piece in PIECES if not piece.span]
COMMANDS = [line for block in BLOCKS if not block.language for line in lines(block) if checks.is_command(line)]
FORMULAS = ("x' = H x",)  # blocks that are no code
TRAINING = ("docs/api.md", "A run")  # the page and section whose block trains: tests/runs has it
LISTINGS = ("The house",)  # sections whose block shows folders
SPANS = {
  checks.is_command: checks.check_command,
  lambda piece: piece.text.startswith("--"): checks.check_options,
  checks.is_recipe: checks.check_recipe,
  checks.is_field: checks.check_field,
  checks.is_path: checks.check_path,
}


def _place(piece):
  return f"{piece.place}-{piece.text[:50]}"


def test_every_line_of_every_block_is_covered():
  for block in BLOCKS:
    if block.language in ("python", "text") or block.text.startswith(FORMULAS) or block.section in LISTINGS:
      continue
    uncovered = [line.text for line in lines(block) if not checks.is_command(line)]
    assert not block.language and not uncovered, f"{block.place}: no rule in tests/readme/checks.py covers {uncovered}"


@pytest.mark.parametrize("line", COMMANDS, ids=_place)
def test_every_command_parses(line):
  checks.check_command(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_sentences_name_is_there(page):
  for piece in PIECES:
    if piece.page == page and piece.span:
      for applies, check in SPANS.items():
        if applies(piece):
          check(piece)
          break


@pytest.mark.parametrize("pages", [[ROOT / "README.md"], pytest.param(PAGES, marks=pytest.mark.slow, id="all")])
def test_every_block_of_python_runs(pages):
  x = jax.random.normal(jax.random.key(0), (2, 3, 64))
  scope = {"jax": jax, "jnp": jnp, "np": np, "nnx": nnx, "schema": schema, "dataclasses": dataclasses}
  scope |= vars(sweeps) | {name: getattr(connections, name) for name in connections.__all__}
  scope |= {"x": x, "my_module": nnx.Linear(64, 64, rngs=nnx.Rngs(1)), "streams": connections.expand(x, 4)}
  trains = lambda block: (str(block.page.relative_to(ROOT)), block.section) == TRAINING  # noqa: E731
  blocks = [block for block in BLOCKS if block.language == "python" and block.page in pages and not trains(block)]
  assert blocks
  for block in blocks:
    checks.check_python(block, scope)
  assert pages != PAGES or len(list(scope["get_sweep"]().space.points())) == 20  # four arms, five seeds


def test_the_listing_of_the_house_is_the_house():
  for block in BLOCKS:
    if block.section in LISTINGS:
      checks.check_tree(block)


def test_the_table_of_exit_codes_is_that_of_the_program():
  text = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
  rows = [row.split("|")[1].strip() for row in text[text.index("| exit code") :].split("\n\n")[0].splitlines()[2:]]
  ours = {error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")}
  assert set(map(int, rows)) == {
    0,
    1,
    EXIT_CTRL_C,
    train.EXIT_DIVERGED,
    train.EXIT_INTERRUPTED,
    monitor.EXIT_PEER_LOST,
    *ours,
  }
  assert len(rows) == len(set(rows))


def test_the_readme_is_short_and_begins_with_the_two_commands():
  assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
  assert [line.text.split()[:2] for line in COMMANDS[:2]] == [["make", "demo"], ["make", "test"]]


def test_every_verb_is_on_the_page():
  shown = {argv[1] for _, argv in (checks.words(line.text) for line in COMMANDS) if argv[0] == "jpmhc"} - {"--version"}
  assert shown == {command.name for command in commands.COMMANDS}


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("jpmhc train --config=sudoku:tiny --config.steqs=3", "steqs"),
    ("jpmhc train --config=sudoko:tiny", "Did you mean 'sudoku'"),
    ("jpmhc sweep --config=sudoku:tiny --sweep=none --workdir=x", "no 'none'"),
    ("python -m experiments.mixer_costs.run --chek", "2"),
    ("pip install 'jpmhc-jax[visoin]'", "visoin"),
    ("make demmo", "demmo"),
    ("JAX_PROCESS_ID=0 jpmhc report x", "JAX_PROCESS_ID"),
  ],
)
def test_a_wrong_line_is_found(text, reason):
  with pytest.raises((Exception, SystemExit)) as found:
    checks.check_command(Code(ROOT / "README.md", 1, "", text))
  assert reason in f"{found.value} {getattr(found.value, 'stderr', b'')}"
