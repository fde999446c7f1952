"""Residual networks: published sizes; one stream is the plain network, equal streams its copies; running averages."""

import dataclasses
import math
import re

import chex
from drawn import drawn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.examples import ImageFormat
from jpmhc_jax.models.resnet import Block, ResNet
from jpmhc_jax.training.step import make_train_step

IMAGE = ImageFormat(height=9, width=8, channels=3, top=255, classes=5)
PLAIN = schema.Connection(streams=1)


def _model(width=4, connection=PLAIN, image=IMAGE, **vision):
  model = schema.Model(kind="resnet", width=width, vision=schema.Vision(**{"depth": 14, "group": 2} | vision))
  return ResNet(model, connection, image=image, rngs=nnx.Rngs(params=0))


def _inputs(image=IMAGE, batch=3):
  return jnp.asarray(np.random.default_rng(1).integers(0, 256, (batch, image.values)), jnp.uint8)


@jax.jit
def _logits(model, inputs):
  return model(inputs)


@pytest.mark.parametrize(
  ("parameters", "width", "image", "vision"),
  [
    (11_689_512, 64, (224, 1000), {"depth": 18, "form": "imagenet"}),  # torchvision
    (21_797_672, 64, (224, 1000), {"depth": 34, "form": "imagenet"}),
    (25_557_032, 64, (224, 1000), {"depth": 50, "form": "imagenet"}),
    (44_549_160, 64, (224, 1000), {"depth": 101, "form": "imagenet", "norm": "batch"}),
    (272_474, 16, (32, 10), {"depth": 20}),  # with a convolution for each shortcut
    (855_770, 16, (32, 10), {"depth": 56}),
  ],
)
def test_parameters_are_as_many_as_published(parameters, width, image, vision):
  size, classes = image
  model = jax.eval_shape(lambda: _model(width, image=ImageFormat(size, size, 3, 255, classes), **vision))
  assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


