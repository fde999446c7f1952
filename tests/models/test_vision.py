"""The vision transformer: patches, order of positions, its wrong sizes; and that it learns real digits."""

import dataclasses
import json

from drawn import drawn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.examples import ImageFormat
from jpmhc_jax.data import ArrayDataset
from jpmhc_jax.evaluation.accumulator import EvalAccumulator
from jpmhc_jax.models.transformer import VisionTransformer
from jpmhc_jax.training.tasks.vision import class_losses, ImageClass

IMAGE = ImageFormat(height=4, width=6, channels=3, top=255, classes=5)
MODEL = schema.Model(
  kind="vit", width=16, heads=2, layers=2, patch=2, mlp_multiple=8, positions="learned", puzzle=schema.Puzzle(width=0)
)


def _model(**changes):
  model = dataclasses.replace(MODEL, **changes)
  return VisionTransformer(model, schema.Connection(streams=2), image=IMAGE, rngs=nnx.Rngs(params=0))


def test_patches_are_the_squares_of_the_image():
  pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3))
  patches = jax.eval_shape(_model).patches(jnp.asarray(pixels.reshape(2, -1)))
  assert patches.shape == (2, 6, 12)
  np.testing.assert_allclose(patches[1, 4].reshape(2, 2, 3), pixels[1, 2:4, 2:4] / 255 - 0.5, rtol=1e-6)


def test_streams_begin_from_squares_of_several_sizes_around_their_position():
  image = ImageFormat(height=8, width=4, channels=1, top=255, classes=5)
  model = dataclasses.replace(MODEL, positions="none", vision=schema.Vision(scales=(1, 2), pooling="token"))
  network = drawn(lambda: VisionTransformer(model, schema.Connection(streams=2), image=image, rngs=nnx.Rngs(params=0)))
  pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 4, 1))
  h = np.asarray(network.embed(jnp.asarray(pixels.reshape(2, -1))))
  assert h.shape == (2, 1 + 4 * 2, 2, 16)
  np.testing.assert_array_equal(h[:, 0, 0], h[:, 0, 1])  # the class token
  row, column = 3, 1  # of the patches
  fine, coarse = pixels[1, 6:8, 2:4] / 255 - 0.5, pixels[1, 4:8, 0:4] / 255 - 0.5
  kernels = [np.asarray(kernel[...])[0] for kernel in (network.sources.kernels0, network.sources.kernels1)]
  at = h[1, 1 + 2 * row + column]
  np.testing.assert_allclose(at, [fine.ravel() @ kernels[0], coarse.ravel() @ kernels[1]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("scales", "message"),
  [
    ((1, 3), "squares of 2 pixels and so many times that tile the image"),
    ((1, 1, 1), "connection.streams=2"),
    ((0,), "above 0"),
  ],
)
def test_scales_that_do_not_fit_are_refused(scales, message):
  with pytest.raises(ConfigError, match=f"model.vision.scales=.*{message}"):
    _model(vision=schema.Vision(scales=scales))


def test_only_learned_positions_tell_where_a_patch_is():
  pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3))
  swapped = np.concatenate([pixels[:, 2:], pixels[:, :2]], axis=1)  # the two rows of patches change places

  def logits(model, x):
    return jax.jit(lambda model, x: model(x))(model, jnp.asarray(x.reshape(1, -1)))

  blind, seeing = drawn(lambda: _model(positions="none")), drawn(_model)
  np.testing.assert_allclose(logits(blind, pixels), logits(blind, swapped), atol=1e-5)
  assert float(jnp.max(jnp.abs(logits(seeing, pixels) - logits(seeing, swapped)))) > 1e-3


def test_patches_must_tile_the_image():
  with pytest.raises(ConfigError, match="model.patch=4: expected a divisor of both sides of the 4×6 images"):
    _model(patch=4)


def test_the_loss_is_that_of_the_class_and_padding_has_none():
  logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]))
  sums = class_losses(logits, jnp.array([[1], [3], [-100]]), "softmax")
  np.testing.assert_allclose(sums["loss"], -np.log([0.7, 0.1, 1.0]), atol=1e-6)
  np.testing.assert_array_equal(sums["accuracy"], [1.0, 0.0, 0.0])


