"""jpmhc configs: the configs of the package with what they train, what that costs and what was measured."""

import argparse
from collections.abc import Iterator
import dataclasses

from jpmhc_jax.core import arguments

_HEADINGS = ("config", "what it trains", "cost", "measured, one seed")
_NOTE = "Written by `jpmhc configs --markdown`. `jpmhc configs sudoku` prints the promise of one and its variants."


@dataclasses.dataclass(frozen=True)
class Configs:
  """The command `jpmhc configs`."""

  name: str = "configs"
  help: str = "List the configs of the package: what each trains, its cost and its measured result."
  takes_overrides: bool = False
  computes: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("config", nargs="?", type=arguments.line, help="print all that this one says of itself")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/configs.md has it")

  def run(self, options: argparse.Namespace) -> int:
    """Prints the table, or the docstring and the variants of one config; 0."""
    from rich.console import Console
    from rich.table import Table

    if options.config:
      _describe(options.config)
      return 0
    if options.markdown:
      print(markdown())
      return 0
    table = Table(*_HEADINGS, title="train one: jpmhc train --config=sudoku:tiny --workdir=runs/first")
    for row in rows():
      table.add_row(*row)
    console = Console()
    Console(width=max(console.width, 120)).print(table, markup=False)
    return 0


def rows() -> Iterator[tuple[str, str, str, str]]:
  """(name:variants, what it trains, cost, measured) of each recipe."""
  from jpmhc_jax.config import sources

  for name, _, recipes in sources.catalogue():
    for recipe in recipes:
      yield f"{name}:{recipe.label}", recipe.about, recipe.cost, recipe.measured


def markdown() -> str:
  """The table as a Markdown page."""
  lines = [_HEADINGS, ("---",) * len(_HEADINGS), *rows()]
  return "\n".join(["# Configs", "", _NOTE, "", *("| " + " | ".join(line) + " |" for line in lines)])


def _describe(spec: str) -> None:
  """The docstring of a config of the package and the names of its variants."""
  from jpmhc_jax.config import sources

  path, _ = sources.file_and_variant("config", spec)
  for name, promise, recipes in sources.catalogue():
    if name == path.stem:
      variants = ", ".join(variant for recipe in recipes for variant in recipe.variants)
      print(f"{promise.strip()}\n\nVariants: {variants}\nFile: {path}")
