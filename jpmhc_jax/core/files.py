"""Files that a kill cannot leave half-written, and storage failures in words."""

from collections.abc import Iterator
import contextlib
import errno
import itertools
import os
import pathlib

from jpmhc_jax.core.errors import StorageError

DAMAGED = "damaged"  # the folder of a workdir for what is kept aside
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REMEDY_FULL = "free space (or raise the quota) and run the same command to resume"
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
