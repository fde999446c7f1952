"""HTML as nested function calls: everything that is not already markup is escaped, so no value can break the page."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import html
import math
import re
from typing import Any

from jpmhc_jax.core.files import to_json

_VOID = {"input", "meta", "br", "link", "wbr"}


class Markup(str):
  """A string that is HTML already and must not be escaped again."""

  __slots__ = ()


def text(value: Any) -> Markup:
  """Escapes a value for use in HTML text or in a double-quoted attribute; Markup passes unchanged."""
  return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def join(children: Iterable[Any]) -> Markup:
  """Concatenates children, escaping those that are not Markup and dropping None."""
  return Markup("".join(text(child) for child in children if child is not None))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
  """One element. In attributes a last underscore goes, others become hyphens; None and False attributes vanish."""
  parts = [name]
  for key, value in attributes.items():
    key = key.rstrip("_").replace("_", "-")
    if value is True:
      parts.append(key)
    elif value is not None and value is not False:
      parts.append(f'{key}="{text(value)}"')
  opening = f"<{' '.join(parts)}>"
  return Markup(opening) if name in _VOID else Markup(f"{opening}{join(children)}</{name}>")


def embed_json(value: Any, **attributes: Any) -> Markup:
  """Strict JSON for the page's script. `<` is written as an escape, so the element cannot be closed from inside."""
  data = to_json(value, separators=(",", ":")).replace("<", "\\u003c")
  return tag("script", Markup(data), type="application/json", **attributes)


def field(name: str) -> Markup:
  """A dotted name as code that may be broken behind its dots."""
  return tag("code", Markup(text(name).replace(".", ".<wbr>")))


def search(label: str, example: str) -> Markup:
  """The field of a filter form that the page's script matches words with."""
  return tag("label", f"{label} ", tag("input", type="search", class_="find", placeholder=example, autocomplete="off"))


def slug(name: str) -> str:
  """An id for links: lower-case letters, digits and hyphens."""
  return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"


@dataclasses.dataclass(frozen=True)
class Cell:
  """A table cell: what is shown, the exact value behind it (sorting, tests, copying), and how it looks."""

  shown: Any
  value: Any = None
  class_: str | None = None
  header: bool = False
  style: str | None = None

  def render(self) -> Markup:
    """The cell as HTML."""
    exact = None if self.value is None else (repr(self.value) if isinstance(self.value, float) else self.value)
    name, scope = ("th", "row") if self.header else ("td", None)
    return tag(name, self.shown, scope=scope, class_=self.class_, data_value=exact, style=self.style)


def number(value: Any, percent: bool = False) -> Cell:
  """A numeric cell: four significant digits shown, the full value kept in data-value; None is a dash, NaN is marked."""
  if value is None:
    return Cell(tag("span", "–", title="not recorded"), class_="number missing")
  if isinstance(value, bool) or not isinstance(value, int | float):
    return Cell(str(value), str(value))
  if isinstance(value, float) and not math.isfinite(value):
    return Cell(str(value).replace("nan", "NaN").replace("inf", "∞"), value, "number bad")
  return Cell(format_number(value, percent), value, "number")


def format_number(value: int | float, percent: bool = False) -> str:
  """`0.4286 -> 42.86 %` with percent; integers with narrow spaces; otherwise four significant digits."""
  if not math.isfinite(value):
    return str(value).replace("nan", "NaN").replace("inf", "∞")
  if percent:
    return f"{100 * value:.2f}\N{NARROW NO-BREAK SPACE}%"
  if value == int(value) and abs(value) < 1e15:
    return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
  return f"{value:.4g}"


def table(caption: Any, header: Sequence[Any], rows: Iterable[Sequence[Any]], **attributes: Any) -> Markup:
  """A captioned table in a box that scrolls sideways. The first cell of a row is its header; cells may be `Cell`s."""
  cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
  heads = []
  for i, label in enumerate(header):
    looks = [row[i].class_ or "" for row in cells]
    right = i > 0 and looks and all(look.startswith("number") for look in looks)
    heads.append(tag("th", label, scope="col", class_="number" if right else None))
  head = tag("thead", tag("tr", *heads))
  body = [
    tag("tr", dataclasses.replace(row[0], header=True).render(), *(cell.render() for cell in row[1:])) for row in cells
  ]
  inner = tag("table", tag("caption", caption), head, tag("tbody", *body), **attributes)
  return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=plain(caption))


def definitions(items: Mapping[str, Any]) -> Markup:
  """Headline figures: a list of label and value pairs."""
  return tag("dl", *(tag("div", tag("dt", key), tag("dd", value)) for key, value in items.items()), class_="tiles")


def note(*children: Any, kind: str = "note") -> Markup:
  """A remark in a box: kind `note` or `warning`."""
  return tag("p", *children, class_=kind, role="note")


def plain(markup: Any) -> str:
  """The text of markup, without its tags."""
  return html.unescape(re.sub(r"<[^>]*>", "", str(markup)))
