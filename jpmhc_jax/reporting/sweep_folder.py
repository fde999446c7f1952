"""A folder that `jpmhc sweep` wrote, as the report sees it: its runs, and what the sweep knows of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
import shlex
from typing import Any

from jpmhc_jax.core.errors import DataError, UserError
from jpmhc_jax.core.reading import read_json
from jpmhc_jax.reporting import markup
from jpmhc_jax.reporting.markup import Cell, join, Markup, number, tag

Entry = Mapping[str, Any]
SHOWN = 120  # characters of a remark
GOOD, WAITING = ("done",), ("pending", "running")


def expand(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, Entry]]:
  """Run folders, with every sweep folder replaced by its runs; and the sweep's entry of each of those.

  Runs that were never started are among them. Raises UserError for a sweep.json that cannot be read.
  """
  folders: list[Path] = []
  entries: dict[Path, Entry] = {}
  for path in paths:
    listed = _entries(path)
    asked = str((_read(path) or {}).get("metric", ""))
    folders += [path] if listed is None else []
    for entry in listed or ():
      folder = (path / str(entry["workdir"])).resolve()
      folders.append(folder)
      entries[folder] = {"metric": asked, **entry}
  return list(dict.fromkeys(folder.resolve() for folder in folders)), entries


def problem(entry: Entry) -> str | None:
  """What the sweep has to say of a run that is not done; None for one that is."""
  if entry["state"] in GOOD:
    return None
  code = f" with exit code {entry['exit_code']}" if entry.get("exit_code") else ""
  message = f": {entry['message']}" if entry.get("message") else ""
  return f"the sweep says {entry['state']}{code}{message}"


def table(entries: Sequence[Entry]) -> Markup:
  """One row a run: its state, attempts and the command that repeats it."""
  rows = []
  for entry in entries:
    state = str(entry["state"])
    kind = "good" if state in GOOD else "open" if state in WAITING else "bad"
    badge = tag("span", state, class_=f"badge {kind}")
    copy = tag("button", "Copy", type="button", class_="copy", hidden=True)
    command = tag("div", tag("pre", tag("code", entry.get("command", "")), tabindex="0"), copy, class_="command")
    row = [Cell(entry["name"]), Cell(badge, state), number(entry.get("attempts")), number(entry.get("exit_code"))]
    rows.append(
      [*row, Cell(_folded(entry.get("message") or "–")), Cell(tag("details", tag("summary", "show"), command))]
    )
  header = ["run", "state", "attempts", "exit code", "remark", "command"]
  return markup.table("State of every run and the command that repeats it", header, rows, class_="sortable")


def _folded(words: str) -> Any:
  """A long remark shows its beginning and unfolds."""
  if len(words) <= SHOWN:
    return words
  return tag("details", tag("summary", f"{words[:SHOWN]} …"), tag("p", words))


def section(paths: Sequence[Path], entries: Mapping[Path, Entry]) -> Markup | None:
  """How the sweeps among the paths stand; None when there is none."""
  if not entries:
    return None
  commands = [shlex.join(map(str, about.get("command", []))) for path in paths if (about := _read(path))]
  counts: dict[str, int] = {}
  for entry in entries.values():
    counts[entry["state"]] = counts.get(entry["state"], 0) + 1
  words = ", ".join(f"{count} {state}" for state, count in counts.items())
  parts: list[Any] = [tag("p", f"{len(entries)} runs: {words}. The same command goes on with what is not done:")]
  parts += [tag("pre", tag("code", command), tabindex="0") for command in commands]
  return join([*parts, table(list(entries.values()))])


def _entries(path: Path) -> list[Entry] | None:
  about = _read(path)
  return None if about is None else list(about["runs"])


def _read(path: Path) -> dict[str, Any] | None:
  file = path / "sweep.json"
  if not file.is_file():
    return None
  try:
    about = read_json(file)
    if all({"name", "workdir", "state"} <= entry.keys() for entry in about["runs"]):
      return about
    reason = "a run lacks its name, workdir or state"
  except (DataError, OSError, KeyError, TypeError, AttributeError) as error:
    reason = str(error)
  raise UserError(f"report: {file} is no record of a sweep ({reason}); give the folders of its runs instead")
