"""Reading files that others wrote: what they ask of memory is known, and bounded, before any of it is taken."""

import gzip
import json
import os
import pathlib
import re
import stat
from typing import Any

import numpy as np

from jpmhc_jax.core.errors import DataError

TEXT_LIMIT = 64 * 2**20  # bytes; tasks, configs and Python sources are a thousand times smaller
DEEPEST = 64  # brackets inside brackets; a task of ARC has 5
_KINDS = (
  (stat.S_ISDIR, "a folder"),
  (stat.S_ISCHR, "a character device"),
  (stat.S_ISBLK, "a block device"),
  (stat.S_ISFIFO, "a pipe"),
  (stat.S_ISSOCK, "a socket"),
)
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)


def check_regular(path: pathlib.Path, limit: int = TEXT_LIMIT) -> None:
  """Raises DataError, which names file, size and limit, unless it is a regular file of at most `limit` bytes.

  A link counts as what it points to. Raises OSError as `path.stat` does. Nothing is opened: a pipe would wait for ever.
  """
  about = path.stat()
  kind = next((words for test, words in _KINDS if test(about.st_mode)), "")
  if kind:
    raise DataError(f"{shown(path)}: is {kind}; expected a regular file")
  if about.st_size > limit:
    actual, most = size(about.st_size), size(limit)
    if actual == most:  # but for the digits that are left out
      actual, most = f"{about.st_size:,} bytes", f"{limit:,} bytes"
    raise DataError(f"{shown(path)}: {actual}; expected at most {most}: is it the file you mean?")


def read_bytes(path: pathlib.Path, limit: int = TEXT_LIMIT) -> bytes:
  """The content of a regular file of at most `limit` bytes; raises as `check_regular`, also where the file grows."""
  check_regular(path, limit)
  with path.open("rb") as file:
    content = file.read(limit + 1)
  if len(content) > limit:
    raise DataError(f"{shown(path)}: grows while it is read; expected at most {size(limit)}")
  return content


def read_json(path: pathlib.Path, remedy: str = "repair or remove the file", limit: int = TEXT_LIMIT) -> Any:
  """The value of a JSON file in UTF-8.

  Raises DataError, ending in `remedy`, for one that is no JSON, is nested more than `DEEPEST` levels deep, is larger
  than `limit` bytes or no regular file; OSError where it cannot be opened.
  """
  content = read_bytes(path, limit)
  levels = depth(content)
  if levels > DEEPEST:
    raise DataError(f"{shown(path)}: JSON nested {levels:,} levels deep; expected at most {DEEPEST}; {remedy}")
  try:
    return json.loads(content.decode("utf-8"))
  except ValueError as error:
    raise DataError(f"{shown(path)}: not readable as JSON ({error}); {remedy}") from error


def read_gzip(path: pathlib.Path, limit: int) -> bytes:
  """What a gzip file holds; raises as `check_regular` for more than `limit` bytes, EOFError for one that is cut off."""
  check_regular(path, limit)
  with gzip.open(path) as file:
    content = file.read(limit + 1)
  if len(content) > limit:
    raise DataError(f"{shown(path)}: holds more than {size(limit)}; expected at most so much: remove or repair it")
  return content


def json_line(line: str) -> dict[str, Any]:
  """The object in a line of JSON; an empty one where the line was cut off by a kill, is damaged or is no object."""
  try:
    value = json.loads(line)
  except (ValueError, RecursionError):
    return {}
  return value if isinstance(value, dict) else {}


def depth(content: bytes) -> int:
  """How many brackets of JSON lie inside each other at most; brackets in strings do not count."""
  bare = np.frombuffer(_STRINGS.sub(b"", content), np.uint8)
  brackets = bare[np.isin(bare, np.frombuffer(b"[]{}", np.uint8))]
  steps = np.where((brackets == ord("[")) | (brackets == ord("{")), np.int8(1), np.int8(-1))
  return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def memory_limit() -> int:
  """Bytes that data held in memory may take: a quarter of what this machine has, since it is copied on the way."""
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def size(count: int) -> str:
  """Bytes for people.

  >>> size(5 * 2**30)
  '5.0 GiB'
  """
  power = min(max(count.bit_length() - 1, 0) // 10, 8)
  unit = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")[power]
  return f"{count / 2 ** (10 * power):.1f} {unit}" if power else f"{count} bytes"


def shown(path: pathlib.Path | str) -> str:
  """A path as it may stand in a line of text: quoted and escaped if it has line breaks or bytes that are no UTF-8."""
  return str(path) if str(path).isprintable() else ascii(str(path))
