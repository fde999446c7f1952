"""Two images in one: shares are those of the pixels, the loss is linear in them; stochastic depth keeps the mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.examples import ImageFormat
from jpmhc_jax.models.layers import kept_paths
from jpmhc_jax.models.transformer import VisionTransformer
from jpmhc_jax.training.tasks.base import LastBatch, task_of
from jpmhc_jax.training.tasks.image_mixing import box_of, mix
from jpmhc_jax.training.tasks.vision import class_losses, ImageClass

IMAGE = ImageFormat(height=6, width=4, channels=2, top=255, classes=3)
_mix = jax.jit(mix, static_argnums=(1, 2, 3))


def _levels(rows):
  """Images of one value each: 0, 1, 2, …"""
  return jnp.broadcast_to(jnp.arange(rows, dtype=jnp.float32)[:, None], (rows, IMAGE.values))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_the_share_is_that_of_the_pixels(mixup, cutmix):
  kinds = set()
  for k in range(12):
    mixed, share = _mix(_levels(4), IMAGE, mixup, cutmix, jax.random.key(k))
    # Image i holds i, and its neighbour i − 1: their mean tells the share, whichever way they are mixed.
    np.testing.assert_allclose(mixed[1:].mean(1), np.arange(1, 4) - (1 - share), rtol=1e-5)
    np.testing.assert_allclose(mixed[0].mean(), (1 - share) * 3, rtol=1e-5, atol=1e-6)
    kinds.add(bool(np.isin(np.asarray(mixed[2]), (1.0, 2.0)).all()))
  assert kinds == {False} if not cutmix else kinds == {True} if not mixup else kinds == {False, True}


def test_boxes_have_their_area_on_average_where_the_edge_does_not_cut_them():
  image = ImageFormat(64, 64, 1, 255, 2)
  areas = jax.vmap(lambda key: jnp.mean(box_of(image, jnp.float32(0.99), key)))(
    jax.random.split(jax.random.key(0), 400)
  )
  assert 0.008 < float(areas.mean()) < 0.0101  # 0.01 of the image, less what the edges leave outside


class _Linear(VisionTransformer):
  """Logits are a fixed map of the pixels."""

  def __init__(self):
    self.image = IMAGE

  def __call__(self, inputs, training=False, key=None):
    weights = np.random.default_rng(0).normal(size=(IMAGE.values, IMAGE.classes)) / 50
    return jnp.asarray(inputs, jnp.float32) @ jnp.asarray(weights, jnp.float32)


def _config(**vision):
  model = schema.Model(
    kind="vit", width=16, heads=2, loss="softmax", vision=schema.Vision(**vision), rematerialise="none",
    puzzle=schema.Puzzle(width=0),
  )  # fmt: skip
  return tiny.config(model=model, data=schema.Data(kind="images"))


def test_the_objective_is_the_cross_entropy_of_the_mixed_and_smoothed_target():
  batch = {"inputs": jnp.arange(4 * IMAGE.values).reshape(4, -1) % 251, "labels": jnp.array([[1], [2], [3], [1]])}
  key = jax.random.key(3)
  objective = jax.jit(
    lambda key: ImageClass().objective(_Linear(), None, LastBatch(batch), _config(mixup=1.0, label_smoothing=0.1), key)
  )
  loss, (_, sums) = objective(key)
  mixed, share = _mix(batch["inputs"], IMAGE, 1.0, 0.0, jax.random.fold_in(key, 0))
  own = np.eye(3)[batch["labels"][:, 0] - 1]
  target = 0.9 * (share * own + (1 - share) * np.roll(own, 1, axis=0)) + 0.1 / 3
  expected = -np.sum(target * np.asarray(jax.nn.log_softmax(_Linear()(mixed))))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert float(sums["loss"]) == float(loss)


def test_without_a_key_and_in_evaluation_the_images_are_themselves():
  batch = {"inputs": jnp.arange(4 * IMAGE.values).reshape(4, -1) % 251, "labels": jnp.array([[1], [2], [3], [1]])}
  config = _config(mixup=1.0, cutmix=1.0)
  plain = class_losses(_Linear()(batch["inputs"]), batch["labels"], "softmax")["loss"]
  loss, _ = ImageClass().objective(_Linear(), None, LastBatch(batch), config, None)
  np.testing.assert_allclose(loss, plain.sum(), rtol=1e-6)
  np.testing.assert_allclose(ImageClass().losses(_Linear(), batch, config)["loss"], plain, rtol=1e-6)


def test_stochastic_depth_keeps_the_mean_of_every_path():
  scales = np.asarray(kept_paths(jax.random.key(0), 0.4, 5, 20_000))
  assert np.all(scales[0] == 1) and scales.shape == (5, 20_000)
  np.testing.assert_allclose(scales.mean(1), 1.0, atol=0.03)  # 5 deviations of (p/(1 − p)/20,000)^½
  np.testing.assert_allclose((scales == 0).mean(1), 0.1 * np.arange(5), atol=0.02)


def test_a_smoothed_target_needs_the_softmax():
  config = _config(label_smoothing=0.1)
  task_of(config)
  wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, loss="stablemax"))
  with pytest.raises(ConfigError, match="model.vision.label_smoothing=0.1: expected 0, or model.loss='softmax'"):
    task_of(wrong)
