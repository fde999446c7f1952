"""What mkdocs asks for while it builds the site (`make docs`): pages made from code and files, and their links.

tutorials/NAME.md is docs/tutorials/NAME.py, whose comments at the margin are the text; reference/ROOM.md are the
docstrings of the public names; glossary.md is what reports say of metrics; the pages of FILES are files as they lie.
"""

from collections.abc import Iterator
import contextlib
import html
import inspect
import itertools
import pathlib
import posixpath
import re

from jpmhc_jax.reporting import glossary
from scripts import api_page

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "AGENTS.md": "agents.md"}
FILES |= {"examples/README.md": "examples.md"}
FILES |= {f"experiments/{page.parent.name}/README.md": f"experiments/{page.parent.name}.md"
          for page in sorted(ROOT.glob("experiments/*/README.md"))}  # fmt: skip
INLINE = re.compile(r"(?<!<pre>)(?<!</span>)<code>([^<\n]*)</code>")
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files, config):
  """Adds the generated pages, and the pictures that pages outside docs/ show."""
  from mkdocs.structure.files import File

  for path in sorted((ROOT / "docs" / "tutorials").glob("*.py")):
    text = tutorial(path.read_text(encoding="utf-8"))
    files.append(File.generated(config, f"tutorials/{path.stem}.md", content=text))
  for room, title in api_page.ROOMS.items():
    page = f"reference/{room.removeprefix('jp.')}.md"
    files.append(File.generated(config, page, content="\n\n".join(reference(room, title))))
  files.append(File.generated(config, "glossary.md", content="\n".join(metrics())))
  for source, page in FILES.items():
    files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for picture in sorted({*ROOT.joinpath(source).parent.rglob("*.png")} if source.startswith("experiments") else ()):
      name = picture.relative_to(ROOT / source.removesuffix("README.md")).as_posix()
      target = posixpath.join(page.removesuffix(".md"), name)
      files.append(File.generated(config, target, abs_src_path=str(picture)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Links between files of the checkout become links between pages; of a file without a page the text stays."""
  here = page.file.src_uri
  source = {made: name for name, made in FILES.items()}.get(here)

  def relinked(link: re.Match) -> str:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source or f"docs/{here}"), link[2]))
    target = _place(path, source)
    return (
      f"[{link[1]}]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{link[3] or ''})" if target else link[1]
    )

  return LINK.sub(relinked, markdown)


def on_page_content(html, page, config, files):
  """A word of inline code is kept whole: browsers break a line behind any hyphen, as in `--config`."""

  def kept(code: re.Match) -> str:
    words = (f'<span class="word">{word}</span>' for word in code[1].split(" "))
    return f"<code>{' '.join(words)}</code>"

  return INLINE.sub(kept, html)


def _place(path: str, source: str | None) -> str:
  """Where the site has a file of the checkout, '' where it has it not; source: the file that links to it."""
  if path.startswith("docs/"):
    return re.sub(r"^(tutorials/\w+)\.py$", r"\1.md", path.removeprefix("docs/"))
  if source and path.endswith(".png"):
    return posixpath.join(FILES[source].removesuffix(".md"), posixpath.relpath(path, posixpath.dirname(source)))
  return FILES.get(path) or FILES.get(f"{path}/README.md", "")


def tutorial(source: str) -> str:
  """A page from a program: its docstring and the comments at its margin are the text, all else is code."""
  _, docstring, code = source.split('"""', 2)
  title, _, text = docstring.partition("\n")
  parts = [f"# {title.rstrip('.')}", text.strip()]
  for is_text, lines in itertools.groupby(code.splitlines(), lambda line: line.startswith("#")):
    if is_text:
      parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))
    elif block := "\n".join(lines).strip("\n"):
      parts.append(f"```python\n{block}\n```")
  return "\n\n".join(filter(None, parts)) + "\n"


def reference(room: str, title: str) -> Iterator[str]:
  """The docstrings of a room's public names, and of the methods of its classes."""
  yield f"# {room}\n\n{title}."
  for name, value in api_page.members(room):
    yield f"## {room}.{name}"
    yield from _entry(value, name)
    if inspect.isclass(value):
      for method, function in vars(value).items():
        if inspect.isfunction(function) and not method.startswith("_") and inspect.getdoc(function):
          yield f"### {name}.{method}"
          yield from _entry(function, method)


def metrics() -> Iterator[str]:
  """A table of every scalar that a run records, in the words of the report."""
  yield "# Glossary of metrics\n\nWhat a run records in `metrics.jsonl`, as its report explains it.\n"
  yield "| name | called | meaning | |\n|---|---|---|---|"
  for group, words in glossary.GROUPS.items():
    yield f"| `{group}/…` | | {_escaped(words)} | |"
  for name, known in glossary.MEANINGS.items():
    yield f"| `{name}` | {_escaped(known.title)} | {_escaped(known.words)} | {known.better} |"


def _entry(value: object, name: str) -> Iterator[str]:
  """The signature as code, then the docstring: examples as code, the rest as text."""
  with contextlib.suppress(TypeError, ValueError):
    yield f"```python\n{name}{_signature(value)}\n```"
  for paragraph in (inspect.getdoc(value) or "").split("\n\n"):
    if ">>>" in paragraph or paragraph.startswith(" "):
      yield f"```python\n{inspect.cleandoc(paragraph)}\n```"
    else:
      yield "`".join(part if k % 2 else _escaped(part) for k, part in enumerate(paragraph.split("`")))


def _escaped(text: str) -> str:
  return re.sub(r"([\\*_\[\]#|])", r"\\\1", html.escape(text, quote=False))


def _signature(value: object) -> str:
  """With types by their last names; one parameter a line where it is long."""
  text = re.sub(r"(?:\b\w+\.)+(\w+)", r"\1", str(inspect.signature(value)))  # type: ignore[arg-type]
  if len(text) < 90:
    return text
  parameters, arrow, returned = text[1:].rpartition(") ->")
  parts = re.split(r", (?=[\w*]+(?::|$|=)|\*,|/,)", parameters if arrow else text[1:-1])
  return "(\n" + "".join(f"  {part},\n" for part in parts) + f"){' ->' if arrow else ''}{returned if arrow else ''}"
