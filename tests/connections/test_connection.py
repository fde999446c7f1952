"""The block: plain residual at the start, symmetry that breaks, every form and generator, clear errors."""

import dataclasses
import re

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.connections import expand, generator, HyperConnection, HyperConnectionFn, reduce
from jpmhc_jax.connections.diagnostics import composite_diagnostics
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers import make
from jpmhc_jax.models.connections import hyper_connection_fn

N, D = 4, 8
TOKENS = (2, 3)
FORMS = ("softmax", "sigmoid", "softmax_read")


def _config(**fields):
  return schema.Connection(**({"mixer": "cayley", "streams": N} | fields))


def _sublayer(u):
  return 3.0 * jnp.tanh(u)


def _equal_streams(seed=1):
  return expand(jax.random.normal(jax.random.key(seed), (*TOKENS, D)), N)


# One of each kind of set; the slow test of every family has the others.
@pytest.mark.parametrize(
  "family", ["cayley", "iso", "orthostochastic", "sinkhorn", "permutation", "householder", "unconstrained", "choice"]
)
def test_at_the_start_equal_streams_give_the_plain_residual_network(family):
  """x' = x + F(x): exactly up to rounding where the start is the identity or keeps the mean."""
  manifold = make(family)
  # Rows that do not sum to one, and iterations that end before they do, say how far off they start.
  exact = manifold.traits.row_sums_one and manifold.traits.exact
  slack = 0.0 if exact else manifold.identity_error(N, schema.Connection().identity_bias)
  x = _equal_streams()
  rule = hyper_connection_fn(_config(mixer=family, init="zero"), D, 0)
  out = jax.jit(lambda p: rule(p, x, _sublayer))(rule.init(jax.random.key(0)))
  scale = float(jnp.max(jnp.abs(x)))
  np.testing.assert_allclose(out, x + _sublayer(x), atol=5e-6 + N * scale * slack)


@pytest.mark.parametrize(
  ("form", "init"), [("softmax", "random"), ("sigmoid", "round_robin"), ("softmax_read", "round_robin")]
)
def test_the_default_start_stays_near_the_plain_network_and_reads_are_weights(form, init):
  x = _equal_streams()
  rule = hyper_connection_fn(_config(read_write=form, init=init), D, layer_index=2)
  parameters = rule.init(jax.random.key(0))
  out, (read, _, _) = jax.jit(lambda p: (rule(p, x, _sublayer), rule.coefficients(p, x)))(parameters)
  np.testing.assert_allclose(out, x + _sublayer(x), atol=0.2)
  if init == "round_robin":
    assert bool(jnp.all(jnp.argmax(read, axis=0) == 2))
    np.testing.assert_allclose(jnp.sum(read, axis=0), 1.0, atol=1e-5)


@pytest.mark.slow
def test_the_known_bad_start_never_separates_the_streams_and_the_default_does():
  """Zero projection, equal biases, symmetric ends: gradients are equivariant and the streams stay copies for ever."""

  def energy_after_training(init, form, **fields):
    config = _config(init=init, read_write=form, bias=False, **fields)
    rules = [hyper_connection_fn(config, D, k) for k in range(2)]
    parameters = [rule.init(jax.random.key(k)) for k, rule in enumerate(rules)]
    x, target = jax.random.normal(jax.random.key(5), (16, D)), jax.random.normal(jax.random.key(6), (16, D))

    def loss(parameters):
      h = expand(x, N)
      for rule, p in zip(rules, parameters, strict=True):
        h = rule(p, h, _sublayer)
      return jnp.mean(jnp.square(reduce(h) - target)), jnp.max(jnp.abs(h - jnp.mean(h, axis=-2, keepdims=True)))

    slope = jax.jit(jax.grad(loss, has_aux=True))
    for _ in range(30):
      gradient, energy = slope(parameters)
      parameters = jax.tree.map(lambda p, g: p - 0.3 * g, parameters, gradient)
    return float(energy)

  assert energy_after_training("zero", "softmax") < 1e-5
  assert energy_after_training("random", "softmax") > 1e-3
  # Streams that are equal project to equal logits: here the default start needs its read bias.
  assert energy_after_training("zero", "sigmoid", projection="per_stream", mixer="sinkhorn") < 1e-5
  assert energy_after_training("random", "sigmoid", projection="per_stream", mixer="sinkhorn") > 1e-3
  # So it does where nothing is projected.
  assert energy_after_training("zero", "softmax", generator="static", mixer="iso") < 1e-5
  assert energy_after_training("random", "softmax", generator="static", mixer="iso") > 1e-3
  assert energy_after_training("random", "sigmoid", generator="static") > 1e-3


