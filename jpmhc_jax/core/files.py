"""Writing files: whole or not at all, also under a kill; strict JSON; storage failures in words.

Everything in a workdir is written here, on a disk or in an object store (`core.objects`); nobody else asks which.
"""

from collections.abc import Iterator, Mapping
import contextlib
import errno
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any, Protocol, runtime_checkable

from jpmhc_jax.core import process
from jpmhc_jax.core.errors import require, StorageError, UserError
from jpmhc_jax.core.objects import Growing, ObjectPath

DAMAGED = "damaged"  # the folder of a workdir for what is kept aside
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MANY = {errno.EMFILE, errno.ENFILE}
# An intact file that this process may not read now. Anything else that keeps one from being read is damage.
_DENIED = {*_MANY, errno.ENOMEM, errno.EAGAIN, errno.EACCES, errno.EPERM, errno.ENOLINK, errno.EKEYREJECTED}
_REMEDY_FULL = "free space (or raise the quota) and run the same command to resume"
_WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_REMEDY_CLOSED = "make the folder writable or choose another --workdir"
_REMEDIES = {
  errno.ENOLINK: "see that the store can be reached (AWS_ENDPOINT_URL, network) and run the same command to resume",
  errno.EKEYREJECTED: "give credentials that may read, write, list and delete there, or choose another --workdir",
}
# Libraries tell their failures in text alone: tensorstore with a number, gloo and the dynamic linker in words.
_NUMBER = re.compile(r"os_error_code='(\d+)'")
_TOLD = {os.strerror(number): number for number in (*_MANY, errno.ENOSPC, errno.EDQUOT)}
_TEMPORARY = re.compile(r"\..+\.(\d+-\d*-[0-9a-f]{8})\.tmp")


def write_atomically(path: pathlib.Path, content: str | bytes, durable: bool = True) -> None:
  """Replaces a file: a reader, or a restart after a kill, finds the old content or the new one, never a part.

  A text is written as UTF-8; a byte of a file name in it that is no text becomes its number.
  durable: also waits until content and name are on the disk (some ms), so that this holds when the power fails.
  Raises OSError when the disk is full or the folder is not writable; the old content is still there then.
  """
  data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
  if isinstance(path, ObjectPath):
    path.write_bytes(data)
    return
  temporary = temporary_beside(path)
  try:
    with temporary.open("wb") as file:
      file.write(data)
      if durable:
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    if durable:
      sync_folder(path.parent)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise


def temporary_beside(path: pathlib.Path) -> pathlib.Path:
  """A hidden name in the same folder that is this process's own; `sweep` knows it when the process was killed."""
  return path.with_name(f".{path.name}.{process.mark()}.tmp")


def sweep(folder: pathlib.Path, old: float) -> None:
  """Removes what killed writers left under `temporary_beside` names. old: a time on the clock of the file system.

  A writer of this machine is looked up; of one elsewhere what was last written before `old` is left over. A store has
  none of them.
  """
  if isinstance(folder, ObjectPath):
    return
  for path in folder.glob(".*.tmp"):
    if marked := _TEMPORARY.fullmatch(path.name):
      gone = process.left_behind(marked[1])
      with contextlib.suppress(OSError):  # its writer has just renamed it, or another start removed it
        if gone or (gone is None and path.stat().st_mtime < old):
          path.unlink()


def sync_file(path: pathlib.Path) -> None:
  """Waits until what was written to a file is on the disk, by whatever handle it was. Raises OSError."""
  if isinstance(path, ObjectPath):
    return
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def sync_folder(folder: pathlib.Path) -> None:
  """Waits until the names in a folder are on the disk, where the file system can."""
  try:
    sync_file(folder)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES):
      raise


def make_folder(folder: pathlib.Path) -> None:
  """Makes a folder and those above it, as far as they are missing, so that a power failure leaves them."""
  if not isinstance(folder, ObjectPath) and not folder.is_dir():
    if folder.parent != folder:
      make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def create(path: pathlib.Path, text: str) -> bool:
  """Writes a file that is not there yet, and waits for the disk; False where another process was first."""
  if isinstance(path, ObjectPath):
    return path.create(text.encode())
  try:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
  except FileExistsError:
    return False
  try:
    with os.fdopen(descriptor, "w") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    sync_folder(path.parent)
  except BaseException:
    path.unlink(missing_ok=True)
    raise
  return True


def exchange(path: pathlib.Path, old: str, new: str) -> bool:
  """Writes another text in place of this one; False where the file holds a third."""
  if isinstance(path, ObjectPath):
    return path.exchange(old.encode(), new.encode())
  with contextlib.suppress(FileNotFoundError):
    if path.read_text() == old:
      path.unlink()
  return create(path, new)


