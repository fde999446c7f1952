"""A folder of ARC tasks as people have it: a file for each task, or Kaggle's files of many.

    training/*.json, evaluation/*.json, test/*.json                       a task a file, also in subfolders
    *_training_challenges.json, *_training_solutions.json, …              {id: task}, {id: [output, …]}

A suffix in capitals is taken; what a desktop leaves behind (`._x.json`, `.x.json`, `__MACOSX`) is not.
"""

from collections.abc import Mapping
import pathlib
import re
from typing import Any

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.reading import read_json, shown

SUBSETS = ("training", "evaluation", "test")
RawTask = tuple[str, Any, pathlib.Path]  # id, content of the public JSON layout as it was read, file
_NAMED = 3  # files that a remark names
_CHALLENGES, _SOLUTIONS = (re.compile(rf"{what}(?=\.json$)", re.IGNORECASE) for what in ("challenges", "solutions"))


def read_folder(folder: pathlib.Path, subset: str) -> list[RawTask]:
  """The tasks of a subset: those of single files in order of their ids, those of Kaggle's file in its order.

  A test pair without a solution has no "output". Raises DataError for a subset that is not there or there twice, and
  for solutions that do not fit.
  """
  single, challenges = json_files(folder / subset), _kaggle_files(folder, subset)
  if len(challenges) + bool(single) > 1:
    several = " and ".join(shown(path.name) for path in [*challenges, *([folder / subset] if single else [])])
    raise DataError(f"{shown(folder)}: {several} hold the {subset} tasks; keep one of them")
  if not challenges and not single:
    raise DataError(
      f"{shown(folder / subset)}: no *.json task found; expected one file a task in the public ARC format, or Kaggle's "
      f"*_{subset}_challenges.json in {shown(folder)}."
    )
  if challenges:
    return _challenges(challenges[0], _by_id(challenges[0]))
  return [(path.stem, read_file(path), path) for path in single]


def read_tasks(path: pathlib.Path) -> list[RawTask]:
  """Every task of a file, which holds one or is Kaggle's, or of all files below a folder.

  Solutions are found beside their challenges. Raises DataError where there is none.
  """
  if path.is_dir():
    files = [each for each in json_files(path) if not _SOLUTIONS.search(each.name)]
    if not files:
      raise DataError(f"{shown(path)}: no *.json task found; expected tasks in the public ARC format")
    return [task for each in files for task in read_tasks(each)]
  raw = read_file(path)
  return _challenges(path, _checked(raw, path)) if is_collection(raw) else [(path.stem, raw, path)]


def json_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Every file below the folder that ends in .json, in any case, and is not hidden; in order of the tasks' ids."""
  files = [path for path in folder.rglob("*") if path.suffix.lower() == ".json" and not _is_hidden(path, folder)]
  return sorted(files, key=lambda path: (path.stem, path))


def remarks(folder: pathlib.Path) -> list[str]:
  """What is left out of the folder, in a sentence."""
  hidden = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".json" and _is_hidden(path, folder))
  if not hidden:
    return []
  names = ", ".join(shown(path.relative_to(folder)) for path in hidden[:_NAMED])
  return [f"hidden files are left out: {len(hidden)} ({names}{', …' * (len(hidden) > _NAMED)})"]


def read_file(path: pathlib.Path) -> Any:
  """The value of a JSON file; raises DataError for one that is not there or cannot be read."""
  try:
    return read_json(path)
  except FileNotFoundError:
    raise DataError(f"{shown(path)}: no such file; the data set is incomplete, download it again.") from None
  except OSError as error:
    raise DataError(f"{shown(path)}: cannot be read ({error.strerror or error}); repair or remove the file.") from None


def _with_solutions(name: str, raw: Any, outputs: Any, source: pathlib.Path) -> Any:
  """A raw task whose test pairs have these outputs, unless they have some of their own.

  Raises DataError that names the file of the solutions where their number is another.
  """
  tests = raw.get("test") if isinstance(raw, Mapping) else None
  if not isinstance(tests, list) or not all(isinstance(pair, Mapping) for pair in tests):
    return raw  # what is wrong with the task is found where it is checked
  if not isinstance(outputs, list) or len(outputs) != len(tests):
    count = len(outputs) if isinstance(outputs, list) else f"a {type(outputs).__name__}"
    raise DataError(
      f"{shown(source)}: task {name!r}: solutions: {count}; expected a list of {len(tests)} grids, one a test input; "
      "take the file that belongs to the challenges"
    )
  return {**raw, "test": [{"output": output, **pair} for pair, output in zip(tests, outputs, strict=True)]}


def is_collection(raw: Any) -> bool:
  """Whether a JSON value is {id: task}, Kaggle's layout, and no task itself."""
  return isinstance(raw, Mapping) and not {"train", "test"} & set(raw)


def _challenges(path: pathlib.Path, tasks: Mapping[str, Any]) -> list[RawTask]:
  """Kaggle's tasks, with the outputs of the file of solutions beside theirs."""
  source = path.with_name(_CHALLENGES.sub("solutions", path.name))
  known = _by_id(source) if source != path and source.is_file() else {}
  return [
    (name, _with_solutions(name, raw, known[name], source) if name in known else raw, path)
    for name, raw in tasks.items()
  ]


def _by_id(path: pathlib.Path) -> Mapping[str, Any]:
  return _checked(read_file(path), path)


def _checked(content: Any, path: pathlib.Path) -> Mapping[str, Any]:
  if not is_collection(content) or not content:
    raise DataError(f"{shown(path)}: expected an object with an entry for each task id, as Kaggle has it")
  return content


def _kaggle_files(folder: pathlib.Path, subset: str) -> list[pathlib.Path]:
  pattern = re.compile(rf"(?:.*[-_])?{subset}[-_]challenges\.json", re.IGNORECASE)
  files = folder.iterdir() if folder.is_dir() else ()
  return sorted(path for path in files if pattern.fullmatch(path.name) and not _is_hidden(path, folder))


def _is_hidden(path: pathlib.Path, folder: pathlib.Path) -> bool:
  return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)