def test_gradients_reach_the_projection_at_the_default_start():
  """The zero start of the softmax form gives its projection a gradient of exactly zero; the default does not."""

  def gradient(init):
    rule = hyper_connection_fn(_config(init=init, read_write="softmax", bias=False), D, 0)
    x = jax.random.normal(jax.random.key(2), (*TOKENS, D))
    weights = jax.random.normal(jax.random.key(3), (*TOKENS, D))
    loss = jax.jit(jax.grad(lambda p: jnp.sum(reduce(rule(p, expand(x, N), _sublayer)) * weights)))
    return jnp.max(jnp.abs(loss(rule.init(jax.random.key(0)))["projection"]))

  assert float(gradient("zero")) < 1e-6
  assert float(gradient("random")) > 1e-4


@pytest.mark.parametrize("generator", ["static", "dynamic", "gated"])
def test_generators(generator):
  rule = hyper_connection_fn(_config(generator=generator, init_scale=1.0), D, 0)
  parameters = rule.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (*TOKENS, N, D))
  coefficients = jax.jit(rule.coefficients)(parameters, x)
  free = () if generator == "static" else TOKENS
  assert coefficients.mix.shape == (N, N, *free) and coefficients.read.shape == (N, *free)
  spread = 0.0 if generator == "static" else float(jnp.max(jnp.std(coefficients.read.reshape(N, -1), axis=1)))
  expected = {"static": (0, 0), "dynamic": (0.05, 1), "gated": (1e-5, 0.02)}[generator]
  assert expected[0] <= spread <= expected[1]
  assert jax.eval_shape(lambda p, x: rule(p, x, _sublayer), parameters, x).shape == x.shape


NORMS = ("rmsnorm", "rmsnorm_per_stream", "layernorm", "none")


def _normed_logits(norm, parameters, x):
  """vec(x) normed and multiplied by W, in plain steps; logits first."""
  flat = x.reshape(len(x), -1)
  if norm == "rmsnorm":
    flat = flat / jnp.sqrt(jnp.mean(flat**2, axis=1, keepdims=True) + 1e-6)
  elif norm == "rmsnorm_per_stream":
    flat = (x / jnp.sqrt(jnp.mean(x**2, axis=2, keepdims=True) + 1e-6)).reshape(flat.shape)
  elif norm == "layernorm":
    centred = flat - jnp.mean(flat, axis=1, keepdims=True)
    flat = centred / jnp.sqrt(jnp.mean(centred**2, axis=1, keepdims=True) + 1e-6)
    flat = flat * parameters["norm_scale"].reshape(1, -1) + parameters["norm_shift"].reshape(1, -1)
  return (flat @ parameters["projection"].reshape(N * D, -1)).T


@pytest.mark.parametrize("norm", NORMS)
def test_the_folded_norm_is_the_norm_with_every_gradient(norm):
  with jax.enable_x64(True):
    keys = iter(jax.random.split(jax.random.key(3), 5))
    parameters = {"projection": jax.random.normal(next(keys), (N, D, 2 * N + N * N), jnp.float64)}
    if norm == "layernorm":
      parameters["norm_scale"] = 1 + 0.3 * jax.random.normal(next(keys), (N, D), jnp.float64)
      parameters["norm_shift"] = 0.3 * jax.random.normal(next(keys), (N, D), jnp.float64)
    x = 2 + 3 * jax.random.normal(next(keys), (7, N, D), jnp.float64)
    cotangent = jax.random.normal(next(keys), (2 * N + N * N, 7), jnp.float64)

    def both(function):
      value, pullback = jax.vjp(function, parameters, x)
      return value, pullback(cotangent)

    found = jax.jit(lambda: both(lambda parameters, x: generator.project(x, parameters, norm, 1e-6)))()
    expected = jax.jit(lambda: both(lambda parameters, x: _normed_logits(norm, parameters, x)))()
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-9)


