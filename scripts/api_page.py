"""Writes the tables of public names in docs/api.md from `__all__` and the first line of every docstring.

python -m scripts.api_page
"""

import inspect
import pathlib

import jpmhc_jax as jp

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "api.md"
HEADING = "## Names\n"
ROOMS = {
  "jp": "Everything at hand",
  "jp.linalg": "Algebra of many tiny matrices, tokens last",
  "jp.manifolds": "Manifolds of matrices",
  "jp.optim": "optax transformations",
  "jp.spectral": "Spectra of Jacobians",
  "jp.transport": "Maps between latent spaces, and entropic optimal transport",
}


def tables() -> str:
  """The section `Names`: one table a room."""
  parts = [HEADING]
  for room, title in ROOMS.items():
    rows = [f"| `{room}.{name}` | {_first_line(value)} |" for name, value in members(room)]
    parts.append("\n".join([f"### {title}: `{room}`\n", "| name | what it is |", "|---|---|", *rows]) + "\n")
  return "\n".join(parts)


def members(room: str) -> list[tuple[str, object]]:
  """(name, value) of the public functions and classes of `jp`, or of a part such as `jp.optim`, by the alphabet."""
  module = getattr(jp, room.removeprefix("jp.")) if "." in room else jp
  values = {name: getattr(module, name) for name in module.__all__}
  return sorted(
    ((name, value) for name, value in values.items() if callable(value)), key=lambda item: item[0].casefold()
  )


def _first_line(value: object) -> str:
  paragraph = (inspect.getdoc(value) or "").split("\n\n")[0]
  return " ".join(paragraph.split()).replace("|", "\\|").replace("`", "")  # code spans of a page are run


def main() -> None:
  """Rewrites the page below the heading."""
  before = PAGE.read_text(encoding="utf-8").partition(HEADING)[0]
  PAGE.write_text(before + tables(), encoding="utf-8")


if __name__ == "__main__":
  main()
