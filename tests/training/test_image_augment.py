"""RandAugment: its operations are Pillow's; what it draws is a function of the key, image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.core.examples import ImageFormat
from jpmhc_jax.training.tasks.image_augment import applied, augment, OPERATIONS

_applied = jax.jit(applied)


def _picture():
  """A smooth picture with a little noise, in which no value is as dark as 0 or as bright as 255."""
  rows, columns, channels = np.meshgrid(np.linspace(0, 3, 24), np.linspace(0, 2, 20), np.arange(3), indexing="ij")
  waves = 120 + 105 * np.sin(rows + channels) * np.cos(columns * channels)
  return np.round(waves + np.random.default_rng(0).normal(size=waves.shape)).astype(np.uint8)


def _by_pillow(picture, name, strength):
  enhance, ops = pytest.importorskip("PIL.ImageEnhance"), pytest.importorskip("PIL.ImageOps")
  from PIL import Image

  image, (height, width) = Image.fromarray(picture), picture.shape[:2]
  moves = {
    "shear_x": (1, 0.3 * strength, 0, 0, 1, 0), "shear_y": (1, 0, 0, 0.3 * strength, 1, 0),
    "translate_x": (1, 0, 0.45 * strength * width, 0, 1, 0), "translate_y": (1, 0, 0, 0, 1, 0.45 * strength * height),
  }  # fmt: skip
  blends = {"colour": "Color", "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness"}
  if name in moves:
    return image.transform(image.size, Image.Transform.AFFINE, moves[name])
  if name in blends:
    return getattr(enhance, blends[name])(image).enhance(1 + 0.9 * strength)
  others = {
    "identity": lambda: image, "auto_contrast": lambda: ops.autocontrast(image),
    "equalize": lambda: ops.equalize(image),
    "rotate": lambda: image.rotate(30 * strength), "solarize": lambda: ops.solarize(image, 256 * (1 - abs(strength))),
    "posterize": lambda: ops.posterize(image, 8 - round(4 * abs(strength))),
  }  # fmt: skip
  return others[name]()


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_pillow(name):
  picture = _picture()
  for strength in (-0.7, 0.2, 1.0):
    expected = np.asarray(_by_pillow(picture, name, strength), np.float32)
    result = np.asarray(_applied(jnp.asarray(picture, jnp.float32), OPERATIONS.index(name), strength))
    # Pillow rounds places and stretched values in float64: a place on an edge between two pixels may fall to either.
    apart = np.abs(result - expected) > (1 if name == "auto_contrast" else 0)
    assert apart.mean() < 0.005, (name, strength)
    if name not in ("identity", "auto_contrast", "equalize"):
      assert np.abs(result - picture).max() > 0, (name, strength)


def test_images_are_drawn_for_one_by_one_and_keep_their_range():
  image = ImageFormat(height=6, width=5, channels=1, top=16, classes=2)
  one = np.random.default_rng(0).integers(0, 17, (1, image.values)).astype(np.uint8)
  inputs = jnp.asarray(np.repeat(one, 12, axis=0))

  drawn = jax.jit(lambda inputs, magnitude, key: augment(inputs, image, 1, magnitude, key))
  first, again, still = (np.asarray(drawn(inputs, m, jax.random.key(0))) for m in (9.0, 9.0, 0.0))
  np.testing.assert_array_equal(first, again)
  assert len({row.tobytes() for row in first}) > 5
  assert first.min() >= 0 and first.max() <= 16
  # At magnitude 0 all but two operations leave an image as it is.
  kept = np.abs(still - one).max(axis=1) < 0.07
  assert kept.sum() >= 6
