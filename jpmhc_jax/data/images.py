"""Images and their classes: scikit-learn's digits, generated shapes, arrays in a file, CIFAR, folders of pictures.

| source | images |
|---|---|
| data.images.file | .npz: x_train, x_test (n, height, width[, channels]) of uint8, y_train, y_test (n,) of classes |
| data.images.folder | CIFAR's files (`cifar`), or train and val with a folder of pictures a class (`image_folder`) |
| builtin=digits | the 1,797 digits of 8×8 pixels (0–16) of scikit-learn, a fifth held out by a fixed draw |
| builtin=shapes | 32×32 pictures of ten shapes, drawn anew (`shapes`) |
| builtin=noise | noise of data.images.size: nothing to learn, for plans and for timing before the data is there |

All but the folder of pictures and the noise lie in memory. Of them training draws one copy of every image an epoch,
moved by up to `data.images.shift` pixels in each direction (what is uncovered is 0) and mirrored if
`data.images.mirror`. The brightest pixel to train on, which none held out exceeds, scales all of them. Class c, from 0,
is stored as label c + 1, since 0 is what padding holds.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

from jaxtyping import Int, UInt8
import numpy as np

from jpmhc_jax.config.schema import Data, ImageData
from jpmhc_jax.core.errors import ConfigError, require
from jpmhc_jax.core.examples import IGNORED, ImageFormat, PAD
from jpmhc_jax.data import cifar, image_archive, shapes
from jpmhc_jax.data.batches import BatchPlan, Split
from jpmhc_jax.data.dataset import Batch, digest, ElementSpec
from jpmhc_jax.data.image_archive import ARRAYS
from jpmhc_jax.data.registry import register_dataset
from jpmhc_jax.data.tokens import TokenDataset

_LISTED = 100  # classes up to which their names stand among the facts of a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageDataset(TokenDataset):
  """Rows of pixel values with one label each, class + 1; a split's `encode` gives both.

  Batches: inputs (b, height·width·channels), labels (b, 1) and puzzle_identifiers (b,) int32. classes: their names,
  where they have some. pixel: dtype of the inputs. Bytes until they are on the device, but int32 for the two sources
  of version 0.1, whose checkpoints hold a batch.
  """

  image: ImageFormat
  classes: Sequence[str] = ()
  pixel: str = "uint8"

  @classmethod
  def of(
    cls,
    config: Data,
    image: ImageFormat,
    train: Split,
    evaluation: Split,
    content: str,
    *,
    batch_size: int,
    seed: int,
    classes: Sequence[str] = (),
    **more: Any,
  ) -> Any:
    """A data set of this class over two splits of images.

    content: hash of all that they are made of. more: further fields of the class.
    """
    return cls(
      kind="images",
      side=0,
      length=image.values,
      vocab_size=image.top + 1,
      train=train,
      evaluation=evaluation,
      plan=BatchPlan(train, batch_size=batch_size, seed=seed, epochs=config.epochs_per_interval),
      content=content,
      notes=_notes(image, classes),
      image=image,
      classes=classes,
      **more,
    )

  @property
  def label_length(self) -> int:
    """One."""
    return 1

  @functools.cached_property
  def element_spec(self) -> Mapping[str, ElementSpec]:
    """Pixel values in their own dtype."""
    return {**super().element_spec, "inputs": ElementSpec((self.image.values,), np.dtype(self.pixel))}

  def read(self, split: Split, examples: Int[np.ndarray, "b"]) -> Batch:
    """See the class."""
    inputs, labels = split.encode(examples)
    inputs = inputs.astype(self.pixel, copy=False)
    labels = np.where(labels == PAD, IGNORED, labels).astype(np.int32)
    identifiers = split.identifiers[split.puzzle_of(examples)].astype(np.int32)
    return {"inputs": inputs, "labels": labels, "puzzle_identifiers": identifiers}

  def example(self, batch: Batch, result: Mapping[str, np.ndarray], row: int) -> dict[str, Any] | None:
    """The picture with its class, beside the likeliest class."""
    image = self.image
    return {
      "kind": "images",
      "task": self.title(int(batch["index"][row])),
      "test": 0,
      "input": batch["inputs"][row].reshape(image.height, image.width, image.channels).tolist(),
      "top": image.top,
      "truth": self.name_of(int(batch["labels"][row, 0]) - 1),
      "predictions": [{"class": self.name_of(int(result["predictions"][row, 0]))}],
      "solved_at": 1 if result["accuracy"][row] else None,
    }

  def title(self, example: int) -> str:
    """What the report calls a held-out image."""
    return f"image {example}"

  def name_of(self, number: int) -> str | int:
    """The class's name, or its number."""
    return self.classes[number] if number < len(self.classes) else number


