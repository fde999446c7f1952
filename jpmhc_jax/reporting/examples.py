"""Examples of a report, each beside the model's answers: puzzle grids, images, texts and plain numbers.

`DRAWINGS` has a drawing for each `kind` of example that an evaluation records; a plugin may add its own. Grids (ARC
colours, Sudoku digits, mazes) are small SVG drawings: a run of equal cells becomes one rectangle of a path, so a 30x30
grid takes a few kilobytes. Each drawing carries its content in words (`<desc>`), row by row.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import io
import math
import os.path
from typing import Any

import numpy as np

from jpmhc_jax.data.maze import SYMBOLS as MAZE_CELLS
from jpmhc_jax.reporting import markup
from jpmhc_jax.reporting.markup import join, Markup, tag

ARC_NAMES = ("black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "light blue", "maroon")
MAZE_NAMES = {"#": "wall", " ": "floor", "S": "start", "G": "goal", "o": "path"}


Predictions = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Drawing:
  """How examples of one kind are drawn. legend: what the marks mean. numbered: a task has several of them."""

  draw: Callable[[Mapping[str, Any], Predictions], Markup]
  legend: str = ""
  numbered: bool = False


@dataclasses.dataclass(frozen=True)
class GridStyle:
  """How grids of one kind look. body: (grid, given) -> its marks. spell: a cell in words. voted: answers have votes."""

  body: Callable[[Sequence[Sequence[Any]], Any], list[Markup]]
  spell: Callable[[Any], str] = str
  voted: bool = False


def draw_example(example: Mapping[str, Any]) -> Markup:
  """One example as a card: its name, whether it was solved, and the drawing of its kind; numbers for a kind unknown."""
  drawing = DRAWINGS.get(str(example.get("kind", "arc")), DRAWINGS["values"])
  listed = example.get("predictions")
  predictions = [p for p in listed if isinstance(p, Mapping)] if isinstance(listed, list) else []
  title = f"{example.get('task', '?')}" + (f" · test {example.get('test', 0)}" if drawing.numbered else "")
  at, judged = example.get("solved_at"), "solved_at" in example
  verdict = "solved" if at == 1 else f"solved by answer {at}" if at else "not solved"
  badge = tag("span", verdict, class_=f"badge {'good' if at else 'bad'}") if judged else None
  heading = tag("p", tag("strong", title), " ", badge)
  solved = ("solved" if at else "unsolved") if judged else "unknown"
  look = {"class": "card", "data-solved": solved, "data-task": example.get("task")}
  label = f"{title}, {verdict}" if judged else title
  return tag("article", heading, drawing.draw(example, predictions), aria_label=label, **look)


def draw_grids(kind: str, example: Mapping[str, Any], predictions: Predictions) -> Markup:
  """The task's demonstrations; then input, truth and answers in order, each with votes and mean halting probability."""
  truth, given = example.get("truth"), example.get("input")
  figures = [_grid_figure(kind, given, "Input", given=given)]
  if "truth" in example:
    figures.append(_grid_figure(kind, truth, "Truth", given=given))
  for i, prediction in enumerate(predictions, start=1):
    label = "Answer" if len(predictions) == 1 else f"Answer {i}"
    grid = prediction.get("grid")
    details = " · ".join(filter(None, (_votes_and_q(prediction, STYLES[kind].voted), _wrong_words(grid, truth))))
    right = grid == truth if "truth" in example else None
    figures.append(_grid_figure(kind, grid, label, details, truth, given, right=right))
  if not predictions:
    figures.append(markup.note("No answer was recorded."))
  return join([_demonstrations(kind, example.get("demonstrations")), tag("div", *figures, class_="grids")])


def _demonstrations(kind: str, pairs: Any) -> Markup | None:
  """Input and output of every pair, small, side by side; None where none were recorded."""
  known = [pair for pair in pairs if isinstance(pair, Mapping)] if isinstance(pairs, list) else []
  if not known:
    return None
  drawn = []
  for i, pair in enumerate(known, start=1):
    sides = [draw_grid(kind, pair.get(side), f"Demonstration {i}, {side}") for side in ("input", "output")]
    drawn.append(tag("span", sides[0], tag("span", "→", aria_hidden="true"), sides[1], class_="pair"))
  return tag("div", *drawn, class_="demonstrations", role="group", aria_label="Demonstrations")


def _votes_and_q(prediction: Mapping[str, Any], voted: bool) -> str:
  votes, q = prediction.get("votes"), prediction.get("q")
  words = []
  if voted and isinstance(votes, int | float):
    words.append(f"{markup.format_number(votes)} vote{'' if votes == 1 else 's'}")
  if isinstance(q, int | float):
    words.append(f"q\N{NO-BREAK SPACE}{q:.2f}")
  return " · ".join(words)


