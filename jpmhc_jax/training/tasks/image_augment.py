"""RandAugment: each image goes through a few operations that are drawn for it, all of one magnitude.

| operation | at strength s = ±M/10, M the magnitude |
|---|---|
| identity, auto_contrast, equalize | the same at every strength |
| rotate | by 30 s degrees around the middle |
| shear_x, shear_y | by 0.3 s, from the upper left corner |
| translate_x, translate_y | by 0.45 s of the side |
| solarize | values from 256 (1 − |s|) on become 255 minus themselves |
| posterize | all but the highest 8 − 4 |s| bits become 0 |
| colour, contrast, brightness, sharpness | (1 + 0.9 s) of the way from grey, mean grey, black, smoothed to the image |

Every operation but the identity is a map of positions (nearest pixel, black outside), a table of values or a blend of
two images, as Pillow has them on bytes; one program applies one of each, two of which change nothing. So magnitude 0
changes nothing but for auto_contrast and equalize. Sources: Cubuk et al. 2019 (1909.13719), with the ranges of
AutoAugment (1805.09501) and signs on both sides of the identity as in torchvision.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from jpmhc_jax.core.examples import ImageFormat

OPERATIONS = (
  "identity", "auto_contrast", "equalize", "rotate", "shear_x", "shear_y", "translate_x", "translate_y", "solarize",
  "posterize", "colour", "contrast", "brightness", "sharpness",
)  # fmt: skip
_LEVELS = 256

Picture = Float[Array, "h w c"]  # whole numbers from 0 to 255


def augment(
  inputs: Num[Array, "b pixels"], image: ImageFormat, count: int, magnitude: float | Array, key: Key[Array, ""]
) -> Float[Array, "b pixels"]:
  """Pixel values of every image behind `count` operations of its own, each of them drawn from all, with either sign.

  magnitude: from 0 to 10.
  """

  def one(picture: Picture, key: Key[Array, ""]) -> Picture:
    for each in jax.random.split(key, count):
      kind, side = jax.random.split(each)
      sign = jax.random.rademacher(side, dtype=jnp.float32)
      picture = applied(picture, jax.random.randint(kind, (), 0, len(OPERATIONS)), sign * magnitude / 10)
    return picture

  scale = (_LEVELS - 1) / image.top
  pictures = jnp.round(inputs.astype(jnp.float32) * scale).reshape(-1, image.height, image.width, image.channels)
  return jax.vmap(one)(pictures, jax.random.split(key, len(pictures))).reshape(inputs.shape) / scale


def applied(picture: Picture, operation: Int[Array, ""], strength: Float[Array, ""]) -> Picture:
  """The picture behind OPERATIONS[operation]; strength: from −1 to 1."""
  chosen = {name: operation == number for number, name in enumerate(OPERATIONS)}
  moved = _moved(picture, *_map_of_positions(chosen, strength, *picture.shape[:2]))
  return _blended(_looked_up(moved, _table(moved, chosen, jnp.abs(strength))), chosen, strength)


def _map_of_positions(
  chosen: dict[str, Array], strength: Array, height: int, width: int
) -> tuple[Float[Array, "2 2"], Float[Array, "2"]]:
  """(A, t): the pixel at (row, column) shows what was at A (row, column) + t, in pixels from the upper left corner."""
  angle = jnp.where(chosen["rotate"], jnp.radians(30.0) * strength, 0.0)
  down = jnp.where(chosen["shear_y"], 0.3 * strength, 0.0)
  right = jnp.where(chosen["shear_x"], 0.3 * strength, 0.0)
  turned = jnp.array([[jnp.cos(angle), jnp.sin(angle)], [-jnp.sin(angle), jnp.cos(angle)]])
  middle = jnp.array([height / 2, width / 2])
  moves = 0.45 * strength * jnp.array([height * chosen["translate_y"], width * chosen["translate_x"]])
  return turned + jnp.array([[0.0, down], [right, 0.0]]), middle - turned @ middle + moves


def _moved(picture: Picture, matrix: Float[Array, "2 2"], offset: Float[Array, "2"]) -> Picture:
  height, width = picture.shape[:2]
  rows, columns = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
  y, x = (jnp.floor(matrix[k, 0] * rows + matrix[k, 1] * columns + offset[k]).astype(jnp.int32) for k in range(2))
  inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
  return jnp.where(inside[..., None], picture[jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)], 0.0)


def _table(picture: Picture, chosen: dict[str, Array], strength: Array) -> Float[Array, "c 256"]:
  """What becomes of each value of each channel."""
  values = jnp.broadcast_to(jnp.arange(_LEVELS, dtype=jnp.int32), (picture.shape[-1], _LEVELS))
  dropped = 2 ** jnp.round(4 * strength).astype(jnp.int32)
  tables = {
    "auto_contrast": _stretched(picture, values),
    "equalize": _equalised(picture, values),
    "solarize": jnp.where(values < _LEVELS * (1 - strength), values, _LEVELS - 1 - values),
    "posterize": values // dropped * dropped,
  }
  return jnp.select([chosen[name] for name in tables], list(tables.values()), values).astype(jnp.float32)


def _stretched(picture: Picture, values: Int[Array, "c 256"]) -> Int[Array, "c 256"]:
  """The darkest value of a channel becomes 0, the brightest 255."""
  least, most = (jnp.astype(bound(picture, axis=(0, 1)), jnp.int32)[:, None] for bound in (jnp.min, jnp.max))
  table = (values - least) * (_LEVELS - 1) // jnp.maximum(most - least, 1)
  return jnp.where(most > least, jnp.clip(table, 0, _LEVELS - 1), values)


def _equalised(picture: Picture, values: Int[Array, "c 256"]) -> Int[Array, "c 256"]:
  """Each value becomes its rank: (s // 2 + pixels below) // s, s = (pixels − those of the brightest) // 255."""
  counts = _histogram(picture)
  brightest = jnp.max(jnp.where(counts > 0, values, 0), axis=1, keepdims=True)
  total = jnp.sum(counts, axis=1, keepdims=True)
  step = (total - jnp.take_along_axis(counts, brightest, axis=1)) // (_LEVELS - 1)
  below = jnp.cumsum(counts, axis=1) - counts
  table = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, _LEVELS - 1)
  return jnp.where(step > 0, table, values)


