"""Folders of pictures, one folder a class, as ImageNet is kept: decoded when a batch needs them.

    folder/train/<class>/*.png, *.jpg, *.jpeg       folder/val/<class>/…       (or validation, test)

Training shows a crop of every picture an epoch: of a share of its area between `data.images.area` and 1 and sides of
3:4 to 4:3, anywhere in it, resized to `data.images.size`. Crops and mirror images are functions of (seed, step, row).
Evaluation shows the middle square of 7/8 of the shorter side. With area=0 both show the whole middle square. A process
reads the pictures of its own rows only. A picture that cannot be decoded ends the run, which says why.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import functools
import itertools
import os
import pathlib

from jaxtyping import Float, Int, UInt8
import numpy as np

from jpmhc_jax.config.schema import Data
from jpmhc_jax.core.errors import ConfigError, DataError, require
from jpmhc_jax.core.examples import ImageFormat
from jpmhc_jax.core.reading import shown
from jpmhc_jax.data.batches import Split
from jpmhc_jax.data.dataset import Batch, digest, Rows
from jpmhc_jax.data.images import ImageDataset

SUFFIXES = (".png", ".jpg", ".jpeg")
HELD_OUT = ("val", "validation", "test")  # what the folder of held-out pictures may be called
MIDDLE = 7 / 8  # of the shorter side, which evaluation shows
_CROP_STREAM = 0xC809  # keeps the crops apart from every other use of (seed, step)
_DRAWS = 5  # numbers that a crop takes: area, shape, two of its place, mirror
_THREADS = 4  # of one batch
_LISTED = 10  # damaged pictures that an error names


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Files with their classes, as `encode` of a split: pixel values (b, size²·3) and class + 1 (b, 1) of any of them."""

  root: str
  files: Sequence[str]  # below the root
  labels: Int[np.ndarray, "files"]
  size: int
  area: float
  mirror: bool

  def __call__(
    self, examples: Int[np.ndarray, "b"], draws: Float[np.ndarray, "b 5"] | None = None
  ) -> tuple[UInt8[np.ndarray, "b s"], Int[np.ndarray, "b 1"]]:
    """Middles of the pictures, or with draws from [0, 1) crops of them."""
    each = itertools.repeat(None) if draws is None else draws
    pixels = np.zeros((len(examples), 3 * self.size**2), np.uint8)
    with ThreadPoolExecutor(_THREADS) as pool:  # Pillow decodes without holding the interpreter
      for row, picture in zip(pixels, pool.map(self.pixels, examples, each), strict=True):
        row[:] = picture.reshape(-1)
    return pixels, (self.labels[examples] + 1).astype(np.int32)[:, None]

  def pixels(
    self, example: int | np.integer, draws: Float[np.ndarray, "5"] | None = None
  ) -> UInt8[np.ndarray, "size size 3"]:
    """One of them. Raises DataError, which names the file, for one that cannot be decoded; OSError as `open` does."""
    from PIL import Image

    path = os.path.join(self.root, self.files[int(example)])
    with open(path, "rb") as file:
      try:
        picture = Image.open(file).convert("RGB")
        if draws is None or not self.area:
          box = _middle(*picture.size, MIDDLE if self.area else 1.0)
        else:
          box = _crop(*picture.size, draws, self.area)
        seen = picture.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
      except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
          f"{shown(pathlib.Path(path))}: cannot be decoded ({error}); repair or remove the picture, and run the same "
          "command again"
        ) from error
    pixels = np.asarray(seen)
    return pixels[:, ::-1] if self.mirror and draws is not None and draws[4] < 0.5 else pixels

  def damaged(self) -> Iterator[str]:
    """What is wrong with each picture that cannot be decoded."""

    def one(example: int) -> str:
      try:
        self.pixels(example)
      except (DataError, OSError) as error:
        return str(error)
      return ""

    with ThreadPoolExecutor() as pool:
      yield from filter(None, pool.map(one, range(len(self.files))))


def _middle(width: int, height: int, share: float) -> tuple[float, float, float, float]:
  """Left, top, right and bottom of the middle square of that share of the shorter side."""
  side = share * min(width, height)
  left, top = (width - side) / 2, (height - side) / 2
  return left, top, left + side, top + side


