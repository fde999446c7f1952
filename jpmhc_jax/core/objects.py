"""Files of an object store, s3://bucket/key or gs://bucket/key, under the names that pathlib gives to files of a disk.

An `ObjectPath` takes the place of a `pathlib.Path` wherever a workdir is meant: folders are prefixes of keys and need
not be made, a write is one request that a reader sees whole or not at all, and what would hand the path to the system
(`open`, `os.stat`, NumPy) raises TypeError. A file that ends in .jsonl may also grow: stores cannot append, so what is
added lies in objects of its own under `name.jsonl.parts/`, and reading joins them.

Credentials and endpoint come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL (MinIO, Ceph, …); GOOGLE_APPLICATION_CREDENTIALS, or the account of the machine. obstore, the Rust
`object_store` behind it, tries again what fails for a moment.
"""

from collections.abc import Callable, Generator, Iterator
import concurrent.futures
import contextlib
import datetime
import errno
import fnmatch
import functools
import glob
import io
import os
import pathlib
import re
import secrets
import stat
import time
from typing import Any

from jpmhc_jax.core.errors import ConfigError

RETRY_S = 120.0  # a connection that is lost for longer ends the run
FLUSH_S = 10.0  # so much of a growing file may be missing for its readers
MOST_PARTS = 100  # more are joined into one object
_ADDRESS = re.compile(r"(s3|gs)://[^/?#\s]+(/|$)")
_ROOT = re.compile(r"^(s3|gs):/(?!/)")
_PARTS = ".parts"
_AT_ONCE = 8  # requests, of a folder that is copied
_STATUS, _SAID = re.compile(r"status code: (\d+)"), re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
# The system's number for what a store answers: see `files.remedy`.
_NUMBERS = {"401": errno.EKEYREJECTED, "403": errno.EKEYREJECTED, "404": errno.ENOENT}


def is_address(text: str) -> bool:
  """Whether a text names an object store's files: s3://bucket/… or gs://bucket/…."""
  return bool(_ADDRESS.match(text))


