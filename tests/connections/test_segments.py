"""Fractional and virtual-width connections: the formulas with every gradient, the plain start, training, TRM."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.connections import expand, HyperConnection, reduce
from jpmhc_jax.connections.ops import segments
from jpmhc_jax.models.connections import hyper_connection_fn
from jpmhc_jax.models.trm import TRM

D, TOKENS = 8, (2, 3)
FORMS = ("linear", "softmax", "sigmoid", "softmax_read")
SIZES = [(4, 4), (4, 2), (3, 2)]  # fractional, virtual width, and a width ratio that is no whole number


def _config(n, m, **fields):
  return schema.Connection(**({"mixer": "cayley", "streams": n, "segments": m, "read_write": "linear"} | fields))


def _sublayer(u):
  return 3.0 * jnp.tanh(jnp.roll(u, 1, axis=-1))


def _input(seed=1):
  return jax.random.normal(jax.random.key(seed), (*TOKENS, D))


@pytest.mark.parametrize("static", [False, True], ids=["per_token", "static"])
def test_the_apply_stage_is_the_formula_with_every_gradient(static):
  n, m, w = 3, 2, 4
  rng, free = np.random.default_rng(0), () if static else TOKENS
  with jax.enable_x64(True):
    shapes = ((*TOKENS, n, w), (m, n, *free), (n, n, *free), (n, m, *free), (*TOKENS, m * w))
    x, a, h, b, y = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)

    def tokens_first(c):
      c = jnp.broadcast_to(c.reshape(*c.shape[:2], *(c.shape[2:] or (1,) * len(TOKENS))), (*c.shape[:2], *TOKENS))
      return jnp.moveaxis(c, (0, 1), (-2, -1))

    def plain(x, a, h, b, y):
      u = (tokens_first(a) @ x).reshape(*TOKENS, m * w)
      return u, tokens_first(h) @ x + tokens_first(b) @ y.reshape(*TOKENS, m, w)

    def fused(x, a, h, b, y):
      return segments.read(x, a), segments.mix_and_write(x, h, b, y)

    out, pullback = jax.vjp(fused, x, a, h, b, y)
    expected, expected_pullback = jax.vjp(plain, x, a, h, b, y)
    cotangent = tuple(jnp.asarray(rng.normal(size=o.shape)) for o in out)
    pairs = (*zip(out, expected, strict=True), *zip(pullback(cotangent), expected_pullback(cotangent), strict=True))
    for actual, wanted in pairs:
      np.testing.assert_allclose(actual, wanted, atol=1e-12)
    np.testing.assert_allclose(
      segments.mix_and_write(x, None, b, y), plain(x, a, jnp.eye(n, dtype=x.dtype), b, y)[1], atol=1e-12
    )


@pytest.mark.parametrize("mixer", [None, jnp.eye(4)], ids=["identity", "mixed"])
def test_streams_keep_their_dtype_whatever_the_sub_layer_returns(mixer):
  streams, output = jnp.ones((5, 4, 8), jnp.bfloat16), jnp.ones((5, 16))

  def write(streams, output):
    return segments.mix_and_write(streams, mixer, jnp.ones((4, 2)), output)

  @jax.jit
  def both(streams, output):
    mixed, pullback = jax.vjp(write, streams, output)
    return mixed, pullback(mixed)

  mixed, (to_streams, to_output) = both(streams, output)
  assert (mixed.dtype, to_streams.dtype, to_output.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
  np.testing.assert_array_equal(mixed, jnp.full_like(streams, 3.0))


def test_a_static_mixer_meets_per_token_writes():
  n, m, w = 4, 2, 4
  keys = jax.random.split(jax.random.key(0), 4)
  x, y = jax.random.normal(keys[0], (*TOKENS, n, w)), jax.random.normal(keys[1], (*TOKENS, m * w))
  h, b = jax.random.normal(keys[2], (n, n)), jax.random.normal(keys[3], (n, m, *TOKENS))
  expected = jnp.einsum("ij,...jw->...iw", h, x) + jnp.einsum("is...,...sw->...iw", b, y.reshape(*TOKENS, m, w))
  np.testing.assert_allclose(jax.jit(segments.mix_and_write)(x, h, b, y), expected, atol=1e-5)


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("init", ["zero", "round_robin"])
def test_the_linear_start_is_the_plain_residual_network_exactly(n, m, init):
  x = _input()
  rule = hyper_connection_fn(_config(n, m, init=init, generator="gated"), D, 1)
  streams = jax.jit(lambda p: rule(p, expand(x, n, m), _sublayer))(rule.init(jax.random.key(0)))
  plain = x + _sublayer(x)
  np.testing.assert_allclose(reduce(streams, "mean", m), plain, atol=3e-6 if init == "zero" else 0.05)
  np.testing.assert_allclose(streams, expand(plain, n, m), atol=3e-6 if init == "zero" else 0.05)


@pytest.mark.parametrize("form", FORMS[1:])
def test_bounded_forms_start_as_near_to_it_as_the_identity_bias_says(form):
  x = _input()

  def error(bias):
    rule = hyper_connection_fn(_config(4, 2, read_write=form, init="zero", identity_bias=bias), D, 0)
    out = jax.jit(lambda p: rule(p, expand(x, 4, 2), _sublayer))(rule.init(jax.random.key(0)))
    return float(jnp.max(jnp.abs(reduce(out, "mean", 2) - x - _sublayer(x))))

  assert error(4.0) < 0.5
  assert error(12.0) < 1e-3


def test_one_segment_is_the_hyper_connection():
  """m = 1 through the general formulas: A (1, n), B (n, 1)."""
  n = 4
  rule = hyper_connection_fn(_config(n, 1, init_scale=1.0), D, 0)
  parameters, x = rule.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (*TOKENS, n, D))

  @jax.jit
  def both(parameters, x):
    read, mix, write = rule.coefficients(parameters, x)
    u = segments.read(x, read[None])
    return segments.mix_and_write(x, mix, write[:, None], _sublayer(u)), rule(parameters, x, _sublayer)

  np.testing.assert_allclose(*both(parameters, x), atol=1e-5)


def test_a_fractional_connection_with_all_widths_is_no_wider_than_the_vector():
  """m = n keeps d numbers a token, and with an orthogonal mixer and no sub-layer it keeps their norm."""
  rule = hyper_connection_fn(_config(4, 4, init_scale=3.0, options="alpha=1.0"), D, 0)
  x = expand(_input(), 4, 4)
  assert x.shape == (*TOKENS, 4, D // 4)
  out = jax.jit(lambda p: rule(p, x, jnp.zeros_like))(rule.init(jax.random.key(0)))
  assert float(jnp.max(jnp.abs(out - x))) > 0.1
  np.testing.assert_allclose(jnp.linalg.norm(out, axis=(-2, -1)), jnp.linalg.norm(x, axis=(-2, -1)), rtol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(4, 4), (4, 2)])
def test_they_train_and_every_logit_gets_a_gradient(n, m):
  rules = [hyper_connection_fn(_config(n, m), D, k) for k in range(2)]
  parameters = [rule.init(jax.random.key(k)) for k, rule in enumerate(rules)]
  x, target = jax.random.normal(jax.random.key(5), (32, D)), jax.random.normal(jax.random.key(6), (32, D))

  def loss(parameters):
    h = expand(x, n, m)
    for rule, p in zip(rules, parameters, strict=True):
      h = rule(p, h, _sublayer)
    return jnp.mean(jnp.square(reduce(h, "mean", m) - target))

  both = jax.jit(jax.value_and_grad(loss))
  first, gradient = both(parameters)
  for leaf in jax.tree.leaves(gradient[0]):
    assert float(jnp.min(jnp.max(jnp.abs(leaf), axis=tuple(range(leaf.ndim - 1))))) > 0
  for _ in range(40):
    _, gradient = both(parameters)
    parameters = jax.tree.map(lambda p, g: p - 0.01 * g, parameters, gradient)
  assert float(both(parameters)[0]) < 0.7 * float(first)


def test_the_module_and_the_pure_form_agree():
  config = _config(4, 2, init_scale=1.0)
  module = HyperConnection(hyper_connection_fn(config, D, 1), rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (*TOKENS, 4, D // 2))
  state = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  by_module = nnx.jit(lambda module, x: module(x, _sublayer))(module, x)
  by_function = jax.jit(lambda state, x: hyper_connection_fn(config, D, 1)(state, x, _sublayer))(state, x)
  np.testing.assert_array_equal(by_module, by_function)
  with pytest.raises(ValueError, match=r"expected \(..., n=4, d=4\) of 2 segments; `expand` makes them"):
    module(jnp.zeros((*TOKENS, 4, D)), _sublayer)


@pytest.mark.parametrize(("scope", "n", "m"), [pytest.param("carry", 4, 2, marks=pytest.mark.slow), ("call", 2, 2)])
def test_a_recursive_model_of_segments_starts_as_the_plain_model(scope, n, m):
  """Zero start, identity at the start: latents are the segments of the plain model's, logits equal."""
  model = schema.Model(
    width=16, heads=2, layers=1, mlp_multiple=8, puzzle=schema.Puzzle(16, 1),
    recursion=schema.Recursion(outer=1, inner=1),
  )  # fmt: skip
  inputs, rows = jax.random.randint(jax.random.key(3), (2, 6), 0, 5), jax.random.normal(jax.random.key(2), (2, 16))

  def build(connection):
    return TRM(model, connection, vocab_size=5, sequence_length=6, rngs=nnx.Rngs(0))

  plain = build(schema.Connection(streams=1))
  ours = build(_config(n, m, init="zero", scope=scope, expand="scale", reduce="learned"))
  shared = nnx.to_pure_dict(nnx.state(plain))
  # Random numbers are drawn in order of construction: give both the same trunk.
  nnx.update(ours, nnx.State({k: v for k, v in shared.items() if not k.startswith("block")}))
  nnx.update(ours.block0.tokens, nnx.State(shared["block0"]["tokens"]))
  nnx.update(ours.block0.features, nnx.State(shared["block0"]["features"]))
  latents = ours.initial_latents(2, 7)
  assert latents[0].shape == ((2, 7, n, 16 // m) if scope == "carry" else (2, 7, 16))
  run = nnx.jit(lambda model, *latents: model(*latents, inputs, rows))
  expected, output = run(plain, *plain.initial_latents(2, 7)), run(ours, *latents)
  np.testing.assert_allclose(output.logits, expected.logits, atol=2e-4)


def test_the_connection_of_a_config_has_its_segments():
  rule = hyper_connection_fn(_config(4, 2), D, 0)
  assert rule.routing.segments == 2 and rule.stream_width == 4
  assert dataclasses.replace(rule, transpose=True).coefficients(
    rule.init(jax.random.key(0)), jnp.ones((1, 4, 4))
  ).read.shape == (2, 4, 1)