def _normed(norm, x, parameters):
  if norm == "layernorm":
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    normed = centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)
    return normed * parameters["norm_scale"][None] + parameters["norm_shift"][None]
  return x if norm == "none" else x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize(
  ("norm", "fields"),
  [
    *((norm, dict(mixer="cayley", read_write="softmax")) for norm in NORMS),
    ("layernorm", dict(mixer="unconstrained", read_write="linear", segments=2)),
    ("rmsnorm", dict(mixer="orthostochastic")),
    ("none", dict(mixer="identity")),
  ],
)
def test_a_projection_per_stream_gives_each_stream_its_own_rows_from_itself_alone(norm, fields):
  rule = hyper_connection_fn(_config(projection="per_stream", norm=norm, **fields), D, 0)
  d, (read, write, mix) = rule.stream_width, (np.array(size) // N for size in rule.logit_sizes)
  with jax.enable_x64(True):
    keys = iter(jax.random.split(jax.random.key(3), 8))
    parameters = jax.tree.map(
      lambda leaf: jax.random.normal(next(keys), leaf.shape, jnp.float64), rule.init(jax.random.key(0))
    )
    assert parameters["projection"].shape == (1, d, read + write + mix)
    x = 2 + 3 * jax.random.normal(next(keys), (7, N, d), jnp.float64)

    def plainly(parameters, x):
      own = _normed(norm, x, parameters) @ parameters["projection"][0]  # (tokens, n, read + write + mix)
      reads = own[..., :read]
      if rule.routing.segments > 1:
        reads = jnp.swapaxes(reads, 1, 2)  # A (m, n)
      parts = (reads, own[..., read : read + write], own[..., read + write :])
      return (jnp.concatenate([part.reshape(len(x), -1) for part in parts], axis=1) + parameters["bias"][None]).T

    def both(function):
      value, pullback = jax.vjp(function, parameters, x)
      return value, pullback(jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape))

    found, expected = jax.jit(lambda: (both(rule.logits), both(plainly)))()
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-9)


def test_mixers_without_a_row_for_each_stream_take_no_projection_per_stream():
  message = re.escape("'permutation' are (24,): use projection='joint'")
  with pytest.raises(ConfigError, match=f"connection.projection='per_stream': expected .* for 4 streams.*{message}"):
    hyper_connection_fn(_config(mixer="permutation", projection="per_stream"), D, 0)
  for fields in (dict(generator="static"), dict(mixer="sinkhorn", parameterisation="manifold")):
    hyper_connection_fn(_config(**{"mixer": "permutation", "projection": "per_stream"} | fields), D, 0)


