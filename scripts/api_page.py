"""Writes the tables of public names in docs/api.md from `__all__` and the first line of every docstring.

python -m scripts.api_page
"""

import inspect
import pathlib
import types

import jpmhc_jax as jp

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "api.md"
HEADING = "## Names\n"
ROOMS = {
  "jp": "Everything at hand",
  "jp.linalg": "Algebra of many tiny matrices, tokens last",
  "jp.manifolds": "Manifolds of matrices",
  "jp.optim": "optax transformations",
  "jp.spectral": "Spectra of Jacobians",
}


def tables() -> str:
  """The section `Names`: one table a room."""
  parts = [HEADING]
  for room, title in ROOMS.items():
    module = getattr(jp, room.removeprefix("jp.")) if "." in room else jp
    rows = [f"| `{room}.{name}` | {_first_line(getattr(module, name))} |" for name in _names(module)]
    parts.append("\n".join([f"### {title}: `{room}`\n", "| name | what it is |", "|---|---|", *rows]) + "\n")
  return "\n".join(parts)


def _names(module: types.ModuleType) -> list[str]:
  return sorted((name for name in module.__all__ if callable(getattr(module, name))), key=str.casefold)


def _first_line(value: object) -> str:
  paragraph = (inspect.getdoc(value) or "").split("\n\n")[0]
  return " ".join(paragraph.split()).replace("|", "\\|").replace("`", "")  # code spans of a page are run


def main() -> None:
  """Rewrites the page below the heading."""
  before = PAGE.read_text(encoding="utf-8").partition(HEADING)[0]
  PAGE.write_text(before + tables(), encoding="utf-8")


if __name__ == "__main__":
  main()