def renew(path: pathlib.Path, text: str) -> bool:
  """Gives a file that holds this text the time of now; False where it holds another. Raises FileNotFoundError."""
  if isinstance(path, ObjectPath):
    return path.exchange(text.encode(), text.encode())
  if path.read_text() != text:
    return False
  os.utime(path)
  return True


@runtime_checkable
class Grows(Protocol):
  """A file that lines are added to."""

  def write(self, data: Any) -> int:
    """Takes bytes, and says how many of them."""

  def sync(self) -> None:
    """Returns when they are on the disk, or in the store."""

  def close(self) -> None:
    """Ends the writing."""


class _Appended:
  """Unbuffered: what a full disk refuses must not wait in a buffer to fail again at close."""

  def __init__(self, path: pathlib.Path):
    self._file = path.open("ab", buffering=0)
    self.write, self.close = self._file.write, self._file.close

  def sync(self) -> None:
    os.fsync(self._file.fileno())


def growing(path: pathlib.Path) -> Grows:
  """A file that is there already, to add to; in a store its name ends in .jsonl. Raises OSError."""
  return Growing(path) if isinstance(path, ObjectPath) else _Appended(path)


class Staged:
  """The folder of this machine that a library writes files into which belong to `folder`: that one, where it is here.

  Otherwise a temporary one, whose files `send` brings there.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._temporary = tempfile.TemporaryDirectory(prefix="jpmhc_") if isinstance(folder, ObjectPath) else None
    self.here = pathlib.Path(self._temporary.name) if self._temporary else folder

  def send(self) -> None:
    """Returns when the files of now are where they belong. Raises OSError."""
    if isinstance(self._folder, ObjectPath):
      self._folder.upload(self.here)

  def close(self) -> None:
    """Sends them a last time, and removes the temporary folder."""
    if self._temporary:
      with self._temporary:
        self.send()


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
    try:
      path.replace(target)
    except OSError as error:
      if error.errno != errno.EXDEV:  # either folder may be a link to another file system
        raise
      shutil.move(path, target)
  return target


def check_place(field: str, path: pathlib.Path) -> None:
  """Raises ConfigError unless a file may be put there: no folder, in one that is there. A store has no folders."""
  if isinstance(path, ObjectPath):
    return
  require(not path.is_dir(), field, str(path), "the name of a file, and this is a folder")
  require(path.parent.is_dir(), field, str(path), f"a folder that is there; make {path.parent}")


@contextlib.contextmanager
def storing(what: str) -> Iterator[None]:
  """Raises StorageError, which says what could not be written, why, and what to do, in place of an OSError inside."""
  try:
    yield
  except OSError as error:
    raise StorageError(f"{what} could not be written: {error}; {remedy(error.errno)}") from error


@contextlib.contextmanager
def shortages() -> Iterator[None]:
  """Raises StorageError in place of an error at whose root there was no room, or no more files could be opened."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    number = errno_of(error)
    if number not in _FULL | _MANY:
      raise
    raise StorageError(f"{os.strerror(number)} ({first_line(error)}); {remedy(number)}") from error


def errno_of(error: BaseException | None) -> int | None:
  """The system's number at the root of an error: its own, that of a cause, or one that a library tells in its text."""
  seen: list[BaseException] = []
  while error is not None and error not in seen:
    if isinstance(error, OSError) and error.errno:
      return error.errno
    if match := _NUMBER.search(str(error)):
      return int(match[1])
    for words, number in _TOLD.items():
      if words in str(error):
        return number
    seen.append(error)
    error = error.__cause__ or error.__context__
  return None


def first_line(error: BaseException) -> str:
  """The first line of an error from below, without pages of traces."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:300]


def is_full(error: OSError) -> bool:
  """Whether there was no room: on the disk, in the quota or in the largest file allowed."""
  return error.errno in _FULL


def is_denied(number: int | None) -> bool:
  """Whether a file that could not be read for this reason may be intact all the same."""
  return number in _DENIED


def remedy(number: int | None, closed: str = _REMEDY_CLOSED) -> str:
  """What to do about a failure of storage with this `errno`; `closed` where it is neither room nor open files."""
  if number in _MANY:
    import resource  # not there on every system

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"raise the limit of open files (ulimit -n, {limit} now) and run the same command to resume"
  return _REMEDY_FULL if number in _FULL else _REMEDIES.get(number or 0, closed)
