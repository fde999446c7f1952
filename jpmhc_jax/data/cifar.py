"""CIFAR-10 and CIFAR-100 in the files that people have: 32×32 pixels in three channels, 10 classes or 100 fine ones.

| training | held out | version |
|---|---|---|
| data_batch_1.bin … data_batch_5.bin | test_batch.bin | CIFAR-10, binary: label, 3,072 pixels |
| train.bin | test.bin | CIFAR-100, binary: coarse label, label, 3,072 pixels |
| data_batch_1 … data_batch_5 | test_batch | CIFAR-10 for Python: pickles |
| train | test | CIFAR-100 for Python |

A pickle may name NumPy's array and dtype and nothing else, and neither is run: what they stand for here takes bytes.
Source: Krizhevsky 2009.
"""

from collections.abc import Mapping
import io
import math
import pathlib
import pickle
from typing import Any

from jaxtyping import Int, UInt8
import numpy as np

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.reading import read_bytes, shown
from jpmhc_jax.data.image_archive import ARRAYS

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # of CIFAR-10
SHAPE = (3, 32, 32)  # of an image in the files: channels first
_FILES = {
  10: (tuple(f"data_batch_{k}" for k in range(1, 6)), ("test_batch",)),
  100: (("train",), ("test",)),
}
_LIMIT = 1 << 28  # bytes of a file; the largest has 155 MB
Images = tuple[UInt8[np.ndarray, "n 32 32 3"], Int[np.ndarray, "n"]]


def version(folder: pathlib.Path) -> tuple[int, str] | None:
  """(classes, suffix of the files) of what a folder holds; None where it holds no CIFAR."""
  for classes, (train, _) in _FILES.items():
    for suffix in (".bin", ""):
      if (folder / f"{train[0]}{suffix}").is_file():
        return classes, suffix
  return None


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """x_train, y_train, x_test and y_test. Raises DataError, which names the file, for what is missing or no CIFAR."""
  kind = version(folder)
  assert kind is not None, "a folder of CIFAR"
  classes, suffix = kind
  sides = []
  for names in _FILES[classes]:
    parts = [_file(folder / f"{name}{suffix}", classes) for name in names]
    sides += [np.concatenate([part[k] for part in parts]) for k in range(2)]
  return dict(zip(ARRAYS, sides, strict=True))


def _file(path: pathlib.Path, classes: int) -> Images:
  try:
    content = read_bytes(path, _LIMIT)
  except OSError as error:
    raise DataError(
      f"data.images.folder: {shown(path)}: cannot be read ({error.strerror or error}); expected all files of "
      f"CIFAR-{classes}"
    ) from error
  pixels, labels = (_binary if path.suffix == ".bin" else _pickled)(content, path, classes)
  if not len(labels) or len(labels) != len(pixels) or labels.min() < 0 or labels.max() >= classes:
    raise DataError(
      f"{shown(path)}: {len(labels)} labels of {len(pixels)} images; expected one from 0 to {classes - 1} each"
    )
  return np.ascontiguousarray(pixels.reshape(-1, *SHAPE).transpose(0, 2, 3, 1)), labels


def _binary(content: bytes, path: pathlib.Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
  labels, size = (1 if classes == 10 else 2), math.prod(SHAPE)
  if len(content) % (size + labels):
    raise DataError(
      f"{shown(path)}: {len(content):,} bytes; expected a multiple of {size + labels:,}, one image and its label each"
    )
  rows = np.frombuffer(content, np.uint8).reshape(-1, size + labels)
  return rows[:, labels:], rows[:, labels - 1].astype(np.int64)


def _pickled(content: bytes, path: pathlib.Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
  try:
    batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    pixels, labels = batch[b"data"], batch[b"labels" if classes == 10 else b"fine_labels"]
    values = pixels.values.reshape(-1, math.prod(SHAPE))
    return values, np.array([int(label) for label in labels], np.int64)
  except _Refused as refused:
    raise DataError(
      f"{shown(path)}: names {refused}; expected the file as it is published, which holds arrays"
    ) from refused
  except (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    OverflowError,
  ) as error:
    raise DataError(
      f"{shown(path)}: is no batch of CIFAR-{classes} for Python, or is damaged; copy it again"
    ) from error


class _Refused(Exception):
  """The pickle names something that is no array."""


class _Dtype:
  """Of an array in a pickle; only that of bytes is taken."""

  def __init__(self, name: Any, *_: Any):
    self.name = name.decode() if isinstance(name, bytes) else name

  def __setstate__(self, state: Any) -> None:
    """Byte order and the like: nothing that bytes have."""


class _Array:
  """An array in a pickle: its bytes."""

  values: UInt8[np.ndarray, "..."]

  def __setstate__(self, state: Any) -> None:
    _, shape, dtype, fortran, content = state
    if not isinstance(dtype, _Dtype) or dtype.name != "u1" or fortran or not isinstance(content, bytes):
      raise _Refused(f"an array of {getattr(dtype, 'name', dtype)!r}")
    self.values = np.frombuffer(content, np.uint8).reshape(shape)


_CONSTRUCTORS: Mapping[tuple[str, str], Any] = {
  ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
  ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
  ("numpy", "ndarray"): _Array,
  ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
  """A pickle in which only `_CONSTRUCTORS` exist."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _CONSTRUCTORS:
      raise _Refused(f"{module}.{name}")
    return _CONSTRUCTORS[module, name]
