"""Config and sweep files: those of the package by name, anyone's by path; what they offer, and running them."""

from collections.abc import Iterator, Sequence
import dataclasses
import os
import pathlib
import re
import runpy
import sys
import traceback
from typing import Any

from jpmhc_jax.core import places
from jpmhc_jax.core.errors import check_choice, ConfigError, nearest, UserError

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
SWEEPS = CONFIGS / "sweeps"
_NAME = re.compile(r"(\w[\w-]*)(?::([\w-]*))?")  # sudoku:tiny; a path has a slash or ends in .py


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Variants of a config file that one line of `jpmhc configs` describes.

  cost: time and hardware of a run; measured: its result, with the number of steps.
  """

  variants: tuple[str, ...]
  about: str
  cost: str
  measured: str

  @property
  def label(self) -> str:
    """The variants' names, of many the first and the last ones."""
    names = self.variants
    return ", ".join(names if len(names) < 5 else (*names[:2], "…", names[-1]))


def check_variant(variant: str, recipes: Sequence[Recipe]) -> None:
  """Raises ConfigError, with the nearest one, for a variant that none of the recipes names."""
  check_choice("variant", variant, [name for recipe in recipes for name in recipe.variants])


def bundled(folder: pathlib.Path = CONFIGS) -> tuple[str, ...]:
  """Names of the files that the package holds in this folder: CONFIGS or SWEEPS."""
  return tuple(sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__"))


def catalogue() -> Iterator[tuple[str, str, tuple[Recipe, ...]]]:
  """(name, docstring, recipes) of every config of the package."""
  for name in bundled():
    scope = runpy.run_path(str(CONFIGS / f"{name}.py"))
    yield name, scope["__doc__"], scope["RECIPES"]


def is_bundled(spec: str) -> bool:
  """Whether it names a file of the package, 'sudoku:tiny', and no path."""
  return bool(_NAME.fullmatch(spec))


def file_and_variant(option: str, spec: str, folder: pathlib.Path = CONFIGS) -> tuple[pathlib.Path, str]:
  """The file and the variant, '' where none is named, of --config=sudoku:tiny or --config=path/to/file.py:variant.

  folder: where the package's own files of that kind are. Raises ConfigError, with the nearest name, when there is no
  such file.
  """
  word = _NAME.fullmatch(spec)
  if word:
    name, known = word[1], bundled(folder)
    if name not in known:
      raise ConfigError(
        f"{option}={spec}: no {name!r} in the package, which has {', '.join(known)}.{nearest(name, known)} A file of "
        f"your own is named with its ending, {name}.py"
      )
    return folder / f"{name}.py", word[2] or ""
  try:
    path, variant = places.file_and_variant(spec)
  except ValueError as error:
    raise ConfigError(f"{option}={spec}: expected {error}") from error
  if not os.path.isfile(path):
    beside = nearest(path.name, [other.name for other in path.parent.glob("*.py")])
    names = ", ".join(bundled(folder))
    raise ConfigError(f"{option}={spec}: no file {path}.{beside} The package has {names}, named without a path")
  return path, variant


def current_folder() -> str:
  """Its absolute path, '' where it was removed."""
  try:
    return os.getcwd()
  except FileNotFoundError:
    return ""


def search(folder: str) -> None:
  """Lets Python look for modules in this folder, behind everything else."""
  if folder and folder not in sys.path:
    sys.path.append(folder)


def run_file(path: pathlib.Path, function: str, variant: str) -> Any:
  """Calls a function of a Python file, which may import what lies beside it, with the variant if there is one.

  Raises ConfigError with the line for whatever goes wrong in the file; lets errors of the user's and AttributeError,
  KeyError (no such function) and TypeError through, whose meaning the caller knows.
  """
  if not path.is_relative_to(CONFIGS):
    search(str(path.parent))
  try:
    # Under the name that a plugin has: what it registers when it runs is then what its import registers.
    return runpy.run_path(str(path), run_name=path.stem)[function](*([variant] if variant else []))
  except (UserError, AttributeError, KeyError, TypeError):
    raise
  except Exception as error:
    reason = getattr(error, "msg", None) or error
    raise ConfigError(f"{where(path, error)}: {type(error).__name__}: {reason}") from error


def where(path: pathlib.Path, error: BaseException) -> str:
  """The file, and the line of it that raised the error, if one of its lines did."""
  frames = traceback.extract_tb(error.__traceback__)
  line = getattr(error, "lineno", None) or next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
  return f"{path}, line {line}" if line else f"{path}"