def _histogram(picture: Picture) -> Int[Array, "c 256"]:
  """Pixels of each value, as products of matrices, which accelerators do faster than scattered sums."""
  values = picture.reshape(-1, picture.shape[-1]).astype(jnp.int32)
  high, low = (jax.nn.one_hot(digit, 16, dtype=jnp.float32) for digit in (values // 16, values % 16))
  return jnp.einsum("pci,pcj->cij", high, low).reshape(-1, _LEVELS).astype(jnp.int32)


def _looked_up(picture: Picture, table: Float[Array, "c 256"]) -> Picture:
  return table[jnp.arange(table.shape[0])[None, None], picture.astype(jnp.int32)]


def _blended(picture: Picture, chosen: dict[str, Array], strength: Array) -> Picture:
  grey = _grey(picture)
  others = {
    "colour": grey,
    "contrast": jnp.floor(jnp.mean(grey) + 0.5),
    "brightness": jnp.zeros(()),
    "sharpness": _smoothed(picture),
  }
  each = [jnp.broadcast_to(other, picture.shape) for other in others.values()]
  other = jnp.select([chosen[name] for name in others], each, picture)
  blend = other + (1 + 0.9 * strength) * (picture - other)
  return jnp.floor(jnp.clip(blend, 0, _LEVELS - 1))


def _grey(picture: Picture) -> Float[Array, "h w 1"]:
  """Luma of three channels, (19595 R + 38470 G + 7471 B) / 2¹⁶; the mean of any other number of them."""
  if picture.shape[-1] != 3:
    return jnp.floor(jnp.mean(picture, axis=-1, keepdims=True) + 0.5)
  luma = jnp.einsum("hwc,c->hw", picture.astype(jnp.int32), jnp.array([19595, 38470, 7471]))[..., None]
  return ((luma + 2**15) // 2**16).astype(jnp.float32)


def _smoothed(picture: Picture) -> Picture:
  """Each pixel with a weight of 5 and its eight neighbours with 1 each, rounded; the edge stays as it is."""
  height, width = picture.shape[:2]
  around = [picture[y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)]
  inner = jnp.sum(jnp.stack(around), axis=0) + 4 * picture[1:-1, 1:-1]
  return picture.at[1:-1, 1:-1].set(jnp.floor(inner / 13 + 0.5))
