"""The looped transformer against a longer one with copied weights; its parameters, names and mistakes."""

import dataclasses
import functools

from drawn import drawn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.examples import ImageFormat
from jpmhc_jax.evaluation.ablations import connections_of
from jpmhc_jax.models.transformer import Decoder, VisionTransformer
from jpmhc_jax.training.tasks import task_of
from jpmhc_jax.training.tasks.base import LastBatch
from jpmhc_jax.training.tasks.language import NextByte

LOOPS, LAYERS = 3, 2
MODEL = schema.Model(
  kind="decoder", width=8, heads=2, layers=LAYERS, loops=LOOPS, mlp_multiple=8, loss="softmax",
  recursion=schema.Recursion(call_embedding=True),
)  # fmt: skip
CAYLEY = schema.Connection(mixer="cayley", streams=2)
INPUTS = jnp.arange(12).reshape(2, 6) % 7


def _model(connection=CAYLEY, **fields):
  model = dataclasses.replace(MODEL, **fields)
  return Decoder(model, connection, vocab_size=7, sequence_length=6, rngs=nnx.Rngs(0))


def _shapes(**fields):
  state = nnx.state(jax.eval_shape(lambda: _model(**fields)), nnx.Param)
  return {path: variable.shape for path, variable in nnx.to_flat_state(state)}


def _unrolled(looped, connection):
  """The parameters of as many layers as the streams pass, each with those of its layer and loop."""

  def copies(path, leaf):
    if "calls" in path:
      return jnp.moveaxis(leaf, 1, 0).reshape(-1, *leaf.shape[2:])
    return jnp.tile(leaf, (LOOPS, *(1,) * (leaf.ndim - 1))) if path[0] == "layers" else leaf

  flat = {path: copies(path, variable[...]) for path, variable in nnx.to_flat_state(nnx.state(looped))}
  own = {tuple(part for part in path if part != "calls"): leaf for path, leaf in flat.items()}
  del own[("call_embedding",)]
  plain = dataclasses.replace(connection, sharing="all")
  shapes = jax.eval_shape(
    lambda: _model(plain, layers=LOOPS * LAYERS, loops=1, recursion=schema.Recursion(), rematerialise="none")
  )
  graph, state = nnx.split(shapes)
  known = nnx.to_flat_state(state)
  assert {path for path, _ in known} == own.keys()
  return nnx.merge(graph, nnx.from_flat_state([(path, variable.replace(own[path])) for path, variable in known]))


SLOW = pytest.mark.slow
CASES = {
  "per_call": (dataclasses.replace(CAYLEY, sharing="per_call"), "call"),
  "all": (CAYLEY, "products"),
  "none": (dataclasses.replace(CAYLEY, sharing="none"), "none"),
  "choice": (schema.Connection(mixer="choice", streams=2, sharing="per_call"), "products"),
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=[SLOW] * (case != "per_call")) for case in CASES])
def test_loops_are_a_longer_network_with_copied_weights(case):
  """Values and gradients; the vector of a loop is a nudge in front of its first layer there."""
  connection, policy = CASES[case]
  graph, parameters, rest = nnx.split(drawn(lambda: _model(connection, rematerialise=policy)), nnx.Param, ...)

  def loop_by_loop(model):
    return model(INPUTS)

  def layer_by_layer(model):
    h, wide = model.embed(INPUTS), _unrolled(model, connection)
    vectors = model.call_embedding[...].reshape(LOOPS, *(1,) * (h.ndim - 1), 8)
    first = (jnp.arange(LOOPS * LAYERS) % LAYERS == 0).reshape(-1, *(1,) * h.ndim)
    nudges = jnp.where(first, jnp.repeat(vectors, LAYERS, axis=0), 0.0)
    return wide.head(wide.run(h, nudges=jnp.broadcast_to(nudges, (len(nudges), *h.shape)))[0])

  def gradient(logits_of):
    def loss(parameters):
      logits = logits_of(nnx.merge(graph, parameters, rest))
      return jnp.sum(jnp.sin(logits)), logits

    return jax.jit(jax.grad(loss, has_aux=True))(parameters)

  (ours, logits), (theirs, expected) = gradient(loop_by_loop), gradient(layer_by_layer)
  np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)
  scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(theirs))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4 * scale)
  assert np.all(np.any(np.asarray(ours["call_embedding"][...]) != 0, axis=1))  # of every loop


