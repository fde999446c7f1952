"""Paths that a user wrote, as absolute paths of this machine with `~` expanded.

Every path of the command line and of a config goes through `local`, once. Whoever gets it may change the current
folder, hand it to another process or keep it in a file.
"""

from collections.abc import Iterator
import contextlib
import errno
import glob
import os
import pathlib
import re

from jpmhc_jax.core.errors import WorkdirError
from jpmhc_jax.core.objects import is_address, ObjectPath

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NUMBERED = "/proc/self/fd"
_UNUSABLE = {errno.ENAMETOOLONG, errno.ELOOP}  # no later step makes such a path usable


def local(text: str) -> pathlib.Path:
  """The absolute path of a file or folder, which need not exist; symbolic links are kept.

  Raises ValueError with what was expected: for a URL, for `~` of a user without a home folder, for a relative path when
  the current folder was removed, for a name that is too long and for links that go in a circle.
  """
  if _URL.match(text):
    raise ValueError("a path on this machine, not a URL; mount the storage as a folder and name that")
  try:
    path = pathlib.Path(text).expanduser()
  except RuntimeError as error:
    raise ValueError("a path without ~, since no home folder is known for it; write the path in full") from error
  try:
    path = path.absolute()
  except FileNotFoundError as error:
    raise ValueError("an absolute path, since the current folder was removed") from error
  try:
    path.stat()
  except (OSError, ValueError) as error:  # ValueError: a zero byte
    if getattr(error, "errno", errno.ELOOP) in _UNUSABLE:
      raise ValueError(f"a path that the system takes ({getattr(error, 'strerror', error)})") from error
  return path


def stored(name: str | os.PathLike[str]) -> pathlib.Path:
  """Where a run is kept: the same, or the address of an object store's folder, s3://bucket/run or gs://bucket/run."""
  if isinstance(name, ObjectPath):
    return name
  text = os.fspath(name)
  if is_address(text):
    return ObjectPath(text)
  try:
    return local(text)
  except ValueError as error:
    if not _URL.match(text):
      raise
    raise ValueError("a path on this machine, s3://bucket/… or gs://bucket/…") from error


@contextlib.contextmanager
def plain(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Inside the block: an existing folder under an absolute path that libraries take as it stands.

  orbax reads *, ? and [ in a path as a pattern, tensorstore a backslash as a slash, and all text as UTF-8. They know
  such a folder by its number, as Linux has it: /proc/self/fd/7. Raises WorkdirError on systems without these.
  """
  path = folder.absolute()
  if not glob.has_magic(str(path)) and "\\" not in str(path) and _is_utf8(path):
    yield path
    return
  if not os.path.isdir(_NUMBERED):
    raise WorkdirError(
      f"{folder}: on this system expected a path in UTF-8 without * ? [ \\; rename it, or name a symbolic link to it"
    )
  number = os.open(path, os.O_RDONLY)
  try:
    yield pathlib.Path(_NUMBERED, str(number))
  finally:
    os.close(number)


def _is_utf8(path: pathlib.Path) -> bool:
  """Whether the system knows the path by the bytes that a library makes of its text."""
  return os.fsencode(path) == str(path).encode(errors="surrogatepass")


def file_and_variant(spec: str) -> tuple[pathlib.Path, str]:
  """`path/to/file.py:variant` as the file's absolute path and the variant, '' without one. Raises as `local` does."""
  name, suffix, variant = spec.rpartition(".py:")
  return (local(name + ".py"), variant) if suffix and os.sep not in variant else (local(spec), "")
