"""Files that a kill cannot leave half-written, strict JSON, and storage failures in words."""

from collections.abc import Iterator, Mapping
import contextlib
import errno
import itertools
import json
import math
import os
import pathlib
from typing import Any

from jpmhc_jax.core.errors import StorageError

DAMAGED = "damaged"  # the folder of a workdir for what is kept aside
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REMEDY_FULL = "free space (or raise the quota) and run the same command to resume"
_WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_REMEDY_CLOSED = "make the folder writable or choose another --workdir"


def write_atomically(path: pathlib.Path, content: str | bytes, durable: bool = True) -> None:
  """Replaces a file: a reader, or a restart after a kill, finds the old content or the new one, never a part.

  durable: also waits for the disk (some ms), so that this holds when the power fails. Raises
  OSError when the disk is full or the folder is not writable; the old content is still there then.
  """
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("wb") as file:
      file.write(content.encode() if isinstance(content, str) else content)
      if durable:
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise


def to_json(value: Any, *, words: bool = False, **layout: Any) -> str:
  """Strict JSON, which every reader takes: NaN and infinities, which JSON does not have, are null.

  words: they are "NaN", "Infinity" and "-Infinity" instead, which `from_json` reads as the same numbers again. Scalars
  and arrays of NumPy and JAX are numbers and lists. layout: indent or separators, as json.dumps takes them. Raises
  TypeError for what is no value of JSON.
  """
  try:
    return json.dumps(value, allow_nan=False, default=_plain, **layout)
  except ValueError:  # out of JSON's range; rare, so that only then all of it is walked through
    return json.dumps(_finite(value, words), allow_nan=False, **layout)


def from_json(text: str | bytes) -> Any:
  """The value that `to_json(value, words=True)` wrote. Bare NaN and Infinity of older files are read as well."""
  return _numbers(json.loads(text))


def _plain(value: Any) -> Any:
  """A scalar or an array of NumPy or JAX as Python's numbers."""
  if not hasattr(value, "tolist"):
    raise TypeError(f"a {type(value).__name__} is no value of JSON")
  return value.tolist()


def _finite(value: Any, words: bool) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else _WORDS[repr(float(value))] if words else None
  if isinstance(value, Mapping):
    return {name: _finite(each, words) for name, each in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(each, words) for each in value]
  return value if value is None or isinstance(value, str | int) else _finite(_plain(value), words)


def _numbers(value: Any) -> Any:
  if isinstance(value, str):
    return float(value) if value in _WORDS.values() else value
  if isinstance(value, dict):
    return {name: _numbers(each) for name, each in value.items()}
  return [_numbers(each) for each in value] if isinstance(value, list) else value


def move_aside(path: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
  """Moves what is damaged to `damaged/`, beside what was moved there under the same name before; returns its place."""
  folder = workdir / DAMAGED
  names = (f"{path.name}.{k}" if k else path.name for k in itertools.count())
  target = next(folder / name for name in names if not (folder / name).exists())
  with storing(str(target)):
    folder.mkdir(exist_ok=True)
    path.replace(target)
  return target


@contextlib.contextmanager
def storing(what: str) -> Iterator[None]:
  """Turns an OSError inside into a StorageError that says what could not be written, why, and what to do."""
  try:
    yield
  except OSError as error:
    raise StorageError(f"{what} could not be written: {error}; {remedy(error)}") from error


def is_full(error: OSError) -> bool:
  """Whether there was no room: on the disk, in the quota or in the largest file allowed."""
  return error.errno in _FULL


def remedy(error: OSError) -> str:
  """What to do about a failed write."""
  return _REMEDY_FULL if is_full(error) else _REMEDY_CLOSED
