"""What tells whether a checkpoint is whole and whether two states are equal.

The manifest of a checkpoint holds size and CRC-32 of every file, so that a damaged one is known before it is read. The
fingerprint of a state is one exact number for every leaf.
"""

import functools
import json
import os
import pathlib
from typing import Any
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32
import numpy as np

from jpmhc_jax.core.errors import StorageError
from jpmhc_jax.core.files import is_denied, remedy, sync_folder, to_json, write_atomically
from jpmhc_jax.training.hosts import distributed

NAME = "manifest.json"
_CHUNK = 1 << 24
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


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


def described(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
  """{name: (size, CRC-32)} of every file of a checkpoint: what its manifest holds."""
  return {name: _describe(folder / name) for name in _files(folder)}


def problem(folder: pathlib.Path) -> str | None:
  """What differs from the manifest: '' nothing, None there is no manifest (killed before it was written).

  Raises StorageError on every process where one may not read a file, which may be intact.
  """
  problems = distributed.gather(_problem(folder))
  if refusal := next((text for _, text in problems if text), ""):
    raise StorageError(refusal)
  if None in [text for text, _ in problems]:
    return None
  return next((text for text, _ in problems if text), "")


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


def fingerprint(tree: Any) -> list[int]:
  """Σᵢ h(bitsᵢ ⊕ h(i)) mod 2³² of every leaf; h is a bijection of 32-bit numbers that scatters their bits.

  Any single changed element changes it. Sums of integers do not depend on their order, so the numbers are the same on
  every mesh, device count and process count. Leaves of 1, 2 or 4 bytes an element.
  """
  leaves = jax.tree.leaves(tree)
  whole = next((leaf.sharding for leaf in leaves if isinstance(leaf, jax.Array)), None)
  mesh = getattr(whole, "mesh", None)
  layout = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return [int(value) for value in np.asarray(_compiled(layout)(leaves))]


@functools.lru_cache(maxsize=8)
def _compiled(layout: jax.sharding.NamedSharding | None) -> Any:
  return jax.jit(lambda leaves: jnp.stack([_number(jnp.asarray(leaf)) for leaf in leaves]), out_shardings=layout)


def _number(leaf: Array) -> UInt32[Array, ""]:
  if leaf.dtype == jnp.bool_:
    leaf = leaf.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(leaf, _WORDS[leaf.dtype.itemsize]).astype(jnp.uint32)
  position = jnp.zeros(leaf.shape, jnp.uint32)
  for axis, size in enumerate(leaf.shape):
    position = position * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
  return jnp.sum(_scattered(bits ^ _scattered(position)), dtype=jnp.uint32)


def _scattered(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
  """The 32-bit finaliser of MurmurHash3."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