class ObjectPath(pathlib.PosixPath):
  """A file or folder of an object store; what it does not do raises, and nothing of it touches this machine's disk.

  >>> path = ObjectPath("s3://bucket/runs") / "first" / "config.json"
  >>> str(path), path.name, str(path.parent)
  ('s3://bucket/runs/first/config.json', 'config.json', 's3://bucket/runs/first')
  """

  def __str__(self) -> str:
    return _ROOT.sub(r"\1://", super().__str__(), count=1)

  def __fspath__(self) -> str:
    raise TypeError(f"{self} is no file of this machine: read and write it by the methods of its path or by core.files")

  def is_absolute(self) -> bool:
    """True: an address is whole."""
    return True

  def absolute(self) -> "ObjectPath":
    """Itself."""
    return self

  def resolve(self, strict: bool = False) -> "ObjectPath":
    """Itself: a store has no links."""
    return self

  @property
  def key(self) -> str:
    """The name in the bucket."""
    return "/".join(self.parts[2:])

  # Reading ----------------------------------------------------------------------------------------------------------

  def read_bytes(self) -> bytes:
    """The whole content. Raises FileNotFoundError, or another OSError, as every method here."""
    content = self._get()[0]
    return content + b"".join(part._get()[0] for part in self._added())

  def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
    """The content as UTF-8."""
    return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

  def open(self, mode: str = "r", *_: Any, encoding: str | None = None, errors: str | None = None, **__: Any) -> Any:
    """The content as a file to read; `core.files` writes."""
    if mode not in ("r", "rb"):
      raise io.UnsupportedOperation(f"{self}: opened with {mode!r}; a store takes whole files: core.files writes them")
    content = io.BytesIO(self.read_bytes())
    return content if mode == "rb" else io.TextIOWrapper(content, encoding or "utf-8", errors)

  def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
    """Kind, size and time of the last write on the store's clock; of a folder only that it is one."""
    try:
      meta = self._call(lambda library, store: library.head(store, self.key))
    except FileNotFoundError:
      if not self.is_dir():
        raise
      return os.stat_result((stat.S_IFDIR | 0o755, *(0,) * 9))
    seconds: float = meta["last_modified"].timestamp()
    size = meta["size"] + sum(part.stat().st_size for part in self._added())
    whole = (stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, size, *(int(seconds),) * 3)
    fractions: Any = {"st_mtime": seconds, "st_mtime_ns": round(seconds * 1e3) * 10**6}
    return os.stat_result(whole, fractions)

  def exists(self, *, follow_symlinks: bool = True) -> bool:
    """Whether there is a file or a folder of this name."""
    return self.is_file() or self.is_dir()

  def is_file(self, *, follow_symlinks: bool = True) -> bool:
    """Whether there is an object of this name."""
    try:
      self._call(lambda library, store: library.head(store, self.key))
    except FileNotFoundError:
      return False
    return True

  def is_dir(self, *, follow_symlinks: bool = True) -> bool:
    """Whether a name of an object begins with this one and a slash."""
    return next(self._below(chunk=1), None) is not None

  def iterdir(self) -> Generator["ObjectPath", None, None]:
    """Files and folders right inside."""
    return self.glob("*")

  def glob(self, pattern: str, **_: Any) -> Generator["ObjectPath", None, None]:  # type: ignore[override]
    """Files and folders inside whose relative names fit, in order; each part of the pattern stands for one part."""
    wanted = pattern.split("/")
    if len(wanted) > 1 and not glob.has_magic(wanted[0]):
      yield from (self / wanted[0]).glob("/".join(wanted[1:]))
      return
    names = sorted({names[: len(wanted)] for names, _ in self._below() if len(names) >= len(wanted)})
    yield from (self.joinpath(*parts) for parts in names if all(map(fnmatch.fnmatchcase, parts, wanted)))

  # Writing ----------------------------------------------------------------------------------------------------------

  def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
    """Nothing: a folder is there as soon as a file is in it."""

  def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
    """Makes an empty file, or one that has just been written."""
    self.write_bytes(b"")

  def write_bytes(self, data: Any) -> int:
    """Replaces the file, parts that were added to it included."""
    self._put(data, self._added())
    return len(data)

  def add(self, data: bytes, name: str) -> None:
    """Adds a part to a growing file, behind those whose names are smaller."""
    (self.with_name(self.name + _PARTS) / name)._put(data, [])

  def join(self) -> None:
    """Makes one object of a growing file and its parts; those that are added meanwhile stay."""
    if parts := self._added():
      self._put(b"".join([self._get()[0], *(part._get()[0] for part in parts)]), parts)

  def write_text(self, data: str, *_: Any, **__: Any) -> int:
    """Replaces the file by a text in UTF-8."""
    return self.write_bytes(data.encode())

  def create(self, data: bytes) -> bool:
    """Writes a file that is not there yet; False where another has written other content under the name."""
    return self._put_if(data, "create") or self.read_bytes() == data  # it may have got through, and its answer not

  def exchange(self, old: bytes, new: bytes) -> bool:
    """Replaces a file that has this content; False where it has another or is gone. No other write comes between."""
    try:
      content, meta = self._get()
    except FileNotFoundError:
      return False
    version = {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}
    return content == old and self._put_if(new, version)

  def unlink(self, missing_ok: bool = False) -> None:
    """Removes the file."""
    if not missing_ok:
      self.stat()  # stores do not say whether there was one
    with contextlib.suppress(FileNotFoundError):
      self._call(lambda library, store: library.delete(store, self.key))

  def replace(self, target: Any) -> Any:
    """Moves a file, or everything in a folder; not at once."""
    if not isinstance(target, ObjectPath) or target.parts[:2] != self.parts[:2]:
      raise OSError(errno.EXDEV, "Another store", str(target))
    for name in self._names():
      (self / name)._copy(target / name)
      (self / name).unlink(missing_ok=True)
    return target

  def remove_all(self) -> None:
    """Removes everything in the folder."""
    for name in self._names():
      (self / name).unlink(missing_ok=True)

  def upload(self, folder: pathlib.Path) -> None:
    """Copies the files of a local folder here; returns when all are there."""

    def send(name: pathlib.Path) -> None:
      self._call(lambda library, store: library.put(store, (self / name).key, folder / name))

    self._all([path.relative_to(folder) for path in folder.rglob("*") if path.is_file()], send)

  def download(self, folder: pathlib.Path) -> None:
    """Copies everything in this folder to a local one."""

    def fetch(name: str) -> None:
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      with (folder / name).open("wb") as file:
        self._call(lambda library, store: file.writelines(library.get(store, (self / name).key)))

    self._all(self._names(), fetch)

  # What stands behind -------------------------------------------------------------------------------------------------

  def _get(self) -> tuple[bytes, Any]:
    """(content, what the store says of this version of it)."""

    def get(library: Any, store: Any) -> tuple[bytes, Any]:
      result = library.get(store, self.key)
      return bytes(result.bytes()), result.meta

    return self._call(get)

  def _copy(self, target: "ObjectPath") -> None:
    self._call(lambda library, store: library.copy(store, self.key, target.key))

  def _put(self, data: Any, superseded: list["ObjectPath"]) -> None:
    self._call(lambda library, store: library.put(store, self.key, data))
    for part in superseded:  # a kill before this leaves lines twice, which readers take as one
      part.unlink(missing_ok=True)

  def _put_if(self, data: bytes, mode: Any) -> bool:
    try:
      self._call(lambda library, store: library.put(store, self.key, data, mode=mode))
    except FileExistsError:
      return False
    return True

  def _added(self) -> list["ObjectPath"]:
    """The parts that were added to a growing file, in order."""
    return list(self.with_name(self.name + _PARTS).glob("*")) if self.suffix == ".jsonl" else []

  def _names(self) -> list[str]:
    return ["/".join(names) for names, _ in self._below()] or ([""] if self.is_file() else [])

  def _below(self, chunk: int = 1000) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(name as parts relative to this folder, what the store says of it) of every object in it."""
    prefix = f"{self.key}/" if self.key else ""
    stream = self._call(lambda library, store: library.list(store, prefix or None, chunk_size=chunk))
    while batch := self._call(lambda library, store: next(stream, None)):
      yield from ((tuple(meta["path"].removeprefix(prefix).split("/")), meta) for meta in batch)

  def _all(self, names: Any, act: Callable[[Any], Any]) -> None:
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
      for _ in pool.map(act, names):
        pass

  def _call(self, act: Callable[[Any, Any], Any]) -> Any:
    """What a request answers; what fails is an OSError with the address and a number."""
    bucket = self.parts[:2]
    library, store = _library(str(self)), _store(*bucket, 0.0 if bucket in _lost else RETRY_S)
    try:
      answer = act(library, store)
      _lost.discard(bucket)
      return answer
    except (library.exceptions.AlreadyExistsError, library.exceptions.PreconditionError) as error:
      raise FileExistsError(errno.EEXIST, "Another version is there", str(self)) from error
    except (library.exceptions.BaseError, OSError) as error:
      number, words = _told(error)
      if number == errno.ENOLINK:
        _lost.add(bucket)
      raise OSError(number, words, str(self)) from error


class Growing:
  """A .jsonl file of a store that grows, by one object at a time.

  write: keeps bytes and sends them every `FLUSH_S` seconds; sync: sends them now. What a failed request had of them is
  not sent again: the error ends the run, which writes these lines anew when it resumes.
  """

  def __init__(self, path: ObjectPath):
    self._path, self._kept, self._sent, self._parts = path, bytearray(), -FLUSH_S, 0
    self._last, self._writer = 0, secrets.token_hex(4)

  def write(self, data: Any) -> int:
    """Takes all of the bytes."""
    self._kept += data
    if time.monotonic() - self._sent >= FLUSH_S:
      self.sync()
    return len(data)

  def sync(self) -> None:
    """Returns when a reader finds what was written."""
    kept, self._kept, self._sent = bytes(self._kept), bytearray(), time.monotonic()
    if kept:
      self._last = max(self._last + 1, time.time_ns())  # of one that was overtaken another name
      self._path.add(kept, f"{self._last:020d}.{self._writer}")
      self._parts += 1
    if self._parts >= MOST_PARTS:
      self._join()

  def close(self) -> None:
    """Sends the rest, and leaves one object."""
    self.sync()
    self._join()

  def _join(self) -> None:
    self._path.join()
    self._parts = 0


def _told(error: Exception) -> tuple[int, str]:
  """(number, words) of what obstore raises: an answer of the store, or none, which is a connection that is lost."""
  text, first = str(error), str(error).partition("\n")[0][:300]
  if isinstance(error, OSError) and error.errno:  # of a file of this machine
    return error.errno, os.strerror(error.errno)
  status, said = _STATUS.search(text), _SAID.search(text)
  if status is None:
    return errno.ENOLINK, first
  number = _NUMBERS.get(status[1], errno.EIO)
  return number, said[1].rstrip(".") if said else first if number == errno.EIO else os.strerror(number)


# Buckets whose last request was tried again in vain: the next is tried once, so that a run that ends for it does end.
_lost: set[tuple[str, ...]] = set()


@functools.cache
def _library(address: str) -> Any:
  try:
    import obstore
    import obstore.exceptions
  except ImportError as error:
    raise ConfigError(f"{address}: obstore is not installed; pip install 'jpmhc-jax[cloud]'") from error
  return obstore


@functools.cache
def _store(scheme: str, bucket: str, patience_s: float) -> Any:
  from obstore.store import from_url

  plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
  return from_url(
    f"{scheme}//{bucket}",
    client_options={"allow_http": plain, "connect_timeout": "10s", "timeout": "600s"},
    retry_config={"max_retries": 1000 if patience_s else 0, "retry_timeout": datetime.timedelta(seconds=patience_s)},
  )
