"""The house's import rules, read from the source: who may import whom, and which library lives in which room."""

import ast
import functools
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "jpmhc_jax"

# A room may import the rooms listed for it (and itself). Nothing imports upward or sideways.
MAY_IMPORT = {
  "core": set(),
  "config": {"core"},
  "linalg": {"core"},
  "mixers": {"core", "linalg"},
  "manifolds": {"core", "linalg"},
  "data": {"core", "config"},
  "spectral": {"core", "linalg", "mixers", "manifolds"},
  "optim": {"core", "linalg", "manifolds"},
  "connections": {"core", "linalg", "mixers", "manifolds"},
  "transport": {"core", "linalg", "mixers", "manifolds"},
}
LIBRARY = set(MAY_IMPORT)
MAY_IMPORT["models"] = LIBRARY - {"data", "spectral", "optim", "transport"}
MAY_IMPORT["training"] = LIBRARY | {"models"}
UPPER = LIBRARY | {"models", "training"}
MAY_IMPORT |= {room: UPPER for room in ("evaluation", "sweeps", "reporting")}
MAY_IMPORT["runs"] = UPPER | {"evaluation", "reporting"}
MAY_IMPORT |= {"launch": {"core"}}
MAY_IMPORT["configs"] = {"core", "config", "sweeps"}
ROOMS = set(MAY_IMPORT)

LIBRARIES = {
  "flax": {"connections", "models", "transport", "training", "evaluation"},
  "optax": {"optim", "training"},
  "orbax": {"training/checkpoint.py", "training/shelves.py"},
  "obstore": {"core/objects.py"},
  "ml_collections": {"config/load.py", "config/variants.py"},
  "tensorboardX": {"training/writers.py"},
  "wandb": {"training/writers.py"},
  "matplotlib": {"reporting"},
}


@functools.cache
def _imports(path):
  return tuple(_imported(path))


def _imported(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      if node.module == "jpmhc_jax":
        yield from (f"jpmhc_jax.{alias.name}" for alias in node.names)
      else:
        yield node.module or ""


def _sources():
  """Modules inside a room; what `jpmhc init` writes is no part of the house."""
  inside = (p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py"))
  return sorted(PACKAGE / p for p in inside if len(p.parts) > 1 and p.parts[:2] != ("commands", "project"))


@pytest.mark.parametrize("path", _sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_room_imports_upward_or_sideways(path):
  room = path.relative_to(PACKAGE).parts[0]
  if room == "commands":  # stands beside main, above every room
    return
  assert room in ROOMS, f"{room} is no room of the house; add it to MAY_IMPORT with what it may import"
  for name in _imports(path):
    parts = name.split(".")
    if parts[0] == "jpmhc_jax":
      assert len(parts) > 1 and (parts[1] == room or parts[1] in MAY_IMPORT[room]), f"{path} imports {name}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_where_it_lives(library):
  for path in _sources():
    inside = path.relative_to(PACKAGE).as_posix()
    if any(name.split(".")[0] == library for name in _imports(path)):
      assert inside in LIBRARIES[library] or inside.split("/")[0] in LIBRARIES[library], f"{inside} imports {library}"


# What it makes of `json.dumps` is no file: a hash, a key, a word on a page, a message between processes.
DUMPS = {
  "core/files.py", "core/names.py", "data/arc.py", "reporting/sections.py", "reporting/statistics.py",
  "training/hosts/distributed.py",
}  # fmt: skip


def test_json_is_written_in_one_place():
  for path in PACKAGE.rglob("*.py"):
    if "json.dump" in path.read_text():
      inside = path.relative_to(PACKAGE).as_posix()
      assert inside in DUMPS, f"{inside}: core.files.to_json writes what every reader of JSON takes"


# What hands a path to the system, which knows no object store. A workdir's goes to its own methods or to `core.files`.
PAST_THE_DOOR = {
  "open", "os.open", "os.stat", "os.listdir", "os.scandir", "os.makedirs", "os.replace", "os.rename", "os.remove",
  "os.utime", "os.walk", "os.path.exists", "os.path.isfile", "os.path.isdir", "gzip.open", "glob.glob", "np.load",
  "np.save", "np.savez", "np.savez_compressed", "np.memmap", "pathlib.Path", "Path",
}  # fmt: skip
# These are about files that are in no workdir, or in one only where it is a folder.
ON_THIS_MACHINE = {
  "commands/init.py",  # the templates, and the project that it writes
  "commands/predict.py",  # standard input's name
  "commands/spectrum.py",  # the default folder
  "evaluation/latents.py",  # into memory
  "runs/run.py",  # an empty list's folder
  "sweeps/estimate.py", "sweeps/search.py",  # a rehearsal's folder; SQLite's file
  "sweeps/job.py",  # an empty file in place of a lock's
  "training/hosts/launches.py", "training/shelves.py", "training/workdir.py",  # devices; copies; this package
}  # fmt: skip


def _touching(path):
  calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
  return {name for call in calls if (name := ast.unparse(call.func)) in PAST_THE_DOOR or name.startswith("shutil.")}


def test_a_workdir_is_touched_through_one_door():
  rooms = ("training", "evaluation", "reporting", "runs", "sweeps", "commands")
  paths = [path for path in _sources() if path.relative_to(PACKAGE).parts[0] in rooms]
  touching = {path.relative_to(PACKAGE).as_posix(): names for path in paths if (names := _touching(path))}
  assert not {path: names for path, names in touching.items() if path not in ON_THIS_MACHINE}, "see PAST_THE_DOOR"
  assert set(touching) == ON_THIS_MACHINE  # none is excused for nothing


COMMAND = re.compile(r"\b(jpmhc (train|evaluate|spectrum|sweep|report)|rm) (\S*=)?$")


def test_a_command_in_a_message_can_be_pasted_whatever_the_folder_is_called():
  for path in PACKAGE.rglob("*.py"):
    text = path.read_text()
    for message in ast.walk(ast.parse(text)):
      parts = message.values if isinstance(message, ast.JoinedStr) else []
      for before, value in zip(parts, parts[1:], strict=False):
        if isinstance(before, ast.Constant) and COMMAND.search(before.value):
          shown = ast.unparse(value.value)
          quoted = shown.startswith("shlex.") or re.search(rf"\b{re.escape(shown)} = .*shlex\.", text)
          assert quoted, f"{path.relative_to(PACKAGE)}: shlex.quote({shown}) in {ast.unparse(message)}"


def test_the_command_line_stays_short():
  assert len((PACKAGE / "main.py").read_text().splitlines()) < 80


FLOOR = ("linalg", "mixers", "manifolds", "connections", "optim", "spectral", "transport")


def _defined(tree):
  """The public names that the statements of a module define, not those that it imports."""
  for node in tree.body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def _listed(tree):
  lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
  return sorted(ast.literal_eval(lists[0])) if lists else None


@pytest.mark.parametrize("room", FLOOR)
def test_a_module_of_the_library_lists_its_public_names(room):
  for path in sorted((PACKAGE / room).rglob("*.py")):
    if path.name != "__init__.py":
      tree = ast.parse(path.read_text())
      expected = sorted({name for name in _defined(tree) if not name.startswith("_")})
      assert _listed(tree) == expected, f"{path}: expected __all__ = {expected}"


def test_a_package_that_offers_names_lists_them():
  for path in PACKAGE.glob("*/**/__init__.py"):
    tree = ast.parse(path.read_text())
    assert not any(isinstance(node, ast.ImportFrom) for node in tree.body) or _listed(tree), f"{path}: no __all__"
