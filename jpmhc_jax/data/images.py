"""Images and their classes: scikit-learn's handwritten digits, or any .npz file with train and test arrays.

A file has the arrays x_train and x_test (n, height, width) or (n, height, width, channels) of uint8, y_train and y_test
(n,) of integers 0 … classes−1. The brightest pixel of x_train, which no pixel of x_test exceeds, scales all of them.
Without a file: the 1,797 digits of 8×8 pixels (0–16) that scikit-learn carries, from the UCI repository, a fifth of
them held out by a fixed draw.

Training draws one copy of every image an epoch, moved by up to `data.images.shift` pixels in each direction (what is
uncovered is 0) and mirrored if `data.images.mirror`. Class c is stored as label c + 1, since 0 is what padding holds.
"""

from collections.abc import Mapping
import dataclasses
import io
import lzma
import math
import pathlib
import struct
from typing import Any
import zipfile
import zlib

from jaxtyping import Int, UInt8
import numpy as np

from jpmhc_jax.config.schema import Data
from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.core.examples import ImageFormat
from jpmhc_jax.core.reading import check_regular, memory_limit, size
from jpmhc_jax.data.batches import BatchPlan, Split
from jpmhc_jax.data.dataset import Batch, digest
from jpmhc_jax.data.registry import register_dataset
from jpmhc_jax.data.tokens import TokenDataset

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MOST_CLASSES = 255  # labels are stored in a byte, 0 kept free
MOST_CHANNELS = 4  # a longer last axis behind a second one that is not longer is a width: the channels come first
_ENCRYPTED = 1  # bit of a zip member's flags
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_DAMAGE = (
  EOFError, OverflowError, RuntimeError, TypeError, ValueError, lzma.LZMAError, struct.error, zipfile.BadZipFile,
  zlib.error,
)  # fmt: skip
_HEADER_BYTES = 1 << 16  # numpy reads no header longer than 10,000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageDataset(TokenDataset):
  """Rows of pixel values with one label each, class + 1."""

  image: ImageFormat

  @property
  def label_length(self) -> int:
    """One."""
    return 1

  def example(self, batch: Batch, result: Mapping[str, np.ndarray], row: int) -> dict[str, Any] | None:
    """The picture with its class, beside the likeliest class."""
    image = self.image
    return {
      "kind": "images",
      "task": f"image {int(batch['index'][row])}",
      "test": 0,
      "input": batch["inputs"][row].reshape(image.height, image.width, image.channels).tolist(),
      "top": image.top,
      "truth": int(batch["labels"][row, 0]) - 1,
      "predictions": [{"class": int(result["predictions"][row, 0])}],
      "solved_at": 1 if result["accuracy"][row] else None,
    }


@register_dataset("images")
def build_images(config: Data, *, batch_size: int, seed: int) -> ImageDataset:
  """Reads the images and wraps them in batches.

  Raises ConfigError without scikit-learn, DataError for a file that is not as described.
  """
  options = config.images
  arrays = _read(pathlib.Path(options.file).expanduser()) if options.file else _digits()
  top = max(int(arrays["x_train"].max()), 1)
  classes = 1 + max(int(arrays[name].max()) for name in ("y_train", "y_test"))
  height, width, channels = arrays["x_train"].shape[1:]
  image = ImageFormat(height, width, channels, top, classes)
  moves = tuple((row, column) for row in _reach(options.shift) for column in _reach(options.shift))
  train = _split(arrays["x_train"], arrays["y_train"], moves, options.mirror)
  return ImageDataset(
    kind="images",
    side=0,
    length=image.values,
    vocab_size=top + 1,
    train=train,
    evaluation=_split(arrays["x_test"], arrays["y_test"], ((0, 0),), False),
    plan=BatchPlan(train, batch_size=batch_size, seed=seed, epochs=config.epochs_per_interval),
    content=digest("images", *arrays.values(), str(options.shift), str(options.mirror)),
    notes={"image": dataclasses.asdict(image)},
    image=image,
  )


def _reach(shift: int) -> list[int]:
  """0 first, so that copy 0 of an image is the image."""
  return sorted(range(-shift, shift + 1), key=abs)


def _digits() -> dict[str, np.ndarray]:
  try:
    from sklearn import datasets
  except ImportError as error:
    raise ConfigError(
      "data.images.file='': the digits are part of scikit-learn, which is not installed; pip install "
      "'jpmhc-jax[vision]', or name an .npz file"
    ) from error
  digits = datasets.load_digits()
  order = np.random.default_rng(0).permutation(len(digits.target))
  images, labels = digits.images.astype(np.uint8)[order, ..., None], digits.target.astype(np.int64)[order]
  held = len(order) // 5
  return dict(zip(ARRAYS, (images[held:], labels[held:], images[:held], labels[:held]), strict=True))


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
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


@dataclasses.dataclass(frozen=True)
class Images:
  """Example e is image e // copies under move e % moves; the second half of the copies is mirrored."""

  images: UInt8[np.ndarray, "n height width channels"]
  labels: Int[np.ndarray, "n"]
  moves: tuple[tuple[int, int], ...]
  mirror: bool

  @property
  def copies(self) -> int:
    """Examples of one image."""
    return len(self.moves) * (2 if self.mirror else 1)

  def __call__(self, examples: Int[np.ndarray, "b"]) -> tuple[UInt8[np.ndarray, "b s"], UInt8[np.ndarray, "b 1"]]:
    """Pixel values and class + 1 of the examples, one row each."""
    number, copy = np.divmod(examples, self.copies)
    mirrored, move = np.divmod(copy, len(self.moves))
    images = self.images[number]
    images = np.where(mirrored.astype(bool)[:, None, None, None], images[:, :, ::-1], images)
    by = np.asarray(self.moves)[move]
    height, width = images.shape[1:3]
    rows, columns = np.arange(height) - by[:, :1], np.arange(width) - by[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    across = np.arange(len(images))[:, None, None]
    moved = images[across, rows.clip(0, height - 1)[:, :, None], columns.clip(0, width - 1)[:, None]]
    pixels = np.where(inside[..., None], moved, 0).astype(np.uint8)
    return pixels.reshape(len(images), -1), (self.labels[number] + 1).astype(np.uint8)[:, None]


def _split(images: np.ndarray, labels: np.ndarray, moves: tuple[tuple[int, int], ...], mirror: bool) -> Split:
  encode = Images(images, labels, moves, mirror)
  examples = len(images) * encode.copies
  return Split(
    group_starts=np.arange(0, examples + 1, encode.copies),
    puzzle_starts=np.arange(examples + 1),
    identifiers=np.zeros(examples, np.int32),
    encode=encode,
  )
