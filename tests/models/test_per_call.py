"""Calls with connections and vectors of their own: which parameters there are, and where they act."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.evaluation.ablations import connections_of
from jpmhc_jax.models.trm import TRM
from jpmhc_jax.training.tasks.trm import DeepSupervision

MODEL = schema.Model(
  width=8, heads=2, layers=1, mlp_multiple=8, puzzle=schema.Puzzle(width=0, slots=1),
  recursion=schema.Recursion(outer=2, inner=2, call_embedding=True),
)  # fmt: skip
CALLS = 3  # of a cycle


def _model(sharing):
  connection = schema.Connection(mixer="cayley", streams=2, sharing=sharing)
  return TRM(MODEL, connection, vocab_size=5, sequence_length=4, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def step():
  """(answers, gradients of their sum) as a function of the parameters, and random parameters of per_call."""
  model, inputs = _model("per_call"), jnp.arange(8).reshape(2, 4) % 5
  graph, parameters, rest = nnx.split(model, nnx.Param, ...)
  rng = np.random.default_rng(0)
  parameters = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(leaf.dtype), parameters)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def function(parameters):
    model = nnx.merge(graph, parameters, rest)
    logits = model(*model.initial_latents(2, 5), inputs, None).logits
    return jnp.sum(jnp.sin(logits)), logits

  return parameters, function


def test_sub_layers_are_shared_and_connections_stand_in_front_of_each_other():
  shared, own = (_model(sharing) for sharing in ("all", "per_call"))
  count = lambda module: sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))  # noqa: E731
  assert count(own.block0.connect_tokens) == CALLS * count(shared.block0.connect_tokens)
  assert count(own.block0.features) == count(shared.block0.features)
  assert count(_model("none").block0.tokens) == CALLS * count(shared.block0.tokens)
  names = {variable.get_metadata("axes")[0] for _, variable in nnx.to_flat_state(nnx.state(own.block0.connect_tokens))}
  assert names == {"calls"}
  assert set(connections_of(own)) == set(connections_of(shared)) == {"block0.tokens", "block0.features"}


@pytest.mark.slow
def test_every_call_has_its_own_and_equal_ones_are_the_shared_model(step):
  parameters, function = step
  (_, answers), gradient = function(parameters)
  for leaf in jax.tree.leaves(gradient["block0"]["connect_features"]) + [gradient["call_embedding"][...]]:
    assert np.all(np.any(np.asarray(leaf).reshape(CALLS, -1) != 0, axis=1))  # of every call
  first = lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape)  # noqa: E731
  same = nnx.State(dict(parameters))
  for name in ("connect_tokens", "connect_features"):
    same["block0"][name] = jax.tree.map(first, parameters["block0"][name])
  (_, equal), _ = function(same)
  assert np.max(np.abs(equal - answers)) > 1e-3
  shared = _model("all")
  graph, own, rest = nnx.split(shared, nnx.Param, ...)
  flat = dict(nnx.to_flat_state(same))
  chosen = {path: flat.get(path, flat.get((*path[:2], "calls", *path[2:]))) for path, _ in nnx.to_flat_state(own)}
  single = {path: value.replace(value[0]) if path not in flat else value for path, value in chosen.items()}
  model = nnx.merge(graph, nnx.from_flat_state(list(single.items())), rest)
  answer = nnx.jit(lambda model: model(*model.initial_latents(2, 5), jnp.arange(8).reshape(2, 4) % 5, None).logits)
  assert_allclose(answer(model), equal, rtol=1e-4)


def test_one_stream_has_no_connections_to_share():
  config = schema.Config(model=MODEL, connection=schema.Connection(streams=1, sharing="per_call"))
  with pytest.raises(ConfigError, match="connection.streams"):
    DeepSupervision().check(dataclasses.replace(config))
