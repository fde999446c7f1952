"""One table in three forms: HTML for the page, CSV with exact values, LaTeX (booktabs) for a paper."""

from collections.abc import Sequence
import csv
import dataclasses
import io
from typing import Any

from jpmhc_jax.reporting import markup
from jpmhc_jax.reporting.markup import Cell, Markup

_LATEX = {
  "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
  "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$",
  "×": r"$\times$", "∞": r"$\infty$", "–": "--", "\N{MINUS SIGN}": "$-$", "\N{NARROW NO-BREAK SPACE}": r"\,",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Table:
  """Caption, column heads and rows; the first cell of a row names it."""

  caption: str
  header: Sequence[Any]
  rows: Sequence[Sequence[Cell]]

  def html(self, **attributes: Any) -> Markup:
    """The table of the page; attributes are those of <table>."""
    return markup.table(self.caption, self.header, self.rows, **attributes)

  def csv(self) -> str:
    """Exact values, where a cell has one; an empty field is a value that was not recorded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([markup.plain(head) for head in self.header])
    writer.writerows([[_exact(cell) for cell in row] for row in self.rows])
    return file.getvalue()

  def latex(self) -> str:
    r"""A `table` with `booktabs` rules: \usepackage{booktabs}; columns of numbers stand to the right."""
    columns = zip(*self.rows, strict=True)
    sides = ["r" if all((cell.class_ or "").startswith("number") for cell in column) else "l" for column in columns]
    lines = [" & ".join(_escaped(markup.plain(head)) for head in self.header) + r" \\", r"\midrule"]
    lines += [" & ".join(_escaped(markup.plain(cell.shown)) for cell in row) + r" \\" for row in self.rows]
    body = "\n".join(f"  {line}" for line in [r"\toprule", *lines, r"\bottomrule"])
    tabular = f"\\begin{{tabular}}{{{''.join(sides)}}}\n{body}\n\\end{{tabular}}"
    return f"\\begin{{table}}\n\\centering\n\\caption{{{_escaped(self.caption)}}}\n{tabular}\n\\end{{table}}\n"


def _exact(cell: Cell) -> str:
  missing = "missing" in (cell.class_ or "")
  return "" if missing else markup.plain(cell.shown if cell.value is None else cell.value)


def _escaped(words: str) -> str:
  return "".join(_LATEX.get(letter, letter) for letter in words)
