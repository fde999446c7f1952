"""Images and their classes in an .npz file: x_train, x_test of uint8, y_train, y_test of integers.

The headers of the four arrays are looked at before one of them takes memory.
"""

from collections.abc import Mapping
import dataclasses
import io
import lzma
import math
import pathlib
import struct
import zipfile
import zlib

import numpy as np

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.reading import check_regular, memory_limit, size

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MOST_CLASSES = 1 << 16
MOST_CHANNELS = 4  # a longer last axis behind a second one that is not longer is a width: the channels come first
_ENCRYPTED = 1  # bit of a zip member's flags
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_DAMAGE = (
  EOFError, OverflowError, RuntimeError, TypeError, ValueError, lzma.LZMAError, struct.error, zipfile.BadZipFile,
  zlib.error,
)  # fmt: skip
_HEADER_BYTES = 1 << 16  # numpy reads no header longer than 10,000


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a file, as described above. Raises DataError before an array that is not takes memory."""
  try:
    check_regular(path, memory_limit())
    with zipfile.ZipFile(path) as archive:
      headers = {name: header for name in ARRAYS if (header := _header(archive, name, path))}
      _check_headers(path, headers)
      arrays = {name: _array(archive, name) for name in ARRAYS}
  except OSError as error:
    raise DataError(f"data.images.file={str(path)!r}: cannot be read ({error.strerror or error})") from error
  except _DAMAGE as error:  # numpy's own words advise pickle
    raise DataError(
      f"data.images.file={str(path)!r}: is no .npz file of numbers, or is damaged; expected what "
      f"numpy.savez(file, {', '.join(f'{name}=…' for name in ARRAYS)}) writes"
    ) from error
  for side in ("train", "test"):
    images, labels = arrays[f"x_{side}"], arrays[f"y_{side}"]
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
      raise DataError(
        f"{path}: y_{side} holds {labels.min()} to {labels.max()}; expected classes from 0 to {MOST_CLASSES - 1}"
      )
    arrays[f"x_{side}"] = images.reshape(*images.shape[:3], -1)
    arrays[f"y_{side}"] = labels.reshape(-1).astype(np.int64)
  brightest, top = int(arrays["x_test"].max()), int(arrays["x_train"].max())
  if brightest > top:
    raise DataError(
      f"{path}: x_test reaches {brightest}, x_train {top}, by which all pixels are scaled; expected one range: scale "
      "both sides alike before they are saved, or clip x_test"
    )
  return arrays


@dataclasses.dataclass(frozen=True)
class _Header:
  """What an array of a file says it is."""

  dtype: np.dtype
  shape: tuple[int, ...]

  @property
  def size(self) -> int:
    """Bytes of the array."""
    return math.prod(self.shape) * self.dtype.itemsize

  def __str__(self) -> str:
    return f"{self.dtype} of shape {self.shape}"


def _header(archive: zipfile.ZipFile, name: str, path: pathlib.Path) -> _Header | None:
  """None where there is no such array. Raises ValueError for what is no array of numbers."""
  member = archive.NameToInfo.get(f"{name}.npy")
  if member is None:
    return None
  if member.flag_bits & _ENCRYPTED or member.compress_type not in _COMPRESSIONS:
    way = "encrypted" if member.flag_bits & _ENCRYPTED else f"compressed by method {member.compress_type}"
    raise DataError(f"{path}: {name} is {way}; expected what numpy.savez or numpy.savez_compressed writes")
  with archive.open(member) as file:
    start = io.BytesIO(file.read(_HEADER_BYTES))
  read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
  version = np.lib.format.read_magic(start)
  try:
    shape, _, dtype = read[version](start)
  except (KeyError, MemoryError) as error:  # a version or a literal that numpy does not write
    raise ValueError(f"{name}: header of version {version}") from error
  if dtype.hasobject or min(shape, default=0) < 0:
    raise ValueError(f"{name}: {dtype} of shape {shape}")
  return _Header(dtype, shape)


def _check_headers(path: pathlib.Path, headers: Mapping[str, _Header]) -> None:
  missing = [name for name in ARRAYS if name not in headers]
  if missing:
    raise DataError(f"{path}: no array {', '.join(missing)}; expected {', '.join(ARRAYS)}")
  total, limit = sum(header.size for header in headers.values()), memory_limit()
  if total > limit:
    raise DataError(
      f"{path}: arrays of {size(total)}, x_train is {headers['x_train']}; expected at most {size(limit)}, a quarter of "
      "this machine's memory"
    )
  for side in ("train", "test"):
    images, labels = headers[f"x_{side}"], headers[f"y_{side}"]
    if images.dtype != np.uint8 or len(images.shape) not in (3, 4) or 0 in images.shape:
      raise DataError(f"{path}: x_{side} is {images}; expected uint8 (n, height, width[, channels]), none of them 0")
    if len(images.shape) == 4 and images.shape[1] <= MOST_CHANNELS < images.shape[3]:
      raise DataError(
        f"{path}: x_{side} is {images}, channels first as it seems; expected (n, height, width, channels): save "
        f"numpy.moveaxis(x_{side}, 1, 3)"
      )
    n = images.shape[0]
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((n,), (n, 1)):
      raise DataError(f"{path}: y_{side} is {labels}; expected one integer for each of the {n} images")
  train, test = (headers[f"x_{side}"].shape[1:] for side in ("train", "test"))
  if train != test:
    raise DataError(f"{path}: images of {train} to train on and of {test} to test on; expected one size")


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
  with archive.open(f"{name}.npy") as file:
    return np.lib.format.read_array(file, allow_pickle=False)