@pytest.mark.parametrize(
  "fields", [{}, {"projection": "per_stream"}, {"segments": 2}, {"mixer": "birkhoff_newton", "streams": 12}]
)
def test_a_block_of_no_tokens_has_gradients_of_zero(fields):
  rule = hyper_connection_fn(_config(**fields), D, 0)
  x = jnp.zeros((0, 3, rule.streams, rule.stream_width))

  @jax.jit
  def both(parameters):
    out, pullback = jax.vjp(lambda p: rule(p, x, jnp.tanh), parameters)
    return out, pullback(out)

  out, gradients = both(rule.init(jax.random.key(0)))
  assert out.shape == x.shape
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("projection", ["joint", "per_stream"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_backward_pass_keeps_the_streams_once_in_their_own_dtype(norm, projection):
  rule = hyper_connection_fn(_config(norm=norm, projection=projection), D, 0)
  x = jax.ShapeDtypeStruct((500, N, D), jnp.bfloat16)
  pullback = jax.eval_shape(
    lambda p, x: jax.vjp(lambda x: rule(p, x, lambda read: read), x)[1], rule.init(jax.random.key(1)), x
  )
  large = [leaf.dtype for leaf in jax.tree.leaves(pullback) if leaf.size >= x.size]
  assert large == [jnp.bfloat16]


@pytest.mark.parametrize(
  ("fields", "published"),
  [
    (dict(mixer="cayley", read_write="softmax", norm="layernorm", bias=False), 102_400),
    (dict(mixer="sinkhorn"), 24 * 2048 + 24),
  ],
)
def test_parameter_counts_at_the_published_size(fields, published):
  """Sinkhorn is published with 49,188 = 24·2048 + 36: 12 more than its 24 biases, which the paper does not explain."""
  rule = hyper_connection_fn(_config(**fields), 512, 0)
  shapes = jax.eval_shape(rule.init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == published


@pytest.mark.parametrize("family", ["cayley", "iso", "sinkhorn", "grassmann"])
def test_a_stored_mixer_is_one_matrix_on_its_set_with_a_role(family):
  module = HyperConnection(
    hyper_connection_fn(_config(mixer=family, parameterisation="manifold"), D, 0), rngs=nnx.Rngs(0)
  )
  assert module.mixer.get_metadata("role").startswith("manifold:")
  x = jax.random.normal(jax.random.key(1), (*TOKENS, N, D))
  mix, distance = nnx.jit(lambda module, x: (m := module.coefficients(x).mix, module.rule.mixer.distance(m)))(module, x)
  assert mix.shape == (N, N)
  assert float(jnp.max(distance)) < 1e-5


def test_a_family_without_a_stored_form_is_refused():
  with pytest.raises(ConfigError, match="parameterisation='manifold': expected 'logits'.*'identity' are no manifold"):
    hyper_connection_fn(_config(mixer="identity", parameterisation="manifold"), D, 0)
  with pytest.raises(ValueError, match=r"expected \(..., n=4, d=8\)"):
    rule = hyper_connection_fn(_config(), D, 0)
    rule(rule.init(jax.random.key(0)), jnp.zeros((2, 3, D)), _sublayer)


def test_the_module_and_the_pure_form_agree():
  config = _config(init_scale=1.0)
  module = HyperConnection(hyper_connection_fn(config, D, 1), rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (*TOKENS, N, D))
  state = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  by_module = nnx.jit(lambda module, x: module(x, _sublayer))(module, x)
  by_function = jax.jit(lambda state, x: hyper_connection_fn(config, D, 1)(state, x, _sublayer))(state, x)
  np.testing.assert_array_equal(by_module, by_function)
  assert dataclasses.is_dataclass(module.rule)


@pytest.mark.parametrize(
  "settings",
  [
    {"streams": 4},
    {"streams": 9},
    {"streams": 4, "segments": 2},
    {"streams": 4, "norm": "layernorm"},
    {"streams": 4, "generator": "static"},
  ],
  ids=str,
)
def test_no_product_is_left_to_the_precision_of_the_device(settings):
  """By default a TPU multiplies float32 as bf16: streams that are only passed on would lose sixteen bits at a time."""
  rule = hyper_connection_fn(schema.Connection(**settings), width=8, layer_index=0)
  parameters, x = rule.init(jax.random.key(0)), jnp.ones((3, rule.streams, rule.stream_width))

  def both(parameters, x):
    out, pullback = jax.vjp(lambda parameters, x: rule(parameters, x, jnp.tanh), parameters, x)
    return pullback(out), composite_diagnostics([rule.coefficients(parameters, x).mix] * 2)

  products = re.findall(r"dot_general\[(.*?)\n *\]", str(jax.make_jaxpr(both)(parameters, x)), re.DOTALL)
  assert len(products) > 2
  assert all("precision=(Precision.HIGHEST, Precision.HIGHEST)" in product for product in products)


def test_a_rule_that_is_built_anew_is_the_same_static_argument():
  """Steps trace a connection once: rules that are equal hash alike, so a user may build one wherever they need it."""
  chex.clear_trace_counter()

  def apply(rule, parameters, streams):
    return rule(parameters, streams, _sublayer)

  step, x = jax.jit(chex.assert_max_traces(apply, n=1), static_argnums=0), _equal_streams()
  for alpha in (0.5, jnp.float32(0.5)):
    rule = HyperConnectionFn(make("cayley", alpha=alpha), streams=N, width=D)
    x = step(rule, rule.init(jax.random.key(0)), x)
  with pytest.raises(AssertionError, match="traced > 1 times"):
    step(HyperConnectionFn(make("cayley", alpha=0.25), streams=N, width=D), rule.init(jax.random.key(0)), x)
