"""The manifest of a checkpoint: size and CRC-32 of every file, so that a damaged one is known before it is read."""

import json
import os
import pathlib
import zlib

import jax

from jpmhc_jax.core.errors import StorageError
from jpmhc_jax.core.files import is_denied, remedy, sync_folder, to_json, write_atomically
from jpmhc_jax.training.hosts import distributed

NAME = "manifest.json"
_CHUNK = 1 << 24


def write(folder: pathlib.Path) -> None:
  """Describes the files of a complete checkpoint, and returns when they are on the disk itself.

  With several processes each reads its part of them.
  """
  described = {name: _describe(folder / name, durable=True) for name in _mine(_files(folder))}
  parts = distributed.gather(described)
  if distributed.is_primary():
    write_atomically(folder / NAME, to_json({name: value for part in parts for name, value in part.items()}))
    for path in (*filter(pathlib.Path.is_dir, folder.rglob("*")), folder, folder.parent):
      sync_folder(path)
  distributed.barrier("manifest")


def problem(folder: pathlib.Path) -> str | None:
  """What differs from the manifest: '' nothing, None there is no manifest (killed before it was written).

  Raises StorageError on every process where one may not read a file, which may be intact.
  """
  found = distributed.gather(_problem(folder))
  if refused := next((text for _, text in found if text), ""):
    raise StorageError(refused)
  if None in [text for text, _ in found]:
    return None
  return next((text for text, _ in found if text), "")


def _problem(folder: pathlib.Path) -> tuple[str | None, str]:
  """(what differs, why it cannot be known)."""
  try:
    return _difference(folder), ""
  except OSError as error:
    cure = remedy(error.errno, "make it readable, and run the same command again")
    return "", f"{error.filename} could not be read: {error.strerror}; {cure}"


def _difference(folder: pathlib.Path) -> str | None:
  try:
    expected = json.loads((folder / NAME).read_text())
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    _raise_if_denied(error)
    return f"{NAME}: {error}"
  for name in _mine(sorted(expected)):
    try:
      size, crc = _describe(folder / name)
    except OSError as error:
      _raise_if_denied(error)
      return f"{name}: {error.strerror}"
    if size != expected[name][0]:
      return f"{name}: {size} bytes of {expected[name][0]}"
    if crc != expected[name][1]:
      return f"{name}: its content changed (CRC-32 {crc:08x}, expected {expected[name][1]:08x})"
  return ""


def _raise_if_denied(error: Exception) -> None:
  if isinstance(error, OSError) and is_denied(error.errno):
    raise error


def _files(folder: pathlib.Path) -> list[str]:
  return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != NAME)


def _mine(names: list[str]) -> list[str]:
  return names[jax.process_index() :: jax.process_count()]


def _describe(path: pathlib.Path, durable: bool = False) -> tuple[int, int]:
  size = crc = 0
  with path.open("rb") as file:
    if durable:
      os.fsync(file.fileno())  # some µs where tensorstore has done it
    while chunk := file.read(_CHUNK):
      size, crc = size + len(chunk), zlib.crc32(chunk, crc)
  return size, crc