def _crop(width: int, height: int, draws: Float[np.ndarray, "5"], area: float) -> tuple[float, float, float, float]:
  """A box of the area and the shape that are drawn, no wider or higher than the picture, anywhere in it."""
  pixels = width * height * (area + (1 - area) * draws[0])
  shape = (4 / 3) ** (2 * draws[1] - 1)
  wide, high = min(np.sqrt(pixels * shape), width), min(np.sqrt(pixels / shape), height)
  left, top = draws[2] * (width - wide), draws[3] * (height - high)
  return float(left), float(top), float(left + wide), float(top + high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureDataset(ImageDataset):
  """Batches of crops; see the module's docstring."""

  crop_seed: int
  crops: Pictures  # to train on
  held_out: Sequence[str]  # files

  def batch(self, step: int, rows: Rows = slice(None)) -> Batch:
    """Rows of the global batch of a step; only the asked pictures are read."""
    examples = self.plan.examples(step)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.crop_seed, step, _CROP_STREAM))))
    draws = rng.random((len(examples), _DRAWS))[rows]
    encode = functools.partial(self.crops, draws=draws)
    return self._read(dataclasses.replace(self.train, encode=encode), examples[rows])

  def title(self, example: int) -> str:
    """The file."""
    return self.held_out[example]


def build(config: Data, *, batch_size: int, seed: int) -> PictureDataset:
  """Lists the pictures. Raises ConfigError without Pillow; DataError for a folder that is not as described, and with
  data.images.verify for pictures that cannot be decoded."""
  options, folder = config.images, pathlib.Path(config.images.folder)
  try:
    import PIL  # noqa: F401
  except ImportError as error:
    raise ConfigError(
      f"data.images.folder={options.folder!r}: pictures are decoded by Pillow, which is not installed; pip install "
      "'jpmhc-jax[vision]'"
    ) from error
  held = next((name for name in HELD_OUT if (folder / name).is_dir()), None)
  if held is None or not (folder / "train").is_dir():
    raise DataError(
      f"data.images.folder={options.folder!r}: expected train and {' or '.join(HELD_OUT)}, with one folder of pictures "
      "a class each, or the files of CIFAR-10 or CIFAR-100"
    )
  classes = sorted(entry.name for entry in os.scandir(folder / "train") if entry.is_dir())
  require(len(classes) > 1, "data.images.folder", options.folder, "at least two folders of classes in its train")
  sides = []
  for name in ("train", held):
    files, labels = _listed(folder / name, classes)
    sides.append(Pictures(str(folder / name), files, labels, options.size, options.area, options.mirror))
  if options.verify:
    _check(sides)
  train, evaluation = (Split.of_singles(len(side.files), side) for side in sides)
  image = ImageFormat(options.size, options.size, 3, 255, len(classes))
  names = (name for side in sides for name in (*side.files, ""))
  seen = str((options.size, options.area, options.mirror))
  return PictureDataset.of(
    config,
    image,
    train,
    evaluation,
    digest("pictures", *names, seen),
    batch_size=batch_size,
    seed=seed,
    classes=tuple(classes),
    crop_seed=seed,
    crops=sides[0],
    held_out=sides[1].files,
  )


def _listed(folder: pathlib.Path, classes: Sequence[str]) -> tuple[list[str], Int[np.ndarray, "files"]]:
  """Names below the folder and classes of its pictures. Raises DataError for other classes, and for one without any."""
  own = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
  if unknown := [name for name in own if name not in classes]:
    raise DataError(
      f"{shown(folder)}: class {unknown[0]!r}, of which there is nothing to train on; expected those of train"
    )
  files, labels = [], []
  for name in own:
    pictures = sorted(e.name for e in os.scandir(folder / name) if e.name.lower().endswith(SUFFIXES))
    if not pictures:
      raise DataError(f"{shown(folder / name)}: holds no picture; expected files *{', *'.join(SUFFIXES)}")
    files += [os.path.join(name, picture) for picture in pictures]
    labels += [classes.index(name)] * len(pictures)
  return files, np.array(labels, np.int64)


def _check(sides: Sequence[Pictures]) -> None:
  damaged = [words for side in sides for words in side.damaged()]
  if damaged:
    more = f"\n… and {len(damaged) - _LISTED:,} more" if len(damaged) > _LISTED else ""
    raise DataError(
      f"data.images.verify: {len(damaged):,} pictures are damaged\n" + "\n".join(damaged[:_LISTED]) + more
    )