def test_an_evaluation_keeps_the_class_the_answer_and_its_probability_of_every_image():
  batch = {"inputs": jnp.zeros((2, 4)), "labels": jnp.array([[1], [2]])}
  config = dataclasses.replace(tiny.config(), model=dataclasses.replace(MODEL, loss="softmax"))
  kept = ImageClass().predict(_Fixed(), None, batch, config)
  np.testing.assert_array_equal(kept["truth"], [0, 1])
  np.testing.assert_array_equal(kept["answer"], [0, 2])
  np.testing.assert_allclose(kept["confidence"], [0.7, 0.5], rtol=1e-6)
  rows = {"x": np.zeros((2, 1))}
  dataset = ArrayDataset.of(rows, rows, kind="pixels", batch_size=2, seed=0)
  tally, rest = (EvalAccumulator(dataset, ImageClass.per_example, ImageClass.kept, False) for _ in range(2))
  result = {name: np.asarray(values) for name, values in kept.items()}
  tally.add({"valid": np.array([True, False]), "index": np.arange(2)}, result)
  rest.add({"valid": np.array([True, True]), "index": np.arange(2)}, result)
  tally.merge(EvalAccumulator.from_state(dataset, json.loads(json.dumps(rest.to_state()))))
  assert (tally.count, tally.kept["truth"], tally.kept["answer"]) == (3, [0, 0, 1], [0, 0, 2])


class _Fixed(VisionTransformer):
  """Says the same whatever it sees."""

  def __init__(self):
    pass

  def __call__(self, inputs):
    return jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]]))


@pytest.mark.slow
def test_it_learns_the_digits():
  config = tiny.config(
    batch_size=64,
    data=schema.Data(kind="images", prefetch=0),
    model=dataclasses.replace(MODEL, layers=1, patch=4, loss="softmax", recursion=schema.Recursion(max_steps=1)),
  )
  _, metrics = tiny.run(config, 100)
  chance = np.log(10) * 64
  assert metrics[0]["loss"] > 0.8 * chance and metrics[-1]["loss"] < 0.65 * chance
  assert metrics[-1]["accuracy"] > 0.4 * 64


@pytest.mark.parametrize(
  ("width", "heads", "timm", "apart"),
  [
    (384, 6, 22_050_664, 12 * (9 * 384 + 4 * 384) + 2 * 384 + 384 + 1000),
    (768, 12, 86_567_656, 12 * (9 * 768 + 4 * 768) + 2 * 768 + 768 + 1000),
  ],
)
def test_the_published_shapes_lack_the_biases_and_norms_of_timm_and_nothing_else(width, heads, timm, apart):
  """apart: biases of q, k, v, out and of the MLP, two LayerNorms a block, the last one, biases of patches and head."""
  vision = schema.Vision(pooling="token")
  model = dataclasses.replace(MODEL, width=width, heads=heads, layers=12, patch=16, mlp_multiple=256, vision=vision)
  image = ImageFormat(height=224, width=224, channels=3, top=255, classes=1000)
  plain = schema.Connection(streams=1)
  built = jax.eval_shape(lambda: VisionTransformer(model, plain, image=image, rngs=nnx.Rngs(params=0)))
  assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(built, nnx.Param))) == timm - apart


def test_a_class_token_reads_the_image_and_training_leaves_sub_layers_out():
  vision = schema.Vision(pooling="token", drop_path=0.5)
  model = drawn(lambda: _model(vision=vision))
  pixels = np.random.default_rng(0).integers(0, 256, (4, 72))
  pixels[1] = pixels[0]

  @jax.jit
  def logits(model, x, key):
    return model(x), model(x, training=True, key=key), model(x, training=True)

  still, moved, unkeyed = logits(model, jnp.asarray(pixels), jax.random.key(0))
  np.testing.assert_array_equal(still, unkeyed)
  np.testing.assert_allclose(still[0], still[1], rtol=1e-6)
  assert float(jnp.max(jnp.abs(still[0] - still[2]))) > 1e-3
  assert float(jnp.max(jnp.abs(moved[0] - moved[1]))) > 1e-3  # equal images lose other sub-layers
