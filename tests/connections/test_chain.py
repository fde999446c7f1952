"""Chains with one pass over the streams against connections one by one, and against formulas written out in NumPy."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpmhc_jax as jp
from jpmhc_jax.connections import mix_and_write
from jpmhc_jax.connections.ops import base, single_pass, vjp, xla, xla_tpu
from jpmhc_jax.connections.ops.composed import Operands
from jpmhc_jax.connections.ops.pallas import Kernels
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.models.layers import rms_norm

N, D, LINKS, EPSILON = 4, 12, 3, 1e-5
OPS = {"xla": xla, "by_stream": xla_tpu, "gpu": Kernels("gpu", interpret=True), "tpu": Kernels("tpu", interpret=True)}
FORMS = {
  "dynamic": ({}, {}),
  "gated, tanh": ({"generator": "gated", "gate_init": 0.7, "activation": "tanh"}, {}),
  "static in between": ({}, {"generator": "static"}),
}


def _inputs(n=N, d=D, k=5, tokens=(2, 3), static=False):
  """Streams, mixers, write weights, output, kernel and read weights."""
  rng, free = np.random.default_rng(0), () if static else tokens
  shapes = ((*tokens, n, d), (n, n, *free), (n, *free), (*tokens, d), (n, d, k), (n, *free))
  return [jnp.asarray(rng.normal(size=shape) / (3 if shape == (n, d, k) else 1), jnp.float32) for shape in shapes]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _pass(inputs, ops, epsilon, later):
  """Values and gradients of all that one pass makes."""

  def made(x, mixer, write, y, kernel, read):
    passed = single_pass.advance(Operands(x, mixer, write, y, kernel, None if later else read), epsilon, ops)
    vector = vjp.read(passed.streams, read, ops) if later else passed.vector
    return passed.streams.streams, passed.products, passed.square, vector

  return _values_and_gradients(made, inputs)


@functools.partial(jax.jit, static_argnums=1)
def _apart(inputs, epsilon):
  def made(x, mixer, write, y, kernel, read):
    x = mix_and_write(x, mixer, write, y)
    x = x if epsilon is None else rms_norm(x, epsilon)
    return x, *vjp.statistics(x, kernel), vjp.read(x, read)

  return _values_and_gradients(made, inputs)


def _values_and_gradients(function, arguments):
  out, pullback = jax.vjp(function, *arguments)
  cotangents = tuple(jnp.cos(jnp.arange(o.size, dtype=jnp.float32)).reshape(o.shape).astype(o.dtype) for o in out)
  return out, pullback(cotangents)


def _assert_near(actual, expected, tolerance=2e-5):
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, e, atol=tolerance * max(1.0, float(jnp.max(jnp.abs(e)))))


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize(
  ("sizes", "epsilon", "later"),
  [
    ({}, EPSILON, True),
    ({}, None, False),
    pytest.param({"d": 130}, EPSILON, False, marks=pytest.mark.slow),  # more than a block of features, not filled
    pytest.param({"n": 6, "static": True}, EPSILON, True, marks=pytest.mark.slow),
  ],
  ids=["normed, read later", "not normed", "wide", "many and static"],
)
def test_one_pass_equals_its_operators_one_by_one(ops, sizes, epsilon, later):
  inputs = _inputs(**sizes)
  _assert_near(_pass(inputs, OPS[ops], epsilon, later), _apart(inputs, epsilon))


@pytest.mark.slow
def test_one_pass_in_bfloat16_rounds_as_the_operators_do():
  inputs = [x.astype(jnp.bfloat16) if i in (0, 3) else x for i, x in enumerate(_inputs())]
  expected, gradients = _apart(inputs, EPSILON)
  for ops in (xla, OPS["tpu"]):
    values, own = _pass(inputs, ops, EPSILON, True)
    assert values[0].dtype == values[3].dtype == own[0].dtype == jnp.bfloat16
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)  # noqa: E731
    _assert_near(wide((values, own)), wide((expected, gradients)), 0.02)  # a bfloat16 has 8 bits


def _rules(form, mixer=None):
  mixer = jp.Cayley(alpha=0.5) if mixer is None else mixer
  fields = [FORMS[form][k == 1] for k in range(LINKS)]
  rules = [jp.HyperConnectionFn(mixer, streams=N, width=D, layer_index=1, init_scale=1.0, **own) for own in fields]
  keys = jax.random.split(jax.random.key(0), LINKS)
  return rules, [rule.init(key) for rule, key in zip(rules, keys, strict=True)]


def _problem():
  streams, weights = jax.random.split(jax.random.key(1))
  return jax.random.normal(streams, (2, 3, N, D)), jax.random.normal(weights, (LINKS, D, D)) / np.sqrt(D)


def _sublayers(weights):
  return [lambda u, w=w: jnp.tanh(u @ w) for w in weights]


def _chained(coefficients, epsilon, rules, parameters, streams, weights):
  links = [jp.Link(*pair) for pair in zip(rules, parameters, strict=True)]
  return jp.Chain(coefficients, epsilon)(streams, links, _sublayers(weights))


def _one_by_one(coefficients, epsilon, rules, parameters, streams, weights):
  seen = streams
  for rule, own, sublayer in zip(rules, parameters, _sublayers(weights), strict=True):
    here = streams
    streams = rule(own, streams, sublayer, None if coefficients == "own" else seen)
    streams, seen = streams if epsilon is None else rms_norm(streams, epsilon), here
  return streams


@pytest.mark.parametrize(
  ("coefficients", "form", "ops"),
  [
    ("own", "dynamic", "xla"),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in itertools.product(("own", "previous"), FORMS, ("xla", "tpu"))
      if case != ("own", "dynamic", "xla") and (case[1] == "dynamic" or case[2] == "xla")
    ),
  ],
)
def test_a_chain_equals_its_connections_one_by_one(coefficients, form, ops, monkeypatch):
  """Values and both modes of differentiation."""
  rules, parameters = _rules(form)
  streams, weights = _problem()
  epsilon = None if form == "gated, tanh" else EPSILON

  def of(function):
    def made(parameters, streams, weights):
      return (function(coefficients, epsilon, rules, parameters, streams, weights),)

    pushed = jax.jvp(made, (parameters, streams, weights), jax.tree.map(jnp.cos, (parameters, streams, weights)))[1]
    return _values_and_gradients(made, (parameters, streams, weights)), pushed

  expected = jax.jit(lambda: of(_one_by_one))()
  monkeypatch.setattr(base, "stream_ops", lambda *_: OPS[ops])
  _assert_near(jax.jit(lambda: of(_chained))(), expected)


def _in_numpy(coefficients, parameters, streams, weights):
  """The two networks written out in float64, with the identity for a mixer."""
  x, seen = np.float64(streams), np.float64(streams)
  for own, w in zip(parameters, np.float64(weights), strict=True):
    of = x if coefficients == "own" else seen
    flat = of.reshape(*of.shape[:-2], -1)
    kernel = np.float64(own["projection"]).reshape(N * D, -1)
    logits = np.float64(own["bias"]) + flat @ kernel / np.sqrt(np.mean(flat**2, axis=-1, keepdims=True) + 1e-6)
    sigmoid = 1 / (1 + np.exp(-logits))
    read, write = sigmoid[..., :N], 2 * sigmoid[..., N : 2 * N]
    output = np.tanh(np.einsum("...n,...nd->...d", read, x) @ w)
    mixed = x + write[..., None] * output[..., None, :]
    x, seen = mixed / np.sqrt(np.mean(mixed**2, axis=-1, keepdims=True) + EPSILON), x
  return x


# Of the streams behind the chain: Σ x cos k over all numbers in order, from the formulas in NumPy.
GOLDEN = {"own": 20.44032, "previous": 21.51987}


@pytest.mark.parametrize("coefficients", ["own", "previous"])
def test_both_forms_are_the_formulas_written_out(coefficients):
  rules, parameters = _rules("dynamic", jp.Identity())
  streams, weights = _problem()
  expected = _in_numpy(coefficients, parameters, streams, weights)
  assert np.sum(expected.ravel() * np.cos(np.arange(expected.size))) == pytest.approx(GOLDEN[coefficients], abs=2e-4)
  _assert_near(_chained(coefficients, EPSILON, rules, parameters, streams, weights), expected)


def test_coefficients_one_connection_old_are_another_network():
  rules, parameters = _rules("dynamic")
  streams, weights = _problem()
  own, previous = (_chained(c, EPSILON, rules, parameters, streams, weights) for c in ("own", "previous"))
  assert float(jnp.max(jnp.abs(own - previous))) > 0.1
  one = [_chained(c, None, rules[:1], parameters[:1], streams, weights[:1]) for c in ("own", "previous")]
  chex.assert_trees_all_equal(*one)  # the first has its own


@pytest.mark.parametrize(
  ("fields", "complaint"),
  [
    ({"routing": jp.Routing(segments=2)}, "segments=2: expected 1 in a single pass"),
    ({"norm": "layernorm"}, "norm='layernorm': expected 'rmsnorm' in a single pass"),
    ({"projection": "per_stream", "layer_index": 0}, "projection='per_stream': expected 'joint' in a single pass"),
    ({"width": 2 * D}, "width=24: expected those of the connection before it in the chain, streams=4, width=12"),
  ],
)
def test_what_a_chain_cannot_pass_through_is_refused(fields, complaint):
  rules = [jp.HyperConnectionFn(jp.Cayley(), **({"streams": N, "width": D} | own)) for own in ({}, fields)]
  links = [jp.Link(rule, rule.init(jax.random.key(0))) for rule in rules]
  with pytest.raises(ConfigError, match=complaint):
    jp.Chain()(jnp.ones((3, N, D)), links, [jnp.tanh] * 2)


def test_mistakes_in_a_call_are_named():
  rules, parameters = _rules("dynamic")
  links, streams = [jp.Link(rules[0], parameters[0])], jnp.ones((3, N, D))
  with pytest.raises(ConfigError, match="coefficients='next': expected one of own, previous"):
    jp.Chain("next")
  with pytest.raises(ValueError, match="1 connections and 2 sub-layers: expected one or more, and as many of both"):
    jp.Chain()(streams, links, [jnp.tanh] * 2)
  with pytest.raises(ValueError, match=r"the sub-layer made \(3, 6\) of \(3, 12\)"):
    jp.Chain()(streams, links, [lambda u: u[:, :6]])
  with pytest.raises(ValueError, match=r"streams \(3, 4, 6\): expected \(..., n=4, d=12\)"):
    jp.Chain()(streams[..., :6], links, [jnp.tanh])
