"""The decoder: causal with every mixer, one layer in the program whatever the depth, plain at its start."""

import dataclasses

from drawn import drawn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.models.transformer import Decoder
from jpmhc_jax.training.tasks import task_of

MODEL = schema.Model(kind="decoder", width=16, heads=2, layers=3, mlp_multiple=8, puzzle=schema.Puzzle(width=0))
FAMILIES = {
  "plain": schema.Connection(streams=1),
  "grassmann": schema.Connection(mixer="grassmann", parameterisation="manifold"),
} | {
  name: schema.Connection(mixer=name, init_scale=0.5)
  for name in ("cayley", "sinkhorn", "iso", "hybrid", "identity", "unconstrained")
}


def _decoder(connection, key=0, **changes):
  model = dataclasses.replace(MODEL, **changes)
  return Decoder(model, connection, vocab_size=32, sequence_length=8, rngs=nnx.Rngs(params=key))


def _filled(connection, **changes):
  return drawn(lambda: _decoder(connection, **changes))


def _inputs(rows=2):
  return jax.random.randint(jax.random.key(1), (rows, 8), 0, 32)


RARER = {"iso", "identity", "unconstrained"}


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] * (f in RARER)) for f in FAMILIES])
def test_no_later_byte_changes_an_earlier_logit(family):
  model, inputs = _filled(FAMILIES[family], layers=2), _inputs()
  logits = jax.jit(lambda model, inputs: model(inputs))
  before, after = logits(model, inputs), logits(model, inputs.at[:, 5].set((inputs[:, 5] + 7) % 32))
  np.testing.assert_array_equal(before[:, :5], after[:, :5])
  changed = jnp.max(jnp.abs(before - after), axis=(0, 2))
  assert bool(jnp.all(changed[5:] > 1e-4))


def test_the_program_does_not_grow_with_the_depth():
  def program(layers):
    shapes = jax.eval_shape(lambda: _decoder(FAMILIES["sinkhorn"], layers=layers, rematerialise="block"))
    graph, params, rest = nnx.split(shapes, nnx.Param, ...)

    def loss(params, rest, inputs):
      return jnp.sum(nnx.merge(graph, params, rest)(inputs))

    return jax.jit(jax.grad(loss)).lower(params, rest, _inputs()).as_text().count("\n")

  assert program(24) == program(3)


def test_the_scan_runs_the_layers_one_after_the_other():
  @jax.jit
  def both(model, inputs):
    h = model.embed(inputs)
    for index in range(3):
      h = jax.tree.map(lambda leaf, index=index: leaf[index], model.layers)(h)
    return model(inputs), model.head(h)

  np.testing.assert_allclose(*both(_filled(FAMILIES["identity"]), _inputs()), rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["cayley", "identity"])
def test_streams_start_as_the_plain_transformer(family):
  @jax.jit
  def both(inputs, key):
    plain, wide = _decoder(FAMILIES["plain"], key), _decoder(schema.Connection(mixer=family, init="zero"), key)
    wide.embedding, wide.lm_head = plain.embedding, plain.lm_head
    wide.layers.tokens, wide.layers.features = plain.layers.tokens, plain.layers.features
    return wide(inputs), plain(inputs)

  np.testing.assert_allclose(*both(_inputs(), jax.random.key(3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [pytest.param(True, marks=pytest.mark.slow), False])
def test_round_robin_reads_turn_with_the_sublayer_under_the_scan(bias):
  @jax.jit
  def reads(inputs, key):
    model = _decoder(schema.Connection(mixer="identity", init="round_robin", streams=4, bias=bias), key)
    return model.run(model.embed(inputs), lambda connection, streams: connection.coefficients(streams).read)[1]

  seen = reads(_inputs(), jax.random.key(0))
  favoured = {name: jnp.argmax(jnp.mean(read, axis=(2, 3)), axis=1).tolist() for name, read in seen.items()}
  assert favoured == {"tokens": [0, 2, 0], "features": [1, 3, 1]}


@pytest.mark.parametrize("policy", ["block", "products"])
def test_rematerialisation_changes_no_gradient(policy):
  def gradient(how):
    def loss(h, model):
      return jnp.sum(jnp.square(model.head(model.run(h)[0])))

    model = _filled(FAMILIES["identity"], rematerialise=how)
    return jax.jit(jax.grad(loss))(jax.random.normal(jax.random.key(2), (2, 8, 4, 16)), model)

  np.testing.assert_allclose(gradient(policy), gradient("none"), rtol=1e-4, atol=1e-4)


def test_the_gradient_at_a_nudge_is_the_gradient_of_the_streams():
  def loss(h, nudges, model):
    return jnp.sum(jnp.square(model.head(model.run(h, nudges=nudges)[0])))

  h = jax.random.normal(jax.random.key(2), (2, 8, 4, 16))
  to_h, to_nudges = jax.jit(jax.grad(loss, argnums=(0, 1)))(h, jnp.zeros((3, *h.shape)), _filled(FAMILIES["identity"]))
  np.testing.assert_allclose(to_nudges[0], to_h, rtol=1e-5, atol=1e-5)
  assert float(jnp.linalg.norm(to_nudges[2])) > 0


def test_what_is_not_causal_or_not_there_is_refused():
  base = schema.Config(model=MODEL, data=schema.Data(kind="text"))
  with pytest.raises(ConfigError, match="model.token_mixer='mlp'"):
    task_of(dataclasses.replace(base, model=dataclasses.replace(MODEL, token_mixer="mlp")))
  with pytest.raises(ConfigError, match="model.rematerialise='call'"):
    task_of(dataclasses.replace(base, model=dataclasses.replace(MODEL, rematerialise="call")))