def _group_norm(x, norm, k, size=2):
  """By its definition, on a batch of NumPy arrays (b, h, w, c)."""
  groups = np.split(x, x.shape[-1] // size, axis=-1)
  normed = [(g - g.mean((1, 2, 3), keepdims=True)) / np.sqrt(g.var((1, 2, 3), keepdims=True) + 1e-5) for g in groups]
  return np.concatenate(normed, -1) * norm["scale"][k] + norm["shift"][k]


def _convolve(x, kernel, stride=1):
  """Σ over the taps, tap by tap."""
  side = kernel.shape[0]
  padded = np.pad(x, ((0, 0), *((side // 2,) * 2,) * 2, (0, 0)))
  height, width = x.shape[1:3]
  taps = (padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(side) for j in range(side))
  return sum(taps)[:, ::stride, ::stride]


def _relu(x):
  return np.maximum(x, 0)


def _max_pool(x):
  """3×3 by 2."""
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  height, width = x.shape[1:3]
  taps = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
  return np.max(taps, axis=0)[:, ::2, ::2]


def _plain(model, inputs, order, form):
  """The published network, block by block, with the model's parameters; float64."""
  state = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  count = 2 if form == "cifar" else 3

  def residual(x, convolutions, k, stride):
    for number in range(count):
      norm, kernel = convolutions[f"norm{number}"], convolutions[f"convolution{number}"]["kernel"][k]
      step = stride if number == count - 2 else 1  # that of the first of two, or of the 3×3 of three
      if order == "post":
        x = _group_norm(_convolve(x, kernel, step), norm, k)
        x = _relu(x) if number < count - 1 else x
      else:
        x = _convolve(_relu(_group_norm(x, norm, k)), kernel, step)
    return x

  after = _relu if order == "post" else lambda x: x
  x = np.asarray(inputs, np.float64).reshape(-1, IMAGE.height, IMAGE.width, 3) / 255 - 0.5
  x = _convolve(x, state["stem"]["kernel"], 1 if form == "cifar" else 2)
  x = _relu(_group_norm(x, state["norm"], slice(None))) if order == "post" else x
  x = x if form == "cifar" else _max_pool(x)
  for stage, blocks in enumerate((2, 2, 2) if form == "cifar" else (3, 4, 6, 3)):
    parts, step = state[f"stage{stage}"], slice(None, None, 2 if stage else 1)
    changes = stage > 0 or form == "imagenet"
    if changes:
      change = parts["change"]
      short = x[:, step, step] @ change["shortcut"]
      short = _group_norm(short, change["norm"], slice(None)) if order == "post" else short
      x = after(short + residual(x, change["convolutions"], slice(None), 2 if stage else 1))
    for k in range(blocks - changes):
      x = after(x + residual(x, parts["blocks"]["convolutions"], k, 1))
  x = x if order == "post" else _relu(_group_norm(x, state["norm"], slice(None)))
  return x.mean((1, 2)) @ state["class_head"] + state["class_bias"]


@pytest.mark.parametrize(
  ("form", "depth", "order"),
  [("cifar", 14, "post"), ("cifar", 14, "pre"), pytest.param("imagenet", 50, "post", marks=pytest.mark.slow)],
)
def test_one_stream_is_the_plain_network(form, depth, order):
  model = drawn(lambda: _model(form=form, depth=depth, order=order))
  expected = _plain(model, _inputs(), order, form)
  np.testing.assert_allclose(_logits(model, _inputs()), expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
  ("mixer", "vision"),
  [
    ("cayley", {"streams": (4, 2), "order": "pre"}),
    pytest.param("cayley", {"change": "reduce", "streams": (2, 5)}, marks=pytest.mark.slow),
    pytest.param("cayley", {"norm": "batch"}, marks=pytest.mark.slow),
    pytest.param("sinkhorn", {}, marks=pytest.mark.slow),
  ],
)
def test_streams_that_start_equal_are_copies_of_the_plain_network(mixer, vision):
  """Across every change of width and resolution, whatever n is, as long as the mixer keeps equal streams equal."""
  connection = schema.Connection(mixer=mixer, streams=3, init="zero")
  streams, plain = _model(connection=connection, **vision), _model(**vision | {"streams": ()})
  nnx.update(streams, nnx.state(plain, nnx.Param))  # the connections keep their own
  np.testing.assert_allclose(_logits(streams, _inputs()), _logits(plain, _inputs()), rtol=1e-5, atol=1e-5)


def test_stages_with_as_many_streams_are_those_without_the_field():
  models = [
    jax.eval_shape(lambda s=s: _model(connection=schema.Connection(streams=3), streams=s)) for s in ((), (3, 3))
  ]
  chex.assert_trees_all_equal_shapes_and_dtypes(*(nnx.state(model) for model in models))
  grown = jax.eval_shape(lambda: _model(connection=schema.Connection(streams=3), streams=(3, 5)))
  new = nnx.to_pure_dict(nnx.state(grown))["stage2"]["change"]["transition"]
  assert {name: leaf.shape for name, leaf in new.items()} == {"frame": (5, 3)}


def test_a_probe_follows_one_path_through_the_resolutions():
  seen = jax.eval_shape(
    lambda x: (m := _model(connection=schema.Connection(streams=2))).run(m.embed(x), probe=lambda _, h: h)[1], _inputs()
  )
  assert list(seen) == ["stage0.block0", "stage0.block1", "stage1.block1", "stage2.block1"]
  assert {name: leaf.shape for name, leaf in seen.items()} == {
    "stage0.block0": (3, 3, 2, 2, 4), "stage0.block1": (3, 3, 2, 2, 4),
    "stage1.block1": (3, 3, 2, 2, 8), "stage2.block1": (3, 3, 2, 2, 16),
  }  # fmt: skip


@pytest.mark.parametrize("order", ["post", "pre"])
def test_no_array_as_large_as_the_streams_is_copied(order):
  """Forwards and backwards: convolutions read positions × features, which is how a read leaves them."""
  model = schema.Model(width=8, vision=schema.Vision(order=order))
  block = Block(model, schema.Connection(mixer="cayley", streams=4), 8, 8, 0, nnx.Rngs(params=0))
  graph, params, rest = nnx.split(block, nnx.Param, ...)
  streams = jnp.zeros((4, 8, 8, 4, 8))

  def backward(params, streams, cotangent):
    return jax.vjp(lambda p, h: nnx.merge(graph, p, rest)(h, True), params, streams)[1](cotangent)

  program = jax.jit(backward).lower(params, streams, streams).compile().as_text()
  moved = re.findall(r"= f32\[([\d,]+)\]\S* (?:copy|transpose)\(", program)
  assert moved and all(math.prod(map(int, shape.split(","))) < streams.size for shape in moved)


@pytest.mark.parametrize(
  ("message", "changes"),
  [
    ("model.vision.depth=18: expected 6k . 2", {"depth": 18}),
    ("model.vision.depth=20: expected one of 18, 34, 50, 101, 152", {"depth": 20, "form": "imagenet"}),
    ("connection.segments=2: expected 1", {"connection": schema.Connection(segments=2)}),
    ("model.vision.streams=.4,.: expected 2 numbers", {"streams": (4,), "connection": schema.Connection(streams=2)}),
    ("model.vision.streams=.4, 2.: expected 2 or more in every stage", {"streams": (4, 2)}),
  ],
)
def test_what_there_is_not_is_refused(message, changes):
  with pytest.raises(ConfigError, match=message):
    _model(**changes)


def _config(**changes):
  vision = {
    name: changes.pop(name) for name in list(changes) if name in {f.name for f in dataclasses.fields(schema.Vision)}
  }
  return tiny.config(
    batch_size=16,
    data=schema.Data(kind="images", prefetch=0),
    model=schema.Model(
      kind="resnet", width=4, loss="softmax", puzzle=schema.Puzzle(width=0), recursion=schema.Recursion(max_steps=1),
      vision=schema.Vision(**{"depth": 8} | vision),
    ),
    connection=schema.Connection(mixer="cayley", streams=2),
    **changes,
  )  # fmt: skip


def _step(config, devices=1):
  config = dataclasses.replace(config, mesh=schema.Mesh(data=devices))
  dataset, setup = tiny.dataset(config), tiny.setup(config)
  return setup, make_train_step(setup), dataset


@pytest.fixture(scope="module")
def averaged():
  """Two steps of a network with running averages on one device: setup, step, data, state behind the first, metrics."""
  setup, step, dataset = _step(_config(norm="batch"))
  first, _ = step(setup.create(), jax.device_put(dataset.batch(0)))
  kept = jax.device_get(first)
  second, metrics = step(first, jax.device_put(dataset.batch(1)))
  return setup, step, dataset, kept, jax.device_get(second), metrics.scalars()


@pytest.mark.slow
def test_running_averages_move_towards_the_moments_of_the_batch(averaged):
  setup, _, dataset, kept, _, _ = averaged
  model = setup.model(setup.create().params, setup.create().buffers)
  pixels = dataset.batch(0)["inputs"].reshape(-1, 8, 8, 1) / 16 - 0.5
  features = _convolve(pixels.astype(np.float64), np.asarray(model.stem.kernel[...], np.float64))
  buffers = kept.buffers["norm"]
  np.testing.assert_allclose(buffers["mean"], 0.1 * features.mean((0, 1, 2)), atol=1e-6)
  np.testing.assert_allclose(buffers["variance"], 0.9 + 0.1 * features.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.slow
def test_a_run_with_running_averages_resumes_bit_for_bit(averaged):
  setup, step, dataset, kept, after, _ = averaged
  state, _ = step(jax.device_put(kept, setup.shardings), jax.device_put(dataset.batch(1)))
  chex.assert_trees_all_equal(jax.device_get(state), after)


@pytest.mark.slow
def test_running_averages_are_those_of_the_whole_batch_on_any_number_of_devices(averaged):
  *_, expected, metrics = averaged
  setup, step, dataset = _step(_config(norm="batch"), devices=8)
  state = setup.create()
  for k in range(2):
    state, values = step(state, jax.device_put(dataset.batch(k)))
  chex.assert_trees_all_close(jax.device_get(state.buffers), expected.buffers, rtol=2e-4, atol=1e-5)
  np.testing.assert_allclose(values.scalars()["loss"], metrics["loss"], rtol=1e-4)


@pytest.mark.slow
def test_a_step_that_is_no_number_leaves_the_running_averages(averaged):
  setup, step, dataset, kept, _, _ = averaged
  poisoned = dataclasses.replace(kept, params=kept.params | {"class_bias": np.full((10,), np.nan, np.float32)})
  state, metrics = step(jax.device_put(poisoned, setup.shardings), jax.device_put(dataset.batch(1)))
  assert metrics.scalars()["finite"] == 0.0
  chex.assert_trees_all_equal(jax.device_get(state.buffers), kept.buffers)


@pytest.mark.slow
def test_mixers_of_all_forms_fit_between_convolutions():
  """Traced, not compiled, forwards and backwards: of few logits, stored, blended, composed."""
  for variant in ("permutation", "grassmann", "choice", "kronecker"):
    connection = configs.load(f"digits:{variant}").connection
    model = jax.eval_shape(lambda connection=connection: _model(connection=connection))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, graph=graph):
      return jnp.sum(nnx.merge(graph, params, rest)(_inputs(), training=True))

    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(jax.grad(loss), params, rest), params)


@pytest.mark.slow
def test_it_learns_the_digits():
  config = _config(norm="batch")
  _, metrics = tiny.run(config, 100)
  chance = np.log(10) * 16
  assert metrics[0]["loss"] > 0.8 * chance and metrics[-1]["loss"] < 0.65 * chance