def _wrong_words(grid: Any, truth: Any) -> str:
  count = len(_wrong_cells(grid, truth))
  return f"{count} wrong cell{'s' * (count > 1)}" if count else ""


def _grid_figure(
  kind: str, grid: Any, label: str, details: str = "", truth: Any = None, given: Any = None, right: bool | None = None
) -> Markup:
  mark = None if right is None else tag("span", "✓" if right else "✗", class_="right" if right else "not-right")
  state = "" if right is None else ", right" if right else ", wrong"
  drawing = draw_grid(kind, grid, f"{label}{state}", truth, given)
  caption = tag("figcaption", label, " " if mark else None, mark)
  return tag("figure", caption, drawing, tag("small", details) if details else None)


def draw_grid(kind: str, grid: Any, label: str, truth: Any = None, given: Any = None) -> Markup:
  """One grid in the style of `kind`. Cells unlike `truth` are framed; the `given` digits of a Sudoku are bold.

  grid: rows of cells. ARC: colours 0..9. Sudoku: tokens, 1 = blank, digit + 1. Maze: tokens 1..5 or '# SGo'.
  An empty grid, and one that is not a grid at all, is drawn as a hatched box that says so.
  """
  if not _is_grid(grid):
    return _placeholder(label, "empty answer" if grid in ([], [[]]) else "not a grid")
  rows, cols, style = len(grid), len(grid[0]), STYLES[kind]
  words = "; ".join(" ".join(style.spell(cell) for cell in row) for row in grid)
  return tag(
    "svg",
    tag("title", f"{label}, {rows} by {cols}"),
    tag("desc", words),
    *style.body(grid, given),
    *_differences(grid, truth),
    viewBox=f"-.06 -.06 {cols + 0.12:g} {rows + 0.12:g}",
    role="img",
    class_=f"grid {kind}",
    style=f"--rows:{rows};--cols:{cols}",
  )  # fmt: skip


def _is_grid(grid: Any) -> bool:
  if not isinstance(grid, list) or not grid or not all(isinstance(row, list | str) and len(row) > 0 for row in grid):
    return False
  return len({len(row) for row in grid}) == 1


def _maze_cell(cell: Any) -> str:
  return MAZE_CELLS[cell - 1] if isinstance(cell, int) and 1 <= cell <= len(MAZE_CELLS) else str(cell)


def _sudoku_cell(cell: Any) -> str:
  return str(cell - 1) if isinstance(cell, int) and cell > 1 else "."


def _placeholder(label: str, why: str) -> Markup:
  words = tag("text", why, x=3, y=1.65, text_anchor="middle", class_="why")
  box = tag("rect", x=0, y=0, width=6, height=3, class_="nothing")
  look = {"viewBox": "-.06 -.06 6.12 3.12", "class": "grid empty", "style": "--rows:3;--cols:6"}
  return tag("svg", tag("title", f"{label}: {why}"), box, words, role="img", **look)


def _cells(classes: Sequence[Sequence[str]]) -> list[Markup]:
  """One path per class; horizontal runs are merged."""
  runs: dict[str, list[str]] = {}
  for y, row in enumerate(classes):
    x = 0
    while x < len(row):
      end = x
      while end < len(row) and row[end] == row[x]:
        end += 1
      runs.setdefault(row[x], []).append(f"M{x} {y}h{end - x}v1h-{end - x}z")
      x = end
  return [tag("path", d="".join(parts), class_=name) for name, parts in runs.items()]


def _rules(rows: int, cols: int) -> Markup:
  across = "".join(f"M0 {y}h{cols}" for y in range(rows + 1))
  down = "".join(f"M{x} 0v{rows}" for x in range(cols + 1))
  return tag("path", d=across + down, class_="rules")


def _differences(grid: Sequence[Sequence[Any]], truth: Any) -> list[Markup]:
  """Frames the cells that are not as in the truth; nothing when shapes differ: the whole answer is wrong then.

  A frame is white with a black rim to both sides, so that it is seen on every colour.
  """
  path = "".join(f"M{x + 0.16:g} {y + 0.16:g}h.68v.68h-.68z" for x, y in _wrong_cells(grid, truth))
  return [tag("path", d=path, class_=name) for name in ("rim", "wrong")] if path else []


def _wrong_cells(grid: Any, truth: Any) -> list[tuple[int, int]]:
  """(column, row) of each; none where one of the two is no grid or their shapes differ."""
  if not _is_grid(grid) or not _is_grid(truth) or (len(truth), len(truth[0])) != (len(grid), len(grid[0])):
    return []
  return [(x, y) for y, row in enumerate(grid) for x, cell in enumerate(row) if cell != truth[y][x]]


def _arc(grid: Sequence[Sequence[Any]], given: Any) -> list[Markup]:
  cells = _cells([[f"c{cell}" if cell in range(10) else "other" for cell in row] for row in grid])
  return [*cells, _rules(len(grid), len(grid[0]))]


