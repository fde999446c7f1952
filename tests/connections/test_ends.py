"""The ends of the network: definitions, the plain start, symmetry that breaks, segments, roles, both forms."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.connections import expand, reduce, StreamExpansion
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.models import connections
from jpmhc_jax.models.connections import stream_expansion_fn

N, D, TOKENS = 4, 8, (2, 3)
EXPANSIONS, REDUCTIONS = ("copy", "scale", "linear"), ("mean", "learned", "head")


def _ends(**fields):
  return stream_expansion_fn(schema.Connection(**({"streams": N} | fields)), D)


def _input(seed=1):
  return jax.random.normal(jax.random.key(seed), (*TOKENS, D))


def _noisy(parameters, seed=5):
  keys = jax.random.split(jax.random.key(seed), len(parameters) or 1)
  return {
    name: value + jax.random.normal(key, value.shape)
    for (name, value), key in zip(parameters.items(), keys, strict=True)
  }


@pytest.mark.parametrize("segments", [1, 2, 4])
@pytest.mark.parametrize("init", ["zero", "round_robin"])
def test_every_pair_of_ends_starts_as_the_plain_network_where_asked(segments, init):
  """reduce(expand(x)) = x: what a plain residual network does between its blocks."""
  x = _input()
  for how_in in EXPANSIONS:
    for how_out in REDUCTIONS:
      if how_out == "head" and segments == N:
        continue
      ends = _ends(expand=how_in, reduce=how_out, segments=segments, init=init, stream_embedding=True)
      parameters = ends.init(jax.random.key(0))
      streams = ends.expand(parameters, x)
      assert streams.shape == (*TOKENS, N, D // segments)
      np.testing.assert_allclose(ends.reduce(parameters, streams), x, atol=2e-6, err_msg=f"{how_in} {how_out}")


def test_the_random_start_makes_the_streams_differ_and_stays_near_the_plain_network():
  x = _input()
  for fields in ({"expand": "scale"}, {"expand": "linear"}, {"stream_embedding": True}):
    ends = _ends(**fields)
    parameters = ends.init(jax.random.key(0))
    streams = ends.expand(parameters, x)
    spread = float(jnp.max(jnp.std(streams, axis=-2)))
    assert 1e-3 < spread < 1.0, fields
    assert float(jnp.linalg.norm(ends.reduce(parameters, streams) - x) / jnp.linalg.norm(x)) < 0.5, fields


def test_ends_are_their_formulas():
  x, rng = np.asarray(_input()), np.random.default_rng(0)
  ends = _ends(expand="scale", stream_embedding=True, reduce="head")
  parameters = {name: rng.normal(size=value.shape) for name, value in ends.init(jax.random.key(0)).items()}
  streams = np.asarray(ends.expand({k: jnp.asarray(v) for k, v in parameters.items()}, jnp.asarray(x)))
  expected = x[..., None, :] * parameters["scale"] + parameters["embedding"]
  np.testing.assert_allclose(streams, expected, rtol=1e-5, atol=1e-6)
  flat = expected.reshape(-1, N * D)
  flat = flat / np.sqrt((flat**2).mean(axis=1, keepdims=True) + 1e-6)
  gates = 1 / (1 + np.exp(-(flat @ parameters["head_kernel"].reshape(N * D, N) + parameters["head_bias"]))) + 1e-6
  out = ends.reduce({k: jnp.asarray(v) for k, v in parameters.items()}, jnp.asarray(expected))
  np.testing.assert_allclose(
    np.asarray(out).reshape(-1, D), np.einsum("tn,tnd->td", gates, expected.reshape(-1, N, D)), rtol=1e-4, atol=1e-5
  )

  linear = _ends(expand="linear", reduce="learned")
  parameters = _noisy(linear.init(jax.random.key(0)))
  streams = linear.expand(parameters, jnp.asarray(x))
  np.testing.assert_allclose(streams, np.einsum("...d,ndw->...nw", x, parameters["kernel"]), rtol=1e-4, atol=1e-5)
  out = linear.reduce(parameters, streams)
  np.testing.assert_allclose(out, np.einsum("n,...nd->...d", parameters["weights"], streams), rtol=1e-4, atol=1e-5)


def test_segments_are_dealt_in_turn_and_joined_over_their_own_streams():
  x = jnp.arange(4.0)  # segments (0, 1) and (2, 3)
  streams = expand(x, 3, 2)
  np.testing.assert_array_equal(streams, [[0, 1], [2, 3], [0, 1]])
  np.testing.assert_array_equal(reduce(streams + jnp.array([[0.0], [0.0], [2.0]]), "mean", 2), [1, 2, 2, 3])
  np.testing.assert_array_equal(reduce(streams, "sum", 2), [0, 2, 2, 3])
  np.testing.assert_array_equal(expand(x, 2), [x, x])
  np.testing.assert_array_equal(reduce(expand(x, 2), "sum"), 2 * x)


def test_gradients_reach_every_parameter_of_the_ends():
  for expansion, reduction in (("scale", "learned"), ("linear", "head")):
    ends = _ends(expand=expansion, reduce=reduction, stream_embedding=True)
    parameters, weights = ends.init(jax.random.key(0)), _input(7)

    def loss(p, ends=ends, weights=weights):
      return jnp.sum(weights * jnp.tanh(ends.reduce(p, jnp.sin(3 * ends.expand(p, _input())))))

    for name, gradient in jax.jit(jax.grad(loss))(parameters).items():
      assert float(jnp.max(jnp.abs(gradient))) > 1e-3, name


def test_the_module_and_the_pure_form_agree_and_every_leaf_has_a_role_and_axes():
  config = schema.Connection(streams=N, expand="scale", reduce="head", stream_embedding=True)
  module = StreamExpansion(stream_expansion_fn(config, D), rngs=nnx.Rngs(0))
  pure = stream_expansion_fn(config, D)
  state = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  x = _input()
  streams = module.expand(x)
  np.testing.assert_array_equal(streams, pure.expand(state, x))
  np.testing.assert_array_equal(module.reduce(streams), pure.reduce(state, streams))
  for leaf in jax.tree.leaves(nnx.state(module, nnx.Param), is_leaf=lambda v: isinstance(v, nnx.Variable)):
    assert leaf.get_metadata("role") == "mixer" and len(leaf.get_metadata("axes")) == leaf[...].ndim
  bare = StreamExpansion(stream_expansion_fn(schema.Connection(streams=N), D), rngs=nnx.Rngs(0))
  assert not jax.tree.leaves(nnx.state(bare))


def test_bfloat16_streams_keep_their_dtype():
  ends = _ends(expand="linear", reduce="head", stream_embedding=True)
  parameters = ends.init(jax.random.key(0))
  streams = ends.expand(parameters, _input().astype(jnp.bfloat16))
  assert streams.dtype == ends.reduce(parameters, streams).dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(streams=4, segments=5), "connection.segments=5: expected 1 to streams=4"),
    (dict(streams=4, segments=3), "connection.segments=3: expected a divisor of width=512"),
    (dict(streams=4, segments=4, reduce="head"), "connection.reduce='head': expected at least two streams per segment"),
  ],
)
def test_segments_that_cannot_work_are_refused(fields, message):
  config = dataclasses.replace(schema.Config(), connection=schema.Connection(**fields))
  with pytest.raises(ConfigError, match=message):
    connections.check(config)