@register_dataset("images")
def build_images(config: Data, *, batch_size: int, seed: int) -> ImageDataset:
  """Reads the images and wraps them in batches.

  Raises ConfigError without scikit-learn or Pillow where they are needed, and for a file beside a folder; DataError for
  files that are not as described.
  """
  options = config.images
  require(not (options.file and options.folder), "data.images.folder", options.folder, "'' beside data.images.file")
  if options.folder and not cifar.version(pathlib.Path(options.folder)):
    from jpmhc_jax.data import image_folder  # Pillow, which the library does without

    return image_folder.build(config, batch_size=batch_size, seed=seed)
  if not (options.file or options.folder) and options.builtin == "noise":
    return _noise(config, batch_size, seed)
  arrays, classes = _arrays(options)
  top = max(int(arrays["x_train"].max()), 1)
  count = 1 + max(int(arrays[name].max()) for name in ("y_train", "y_test"))
  height, width, channels = arrays["x_train"].shape[1:]
  image = ImageFormat(height, width, channels, top, count)
  moves = tuple((row, column) for row in _reach(options.shift) for column in _reach(options.shift))
  train = _split(arrays["x_train"], arrays["y_train"], moves, options.mirror)
  return ImageDataset.of(
    config,
    image,
    train,
    _split(arrays["x_test"], arrays["y_test"], ((0, 0),), False),
    digest("images", *arrays.values(), str(options.shift), str(options.mirror)),
    batch_size=batch_size,
    seed=seed,
    classes=classes,
    pixel="int32" if options.file or not (options.folder or options.builtin != "digits") else "uint8",
  )


def _arrays(options: ImageData) -> tuple[dict[str, np.ndarray], Sequence[str]]:
  """(the four arrays, names of the classes)."""
  if options.file:
    return image_archive.read(pathlib.Path(options.file)), ()
  if options.folder:
    arrays = cifar.read(pathlib.Path(options.folder))
    return arrays, cifar.NAMES if arrays["y_train"].max() < len(cifar.NAMES) else ()
  if options.builtin == "shapes":
    train, held = shapes.draw(options.shapes, seed=0), shapes.draw(-(-options.shapes // 4), seed=1)
    return dict(zip(ARRAYS, (*train, *held), strict=True)), shapes.NAMES
  return _digits(), ()


def _notes(image: ImageFormat, classes: Sequence[str]) -> dict[str, Any]:
  """Facts for `describe`: the format, and the names of the classes where there are some and not too many to list."""
  return {"image": dataclasses.asdict(image)} | ({"classes": list(classes)} if 0 < len(classes) <= _LISTED else {})


def _reach(shift: int) -> list[int]:
  """0 first, so that copy 0 of an image is the image."""
  return sorted(range(-shift, shift + 1), key=abs)


def _digits() -> dict[str, np.ndarray]:
  try:
    from sklearn import datasets
  except ImportError as error:
    raise ConfigError(
      "data.images.builtin='digits': they are part of scikit-learn, which is not installed; pip install "
      "'jpmhc-jax[vision]', or name a file or a folder"
    ) from error
  digits = datasets.load_digits()
  order = np.random.default_rng(0).permutation(len(digits.target))
  images, labels = digits.images.astype(np.uint8)[order, ..., None], digits.target.astype(np.int64)[order]
  held = len(order) // 5
  return dict(zip(ARRAYS, (images[held:], labels[held:], images[:held], labels[:held]), strict=True))


@dataclasses.dataclass(frozen=True)
class Noise:
  """Example e is noise drawn from e, of class e modulo their number."""

  image: ImageFormat

  def __call__(self, examples: Int[np.ndarray, "b"]) -> tuple[UInt8[np.ndarray, "b s"], Int[np.ndarray, "b 1"]]:
    """Pixel values and class + 1 of the examples, one row each."""
    rows = [np.random.default_rng(int(e)).integers(0, 256, self.image.values, np.uint8) for e in examples]
    labels = (examples % self.image.classes + 1).astype(np.int32)[:, None]
    return np.stack(rows) if rows else np.zeros((0, self.image.values), np.uint8), labels


def _noise(config: Data, batch_size: int, seed: int) -> ImageDataset:
  options = config.images
  image = ImageFormat(options.size, options.size, 3, 255, options.classes)
  train = Split.of_singles(max(10 * options.classes, batch_size), Noise(image))
  held = Split.of_singles(options.classes, Noise(image))
  return ImageDataset.of(config, image, train, held, digest("noise", str(image)), batch_size=batch_size, seed=seed)


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

  def __call__(self, examples: Int[np.ndarray, "b"]) -> tuple[UInt8[np.ndarray, "b s"], Int[np.ndarray, "b 1"]]:
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
    return pixels.reshape(len(images), -1), (self.labels[number] + 1).astype(np.int32)[:, None]


def _split(images: np.ndarray, labels: np.ndarray, moves: tuple[tuple[int, int], ...], mirror: bool) -> Split:
  encode = Images(images, labels, moves, mirror)
  examples = len(images) * encode.copies
  return Split(
    group_starts=np.arange(0, examples + 1, encode.copies),
    puzzle_starts=np.arange(examples + 1),
    identifiers=np.zeros(examples, np.int32),
    encode=encode,
  )
