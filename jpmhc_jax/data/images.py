"""Images and their classes: scikit-learn's handwritten digits, or any .npz file with train and test arrays.

A file has the arrays x_train and x_test (n, height, width) or (n, height, width, channels) of uint8, y_train and y_test
(n,) of integers 0 … classes−1. Without a file: the 1,797 digits of 8×8 pixels (0–16) that scikit-learn carries, from
the UCI repository, a fifth of them held out by a fixed draw.

Training draws one copy of every image an epoch, moved by up to `data.images.shift` pixels in each direction (what is
uncovered is 0) and mirrored if `data.images.mirror`. Class c is stored as label c + 1, since 0 is what padding holds.
"""

import dataclasses
import pathlib
import zipfile
import zlib

from jaxtyping import Int, UInt8
import numpy as np

from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.core.images import ImageFormat
from jpmhc_jax.core.schema import Data
from jpmhc_jax.data.batches import BatchPlan, Split
from jpmhc_jax.data.dataset import BLANK, Dataset, digest

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MOST_CLASSES = 255  # labels are stored in a byte, 0 kept free


def build_images(config: Data, *, batch_size: int, seed: int) -> Dataset:
  """Reads the images and wraps them in batches.

  Raises ConfigError for a field out of range or without scikit-learn, DataError for a file that is not as described.
  """
  options = config.images
  if options.shift < 0:
    raise ConfigError(f"data.images.shift={options.shift}: expected a number of pixels, 0 for none.")
  arrays = _read(pathlib.Path(options.file)) if options.file else _digits()
  top = max(int(arrays["x_train"].max()), 1)
  classes = 1 + max(int(arrays[name].max()) for name in ("y_train", "y_test"))
  height, width, channels = arrays["x_train"].shape[1:]
  image = ImageFormat(height, width, channels, top, classes)
  moves = tuple((row, column) for row in _reach(options.shift) for column in _reach(options.shift))
  train = _split(arrays["x_train"], arrays["y_train"], moves, options.mirror)
  return Dataset(
    kind="images",
    side=0,
    length=image.values,
    vocab_size=top + 1,
    identifiers=[BLANK],
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
  try:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
      missing = [name for name in ARRAYS if name not in file]
      found = {} if missing else {name: file[name] for name in ARRAYS}
  except OSError as error:
    raise DataError(f"data.images.file={str(path)!r}: cannot be read ({error.strerror or error})") from error
  except (EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:  # numpy's words advise pickle
    raise DataError(
      f"data.images.file={str(path)!r}: is no .npz file of numbers, or is damaged; expected what "
      f"numpy.savez(file, {', '.join(f'{name}=…' for name in ARRAYS)}) writes"
    ) from error
  if missing:
    raise DataError(f"{path}: no array {', '.join(missing)}; expected {', '.join(ARRAYS)}")
  for side in ("train", "test"):
    images, labels = found[f"x_{side}"], found[f"y_{side}"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
      raise DataError(
        f"{path}: x_{side} is {images.dtype} of shape {images.shape}; expected uint8 (n, height, width[, channels])"
      )
    integers = np.issubdtype(labels.dtype, np.integer) and labels.shape in ((len(images),), (len(images), 1))
    if not integers or labels.min() < 0 or labels.max() >= MOST_CLASSES:
      raise DataError(
        f"{path}: y_{side} is {labels.dtype} of shape {labels.shape} from {labels.min()} to {labels.max()}; expected "
        f"one integer from 0 to {MOST_CLASSES - 1} for each of the {len(images)} images"
      )
    found[f"x_{side}"] = images.reshape(*images.shape[:3], -1)
    found[f"y_{side}"] = labels.reshape(-1).astype(np.int64)
  if found["x_train"].shape[1:] != found["x_test"].shape[1:]:
    raise DataError(
      f"{path}: images of {found['x_train'].shape[1:]} to train on and of {found['x_test'].shape[1:]} to test on; "
      "expected one size"
    )
  return found


@dataclasses.dataclass(frozen=True)
class Images:
  """Example e is image e // copies under move e % moves; the second half of the copies is mirrored."""

  images: UInt8[np.ndarray, "n height width channels"]
  labels: Int[np.ndarray, "n"]
  moves: tuple[tuple[int, int], ...]
  mirror: bool

  @property
  def copies(self) -> int:
    return len(self.moves) * (2 if self.mirror else 1)

  def __call__(self, examples: Int[np.ndarray, "b"]) -> tuple[UInt8[np.ndarray, "b s"], UInt8[np.ndarray, "b 1"]]:
    """Pixel values and class + 1 of the examples, one row each."""
    number, copy = np.divmod(examples, self.copies)
    mirrored, move = np.divmod(copy, len(self.moves))
    found = self.images[number]
    found = np.where(mirrored.astype(bool)[:, None, None, None], found[:, :, ::-1], found)
    by = np.asarray(self.moves)[move]
    height, width = found.shape[1:3]
    rows, columns = np.arange(height) - by[:, :1], np.arange(width) - by[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    across = np.arange(len(found))[:, None, None]
    moved = found[across, rows.clip(0, height - 1)[:, :, None], columns.clip(0, width - 1)[:, None]]
    pixels = np.where(inside[..., None], moved, 0).astype(np.uint8)
    return pixels.reshape(len(found), -1), (self.labels[number] + 1).astype(np.uint8)[:, None]


def _split(images: np.ndarray, labels: np.ndarray, moves: tuple[tuple[int, int], ...], mirror: bool) -> Split:
  encode = Images(images, labels, moves, mirror)
  examples = len(images) * encode.copies
  return Split(
    group_starts=np.arange(0, examples + 1, encode.copies),
    puzzle_starts=np.arange(examples + 1),
    identifiers=np.zeros(examples, np.int32),
    encode=encode,
  )
