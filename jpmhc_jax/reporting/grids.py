"""Examples on a terminal: grids in colour side by side, which are read without colours too, and a table of all."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from jpmhc_jax.data.maze import SYMBOLS as MAZE_CELLS

# The colours of the public viewer of ARC, as page.css has them, and a text that is seen on each.
_ARC = ("#111111", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25")
_DARK = {0, 1, 2, 6, 9}
_MAZE = {"#": "on #555555", "S": "bold green", "G": "bold red", "o": "bold cyan"}


def print_examples(console: Console, examples: Sequence[Mapping[str, Any]], shown: int) -> None:
  """The first `shown` examples with their grids, then a line for each of all."""
  for example in examples[:shown]:
    console.print(drawn(example))
  console.print(overview(examples))


def drawn(example: Mapping[str, Any]) -> RenderableType:
  """Name, input, truth where it is known, and answers of one example; grids stand side by side where they have room."""
  kind, given = str(example["kind"]), example["input"]
  titled = [("input", given), *([("truth", example["truth"])] if "truth" in example else [])]
  answers = enumerate(example["predictions"], start=1)
  titled += [(f"{number}: {_votes(kind, answer)}", answer["grid"]) for number, answer in answers]
  panels = [Panel(block(kind, grid, given), title=title, expand=False) for title, grid in titled]
  return Group(Text(_name(example), style="bold"), Columns(panels))


def overview(examples: Sequence[Mapping[str, Any]]) -> Table:
  """A row for each example: its name, size and votes of its answers, and whether the truth is one of them."""
  most = max((len(example["predictions"]) for example in examples), default=0)
  judged = any("solved_at" in example for example in examples)
  table = Table()
  for heading in ("task", *(f"attempt {number + 1}" for number in range(most)), *(["solved"] if judged else [])):
    table.add_column(heading)
  for example in examples:
    cells = [_votes(str(example["kind"]), answer) for answer in example["predictions"]]
    cells += ["–"] * (most - len(cells))
    at = example.get("solved_at")
    verdict = [f"by attempt {at}" if at else "no" if "solved_at" in example else "not known"] if judged else []
    table.add_row(Text(_name(example)), *cells, *verdict)
  return table


def block(kind: str, grid: Sequence[Sequence[Any]], given: Sequence[Sequence[Any]]) -> Text:
  """A grid as coloured text, a line a row; an empty one says so."""
  if not grid or not grid[0]:
    return Text("empty", style="dim")
  rows = []
  for y, row in enumerate(grid):
    cells = [_CELLS[kind](cell, _at(given, y, x) == cell) for x, cell in enumerate(row)]
    rows.append(Text.assemble(*cells))
  return Text("\n").join(rows)


def _at(grid: Sequence[Sequence[Any]], y: int, x: int) -> Any:
  return grid[y][x] if y < len(grid) and x < len(grid[y]) else None


def _arc_cell(cell: int, given: bool) -> tuple[str, str]:
  return f"{cell} ", f"{'white' if cell in _DARK else 'black'} on {_ARC[cell]}"


def _sudoku_cell(cell: int, given: bool) -> tuple[str, str]:
  return (f"{cell - 1} " if cell > 1 else ". "), ("bold" if given else "cyan")


def _maze_cell(cell: int, given: bool) -> tuple[str, str]:
  symbol = MAZE_CELLS[cell - 1] if 1 <= cell <= len(MAZE_CELLS) else "?"
  return symbol, _MAZE.get(symbol, "")


_CELLS: dict[str, Callable[[int, bool], tuple[str, str]]] = {
  "arc": _arc_cell,
  "sudoku": _sudoku_cell,
  "maze": _maze_cell,
}


def _name(example: Mapping[str, Any]) -> str:
  return f"{example['task']} · test {example['test']}" if example["kind"] == "arc" else str(example["task"])


def _votes(kind: str, answer: Mapping[str, Any]) -> str:
  """Size, votes where copies vote, and the mean probability of halting: what the model thinks of the answer."""
  grid, votes = answer["grid"], answer["votes"]
  voted = f"{votes} vote{'' if votes == 1 else 's'}, " if kind == "arc" else ""
  return f"{len(grid)}×{len(grid[0]) if grid else 0}, {voted}q {answer['q']:.2f}"