def test_one_loop_is_the_decoder_as_it_was():
  """The scan over its layers, to the last bit, and the same parameters, which those of loops are too."""
  model = drawn(lambda: _model(loops=1, recursion=schema.Recursion(), rematerialise="none"))

  @jax.jit
  def both(model):
    h = model.embed(INPUTS)
    return model.run(h)[0], jax.lax.scan(lambda h, layer: (layer(h), None), h, model.layers)[0]

  np.testing.assert_array_equal(*both(model))
  one, many = (_shapes(loops=loops, recursion=schema.Recursion()) for loops in (1, LOOPS))
  assert one == many


def test_what_a_loop_has_of_its_own_stands_behind_the_layers():
  shared, own, none = (
    _shapes(connection=dataclasses.replace(CAYLEY, sharing=sharing)) for sharing in ("all", "per_call", "none")
  )
  size = lambda shapes, word: sum(np.prod(shape) for path, shape in shapes.items() if word in path[1:2])  # noqa: E731
  for part in ("tokens", "features"):
    assert size(own, f"connect_{part}") == size(none, f"connect_{part}") == LOOPS * size(shared, f"connect_{part}")
    assert size(own, part) == size(shared, part) and size(none, part) == LOOPS * size(shared, part)
  assert all(shape[:2] == (LAYERS, LOOPS) for path, shape in own.items() if "calls" in path)
  assert own[("call_embedding",)] == (LOOPS, 8)
  model = drawn(lambda: _model(dataclasses.replace(CAYLEY, sharing="per_call")))
  places = [f"block{layer}.{part}" for layer in range(LAYERS) for part in ("tokens", "features")]
  assert sorted(connections_of(model)) == sorted(places)


def test_the_program_does_not_grow_with_the_loops_and_every_layer_of_every_loop_is_seen():
  def program(loops):
    model = jax.eval_shape(lambda: _model(dataclasses.replace(CAYLEY, sharing="per_call"), loops=loops))
    graph, state = nnx.split(model)
    return jax.jit(lambda state: nnx.merge(graph, state)(INPUTS)).lower(state).as_text().count("\n")

  assert program(2) == program(21)
  model = jax.eval_shape(_model)
  carry = LastBatch({"inputs": INPUTS})
  seen = jax.eval_shape(lambda model: NextByte().capture(model, None, carry, lambda _, streams: streams), model)
  parts = [(k, part) for k in range(LAYERS) for part in ("tokens", "features")]
  names = [f"block{k}.{part}{call}" for call in ("", ".call1", ".call2") for k, part in parts]
  assert sorted(seen) == sorted(names)
  assert {leaf.shape for leaf in seen.values()} == {(2, 6, 2, 8)}


def test_a_vision_transformer_loops_too_and_leaves_out_paths_of_every_loop():
  model = dataclasses.replace(MODEL, kind="vit", patch=2, positions="learned", vision=schema.Vision(drop_path=0.5))
  image = ImageFormat(height=4, width=4, channels=1, classes=3, top=16)

  def logits(loops, key):
    network = VisionTransformer(dataclasses.replace(model, loops=loops), CAYLEY, image=image, rngs=nnx.Rngs(0))
    return network(jnp.zeros((2, 16)), training=True, key=key)

  assert jax.eval_shape(functools.partial(logits, LOOPS), jax.random.key(0)).shape == (2, 3)


@pytest.mark.parametrize(
  ("model", "connection", "message"),
  [
    ({"loops": 1}, {"sharing": "per_call"}, "connection.sharing='per_call': expected all: .*; or set model.loops to 2"),
    ({"loops": 1}, {}, "model.recursion.call_embedding=True: expected False, or 2 or more model.loops beside it"),
    ({}, {"streams": 1, "sharing": "per_call"}, "connection.streams=1: expected 2 or more"),
    ({}, {"scope": "call"}, "connection.scope='call': expected carry"),
    ({}, {"sublayer": "stream", "segments": 2}, "connection.sublayer='stream': expected whole"),
    ({"kind": "resnet"}, {}, "model.loops=3: expected 1: model.kind='resnet' has no loops over its layers"),
    ({"kind": "trm"}, {}, "model.loops=3: expected 1: model.kind='trm' has no loops over its layers"),
  ],
)
def test_loops_that_cannot_be_are_refused_with_the_remedy(model, connection, message):
  data = {"resnet": "images", "trm": "sudoku"}.get(model.get("kind", ""), "text")
  config = schema.Config(
    model=dataclasses.replace(MODEL, **model),
    connection=dataclasses.replace(CAYLEY, **connection),
    data=schema.Data(kind=data),
  )
  with pytest.raises(ConfigError, match=message):
    task_of(config)
