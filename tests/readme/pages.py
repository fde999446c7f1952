"""What the project's pages show as code: blocks and code spans, taken from the Markdown itself."""

from collections.abc import Iterator
import dataclasses
import pathlib

from markdown_it import MarkdownIt

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("AGENTS.md", "CONTRIBUTING.md", "docs/*.md", "experiments/*/README.md", "examples/README.md")
PAGES = (ROOT / "README.md", *(page for pattern in FOLDERS for page in sorted(ROOT.glob(pattern))))


@dataclasses.dataclass(frozen=True)
class Code:
  """A piece of code on a page. section: the heading above it; language: of a fenced block; span: inside a sentence."""

  page: pathlib.Path
  line: int
  section: str
  text: str
  language: str = ""
  span: bool = False

  @property
  def place(self) -> str:
    """'README.md:30'."""
    return f"{self.page.relative_to(ROOT)}:{self.line}"


def code(page: pathlib.Path) -> Iterator[Code]:
  """Every block and span of a page, in order."""
  section, heading = "", False
  for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
    line = token.map[0] + 1 if token.map else 0
    if token.type in ("fence", "code_block"):
      yield Code(page, line, section, token.content, token.info.strip())
    heading = token.type == "heading_open" or (heading and token.type == "inline")
    if token.type == "inline":
      section = token.content if heading else section
      for child in token.children or ():
        if child.type == "code_inline":
          yield Code(page, line, section, child.content, span=True)


def lines(block: Code) -> Iterator[Code]:
  """The lines of a block of commands, comments included; a line that ends in a backslash goes on in the next."""
  text = block.text.replace("\\\n", " ")
  for number, line in enumerate(text.splitlines()):
    if line.strip():
      yield dataclasses.replace(block, line=block.line + number, text=line.strip())
