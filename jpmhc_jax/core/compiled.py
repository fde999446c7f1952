"""The folder of compiled programs: what a kill or a full disk left cut off is removed.

JAX writes an entry in one go and never again: of one that is cut off it warns at every start, and compiles anew.
"""

import contextlib
import os
import pathlib
import time
import zlib

STAMP = ".checked"  # its time: what is older has been looked at
_ENTRIES = "*-cache"
_BEING_WRITTEN_S = 60.0  # a younger entry may be half written by a run that goes on
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def drop_damaged(folder: pathlib.Path) -> None:
  """Removes the entries of JAX's compilation cache that cannot be unpacked; looks only at those since the last time.

  A folder that cannot be read or written is left as it is.
  """
  with contextlib.suppress(OSError):
    stamp, now = folder / STAMP, time.time()
    since = stamp.stat().st_mtime if stamp.exists() else 0.0
    for path in folder.glob(_ENTRIES):
      if since <= path.stat().st_mtime < now - _BEING_WRITTEN_S and not is_whole(path.read_bytes()):
        path.unlink(missing_ok=True)
    stamp.touch()
    os.utime(stamp, (now - _BEING_WRITTEN_S,) * 2)


def is_whole(entry: bytes) -> bool:
  """Whether an entry can be unpacked; True for one that is packed in a way not known here."""
  if entry.startswith(_ZSTANDARD):
    try:
      import zstandard
    except ImportError:
      return True
    try:
      return bool(zstandard.ZstdDecompressor().decompress(entry))
    except zstandard.ZstdError:
      return False
  if entry.startswith(b"\x78"):
    try:
      return bool(zlib.decompress(entry))
    except zlib.error:
      return False
  return len(entry) >= len(_ZSTANDARD)