def _maze(grid: Sequence[Sequence[Any]], given: Any) -> list[Markup]:
  cells = _cells([[f"maze-{MAZE_NAMES.get(_maze_cell(cell), 'other')}" for cell in row] for row in grid])
  return [*cells, _rules(len(grid), len(grid[0]))]


def _sudoku(grid: Sequence[Sequence[Any]], given: Any) -> list[Markup]:
  side = len(grid)
  box_rows = math.isqrt(side)  # 4 -> 2x2, 6 -> 2x3, 9 -> 3x3
  box_cols = side // box_rows
  cells = [
    tag("text", words, x=x + 0.5, y=y + 0.5, class_="given" if _is_grid(given) and given[y][x] == cell else "filled")
    for y, row in enumerate(grid)
    for x, cell in enumerate(row)
    if (words := _sudoku_cell(cell)) != "."
  ]
  thick = "".join(f"M0 {y}h{side}" for y in range(0, side + 1, box_rows))
  thick += "".join(f"M{x} 0v{side}" for x in range(0, side + 1, box_cols))
  paper = tag("rect", x=0, y=0, width=side, height=side, class_="paper")
  return [paper, *cells, _rules(side, side), tag("path", d=thick, class_="boxes")]


def draw_picture(example: Mapping[str, Any], predictions: Predictions) -> Markup:
  """The picture, magnified without smoothing, over what it is and what it was taken for."""
  truth = example.get("truth")
  taken = ", ".join(str(prediction.get("class", "?")) for prediction in predictions) or "not recorded"
  caption = tag("figcaption", f"class {truth}", tag("br"), f"answer {taken}")
  source = _png(example.get("input"), example.get("top"))
  if source is None:
    return tag("figure", markup.note("Not recorded."), caption, class_="picture")
  picture = tag("img", src=f"data:image/png;base64,{source}", alt=f"{example.get('task')}: class {truth}")
  return tag("figure", picture, caption, class_="picture")


def _png(pixels: Any, top: Any) -> str | None:
  """Base64 of a PNG file; pixels as (height, width, channels) values up to `top`, of which 1, 3 or 4 can be shown."""
  try:
    values = np.clip(np.asarray(pixels, np.float64) / float(top), 0, 1)
  except (TypeError, ValueError):
    return None
  if values.ndim != 3 or values.shape[-1] not in (1, 3, 4):
    return None
  from matplotlib import image  # slow to import, and only pictures need it

  file = io.BytesIO()
  image.imsave(file, np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values, format="png")
  return base64.b64encode(file.getvalue()).decode()


def draw_text(example: Mapping[str, Any], predictions: Predictions) -> Markup:
  """The three as preformatted text; of a continuation, what follows the first difference from the truth is marked."""
  truth = example.get("truth")
  figures = [_figure("Prompt", example.get("input")), _figure("Truth", truth)]
  for prediction in predictions:
    figures.append(_figure("Continuation, always the likeliest byte", prediction.get("text"), truth))
  if not predictions:
    figures.append(markup.note("No continuation was recorded."))
  return tag("div", *figures, class_="passages")


def _figure(label: str, text: Any, truth: Any = None) -> Markup:
  if not isinstance(text, str):
    return tag("figure", tag("figcaption", label), markup.note("Not recorded."))
  right = len(os.path.commonprefix([text, truth])) if isinstance(truth, str) else len(text)
  rest = tag("mark", text[right:]) if right < len(text) else None
  counted = tag("small", f"{right} of {len(truth)} characters before the first difference") if truth else None
  return tag("figure", tag("figcaption", label), tag("pre", text[:right], rest, tabindex="0"), counted)


def draw_values(example: Mapping[str, Any], predictions: Predictions) -> Markup:
  """The first numbers of each array of the example, and of what was predicted."""
  given = example.get("input")
  rows = list(given.items()) if isinstance(given, Mapping) else [("input", given)]
  rows += [("prediction", prediction.get("values")) for prediction in predictions]
  return markup.table(
    f"Numbers of {example.get('task')}", ["", "numbers"], [[name, _numbers(values)] for name, values in rows]
  )


def _numbers(values: Any) -> str:
  listed = values if isinstance(values, list) else [values]
  return "  ".join(markup.format_number(v) if isinstance(v, int | float) else str(v) for v in listed)


STYLES = {
  "arc": GridStyle(_arc, voted=True),
  "sudoku": GridStyle(_sudoku, _sudoku_cell),
  "maze": GridStyle(_maze, _maze_cell),
}
DRAWINGS = {
  kind: Drawing(functools.partial(draw_grids, kind), "Frames mark wrong cells.", numbered=style.voted)
  for kind, style in STYLES.items()
} | {
  "text": Drawing(draw_text, "Marked is what follows the first difference."),
  "images": Drawing(draw_picture),
  "values": Drawing(draw_values),
}
