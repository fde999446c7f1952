"""Reads a report back: nesting, tables with their exact values, ids, links and headings."""

import html.parser
import re

from jpmhc_jax.reporting.report import write_report

VOID = {"input", "meta", "br", "link", "wbr"}


class Page(html.parser.HTMLParser):
  """Checks nesting while parsing; collects tables (caption -> rows of (text, data-value)), ids, links and headings."""

  def __init__(self, source: str):
    super().__init__()
    self.stack, self.ids, self.links, self.headings, self.tables, self.elements = [], [], [], [], [], []
    self.text = ""
    self.feed(source)
    assert not self.stack, f"left open: {self.stack}"

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.elements.append((tag, attributes))
    if tag not in VOID:
      self.stack.append(tag)
    self.ids += [attributes["id"]] if "id" in attributes else []
    self.links += [attributes["href"]] if "href" in attributes else []
    if re.fullmatch("h[1-6]", tag):
      self.headings.append(int(tag[1]))
    if tag == "table":
      self.tables.append({"caption": "", "rows": []})
    if tag == "tr":
      self.tables[-1]["rows"].append([])
    if tag in ("td", "th"):
      self.tables[-1]["rows"][-1].append(["", attributes.get("data-value"), attributes.get("scope")])

  def handle_startendtag(self, tag, attributes):
    raise AssertionError(f"self-closed <{tag}/>")

  def handle_endtag(self, tag):
    assert self.stack and self.stack.pop() == tag, f"</{tag}> closes nothing"

  def handle_data(self, data):
    if not {"script", "style"} & set(self.stack):
      self.text += data
    if "caption" in self.stack:
      self.tables[-1]["caption"] += data
    elif {"td", "th"} & set(self.stack):
      self.tables[-1]["rows"][-1][-1][0] += data

  def table(self, caption: str) -> list[list]:
    (found,) = [t["rows"] for t in self.tables if t["caption"].startswith(caption)]
    return found

  def values(self, caption: str) -> dict[str, list[str | None]]:
    return {row[0][0]: [cell[1] for cell in row[1:]] for row in self.table(caption)[1:]}


def read(*workdirs, out):
  return Page(write_report(workdirs, out).read_text(encoding="utf-8"))
