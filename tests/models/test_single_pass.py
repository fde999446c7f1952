"""connection.single_pass in networks: the numbers of connections one by one, and the published variant."""

import dataclasses
import functools

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.models import connections
from jpmhc_jax.models.transformer import Decoder
from jpmhc_jax.models.trm import TRM
from jpmhc_jax.models.urm import URM
from jpmhc_jax.training.tasks import task_of

MODEL = schema.Model(
  width=16, heads=2, layers=2, puzzle=schema.Puzzle(width=16, slots=1), recursion=schema.Recursion(outer=2, inner=1)
)
CONNECTION = schema.Connection(streams=2, init_scale=1.0)
INPUTS, ROWS = jnp.arange(8).reshape(2, 4) % 5, jnp.ones((2, 16))


@functools.cache
def _network(kind, single_pass, **fields):
  mixer = fields.pop("token_mixer", "attention")
  model = dataclasses.replace(MODEL, convolution=2 * (kind is URM), token_mixer=mixer)
  connection = dataclasses.replace(CONNECTION, single_pass=single_pass, **fields)
  network = kind(model, connection, vocab_size=5, sequence_length=4, rngs=nnx.Rngs(0))
  return nnx.split(network)


def _answer(kind, single_pass, **fields):
  """(function of a state: a number made of the answer of one supervision step, and its logits; a state away from the
  start, where the halting head and the streams' differences are zero)."""
  graph, state = _network(kind, single_pass, **fields)

  def answer(state):
    network = nnx.merge(graph, state)
    output = network(*network.initial_latents(2, 5), INPUTS, ROWS)
    return jnp.sum(jnp.sin(output.logits)) + jnp.sum(output.q), output.logits

  return answer, jax.tree.map(lambda leaf: leaf + 0.02 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), state)


@functools.cache
def _step(kind, single_pass, **fields):
  """The answer of one supervision step and the gradient of a number made of it, by all parameters."""
  answer, state = _answer(kind, single_pass, **fields)
  gradient, logits = jax.jit(jax.grad(answer, has_aux=True))(state)
  return logits, gradient


@pytest.mark.slow
@pytest.mark.parametrize(
  ("kind", "fields"),
  [
    (TRM, {}),
    (URM, {"scope": "call", "mixer": "identity"}),
    (TRM, {"sharing": "per_call", "mixer": "sinkhorn"}),
    (TRM, {"generator": "static", "parameterisation": "manifold"}),
    (TRM, {"token_mixer": "mlp"}),  # its norm is over the positions: a chain ends there
  ],
  ids=str,
)
def test_own_coefficients_in_one_pass_give_the_same_network(kind, fields):
  (expected, gradient), (logits, own) = (_step(kind, single_pass, **fields) for single_pass in ("off", "own"))
  chex.assert_trees_all_close(logits, expected, atol=1e-5)
  chex.assert_trees_all_close(own, gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["attention", "mlp"])
def test_coefficients_one_connection_old_are_a_network_of_the_same_parameters(mixer):
  (graph, state), (_, plain) = (_network(TRM, single_pass, token_mixer=mixer) for single_pass in ("previous", "off"))
  chex.assert_trees_all_equal(jax.tree.map(jnp.shape, state), jax.tree.map(jnp.shape, plain))
  network, seen = nnx.merge(graph, state), {}
  latent, _ = network.initial_latents(2, 5)
  x = network.injected(network.embed(INPUTS, ROWS))
  h = latent * jnp.array([0.5, 2.0])[None, None, :, None]  # streams that differ
  visited = network.network(h, x, 0, lambda name, connection, streams: seen.update({name: (connection, streams)}))
  chex.assert_trees_all_close(visited, network.network(h, x, 0), atol=1e-5)

  names = ["block0.tokens", "block0.features", "block1.tokens", "block1.features"]
  assert list(seen) == names
  ahead = [names[0], *names]  # in front of each; a chain begins anew behind a norm over positions
  ahead = ahead if mixer == "attention" else [names[0], names[1], names[1], names[3]]
  for before, name in zip(ahead, names, strict=False):
    connection, streams = seen[name]
    expected = network.parts()[names.index(name)].connect.coefficients(seen[before][1])
    chex.assert_trees_all_close(connection.coefficients(streams), expected, atol=1e-6)
    values, _ = connection.diagnostics(streams)
    assert set(values) >= {"difference_energy", "mixer_sensitivity"}
  answers = (_answer(TRM, single_pass, token_mixer=mixer) for single_pass in ("previous", "off"))
  logits, plain = (jax.jit(answer)(state)[1] for answer, state in answers)
  assert float(jnp.max(jnp.abs(logits - plain))) > 1e-3


@pytest.mark.parametrize(
  ("single_pass", "fields"),
  [
    ("own", {}),
    *(
      pytest.param(single_pass, fields, marks=pytest.mark.slow)
      for single_pass, fields in (
        ("previous", {}),
        ("own", {"loops": 2, "rematerialise": "block"}),
        ("previous", {"loops": 2, "rematerialise": "none"}),
      )
    ),
  ],
  ids=str,
)
def test_a_decoder_in_one_pass_is_its_connections_one_by_one(single_pass, fields):
  model = dataclasses.replace(MODEL, kind="decoder", layers=3, **fields)
  connection = dataclasses.replace(CONNECTION, single_pass=single_pass, sharing="per_call" if fields else "all")
  graph, state = nnx.split(Decoder(model, connection, vocab_size=5, sequence_length=4, rngs=nnx.Rngs(0)))
  moved = jax.tree.map(lambda leaf: leaf + 0.02 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), state)

  def answer(state, probe):
    network = nnx.merge(graph, state)
    h, records = network.run(network.embed(INPUTS), probe)
    return jnp.sum(jnp.sin(network.head(h))), (h, records)

  # A probe looks at every connection, so that they run one by one.
  gradient, (h, _) = jax.jit(lambda state: jax.grad(answer, has_aux=True)(state, None))(moved)
  expected, (alone, records) = jax.jit(lambda state: jax.grad(answer, has_aux=True)(state, _mean))(moved)
  assert records["tokens"].shape == (model.layers * model.loops,)
  chex.assert_trees_all_close(h, alone, atol=1e-5)
  chex.assert_trees_all_close(gradient, expected, atol=1e-4, rtol=1e-4)


def _mean(connection, streams):
  return jnp.mean(connection.coefficients(streams).write)


@pytest.mark.parametrize(
  ("fields", "model", "complaint"),
  [
    ({"segments": 2}, {}, "connection.segments=2: expected 1 in a single pass, or connection.single_pass=off"),
    ({"norm": "layernorm"}, {}, "connection.norm='layernorm': expected 'rmsnorm' in a single pass"),
    ({}, {"kind": "resnet"}, "connection.single_pass='own': expected off: the blocks of model.kind=resnet"),
  ],
  ids=str,
)
def test_what_has_no_single_pass_is_refused(fields, model, complaint):
  connection = dataclasses.replace(CONNECTION, single_pass="own", **fields)
  data = schema.Data(kind="images" if model.get("kind") == "resnet" else "arc")
  config = schema.Config(data=data, model=dataclasses.replace(MODEL, **model), connection=connection)
  with pytest.raises(ConfigError, match=complaint):
    connections.check(config)
    task_of(config).check(config)
