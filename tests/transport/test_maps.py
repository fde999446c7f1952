"""Maps: exact singular values, volumes and inverses against Jacobians; fits against SciPy; sizes from 2 to 1,024."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jpmhc_jax as jp
from jpmhc_jax.core.errors import ConfigError, DataError

t = jp.transport


def moved(rule, seed=0):
  """Parameters some way from the start: on their manifolds, and with conditioners that do something."""
  parameters = rule.init(jax.random.key(seed))
  roles = rule.roles
  return {
    name: value + 0.2 * jnp.sin(jnp.arange(value.size, dtype=value.dtype).reshape(value.shape))
    if roles[name] == "trunk" else value
    for name, value in parameters.items()
  }  # fmt: skip


RULES = {
  "orthogonal expansion": t.OrthogonalMap(3, 5),
  "orthogonal reduction": t.OrthogonalMap(5, 3),
  "linear": t.LinearMap(4, 6),
  "spectral": t.SpectralMap(6, 4),
  "flow": t.FlowMap(4, 4, couplings=3, hidden=8),
  "additive flow": t.FlowMap(5, 5, couplings=2, hidden=8, additive=True),
  "mlp": t.OrthogonalMLP(3, 5),
  "residual mlp": t.OrthogonalMLP(4, 4, residual=0.5),
  "attention": t.AttentionMap(4, 3, anchors=7),
  "barycentric": t.BarycentricMap(3, 3, points=9),
  "flow, expansion": t.Chain.of(t.FlowMap(3, 3, couplings=2, hidden=8), t.OrthogonalMap(3, 5)),
  "reduction, flow": t.Chain.of(t.OrthogonalMap(5, 3), t.FlowMap(3, 3, couplings=2, hidden=8)),
  "expansion, flow": t.Chain.of(t.OrthogonalMap(3, 5), t.FlowMap(5, 5, couplings=2, hidden=8)),
  "flow, reduction": t.Chain.of(t.FlowMap(5, 5, couplings=2, hidden=8), t.OrthogonalMap(5, 3)),
}
NO_FORMULA = {"mlp", "residual mlp", "attention", "barycentric", "expansion, flow", "flow, reduction"}


@pytest.mark.parametrize("name", RULES)
def test_what_a_map_says_of_its_jacobian_is_true(name):
  rule = RULES[name]
  with jax.enable_x64(True):
    parameters = {n: jnp.asarray(v, jnp.float64) for n, v in moved(rule).items()}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, rule.source)))
    jacobians = jax.jit(jax.vmap(jax.jacobian(lambda row: rule(parameters, row))))(x)
    assert jacobians.shape == (4, rule.target, rule.source)
    s = np.linalg.svd(jacobians, compute_uv=False)
    volumes = rule.log_volumes(parameters, x)
    assert (volumes is None) == (name in NO_FORMULA)
    if volumes is not None:
      np.testing.assert_allclose(volumes, np.log(s).sum(1), atol=1e-6)
    elif name not in ("attention",):
      exact, error = t.log_volume(lambda row: rule(parameters, row), x[0])
      np.testing.assert_allclose(exact, np.log(s[0]).sum(), rtol=1e-6)
      assert error == 0
    values = rule.singular_values(parameters)
    if values is not None:
      np.testing.assert_allclose(values, s[0], atol=1e-6)
    if isinstance(rule, t.OrthogonalMLP):
      low, high = rule.bounds()
      assert low - 1e-6 <= s.min() and s.max() <= high + 1e-6
    if isinstance(rule, t.FlowMap):
      np.testing.assert_allclose(rule.inverse(parameters, rule(parameters, x)), x, atol=1e-6)
      assert rule.additive == (float(jnp.max(jnp.abs(volumes))) == 0)
      start = rule.init(jax.random.key(0))
      np.testing.assert_allclose(rule(start, x), x, atol=1e-5)


@pytest.mark.parametrize(("m", "k"), [(2, 1024), (1024, 2), (1024, 1024)])
def test_maps_of_any_size_are_built_and_applied(m, k):
  for rule in (t.OrthogonalMap(m, k), t.LinearMap(m, k), t.SpectralMap(m, k)):
    parameters = jax.eval_shape(rule.init, jax.random.key(0))
    assert jax.eval_shape(rule, parameters, jax.ShapeDtypeStruct((3, m), jnp.bfloat16)).shape == (3, k)
  if m == k:
    flow = t.FlowMap(m, k, couplings=1, hidden=2)
    parameters = jax.eval_shape(flow.init, jax.random.key(0))
    assert jax.eval_shape(flow.log_volumes, parameters, jax.ShapeDtypeStruct((3, m), jnp.float32)).shape == (3,)


@pytest.mark.parametrize(("m", "k"), [(6, 6), (4, 7), (7, 4)])
def test_fits_are_procrustes_and_ridge(m, k):
  rng = np.random.default_rng(1)
  x = rng.normal(size=(40, m)).astype(np.float32)
  y = (x @ rng.normal(size=(m, k)) + 0.1 * rng.normal(size=(40, k)) + 1).astype(np.float32)
  rule = t.OrthogonalMap(m, k)
  parameters = rule.fit(x, y)
  centred_x, centred_y = x - x.mean(0), y - y.mean(0)
  if m >= k:  # SciPy's needs a square matrix or more columns on the left: rows of zeros change nothing
    padded = np.pad(centred_y, ((0, 0), (0, m - k)))
    expected = scipy.linalg.orthogonal_procrustes(centred_x, padded)[0][:, :k]
  else:
    expected = scipy.linalg.orthogonal_procrustes(np.pad(centred_x, ((0, 0), (0, k - m))), centred_y)[0][:m]
  np.testing.assert_allclose(rule.matrix(parameters) / rule.scale(parameters), expected, atol=2e-4)
  np.testing.assert_allclose(jnp.mean(rule(parameters, x), 0), y.mean(0), atol=1e-4)
  slope = jax.grad(lambda s: jnp.sum((rule({**parameters, "log_scale": s}, x) - y) ** 2))(parameters["log_scale"])
  assert abs(slope) < 1e-2
  linear = t.LinearMap(m, k, ridge=0.1)
  fitted = linear.fit(x, y)
  covariance = centred_x.T @ centred_x / 40
  penalty = 0.1 * np.trace(covariance) / m * np.eye(m)
  np.testing.assert_allclose(
    fitted["kernel"], np.linalg.solve(covariance + penalty, centred_x.T @ centred_y / 40), atol=2e-4
  )
  band = t.SpectralMap(m, k, low=0.9, high=1.1)
  values = band.singular_values(band.fit(x, y))
  assert values.min() > 0.9 - 1e-5 and values.max() < 1.1 + 1e-5


def test_the_barycentric_map_continues_its_plan():
  rng = np.random.default_rng(2)
  x, y = rng.normal(size=(30, 3)).astype(np.float32), (rng.normal(size=(25, 3)) + 2).astype(np.float32)
  plan = t.EntropicTransport(epsilon=0.05)(jnp.asarray(x), jnp.asarray(y))
  rule, parameters = t.BarycentricMap.of(plan, jnp.asarray(y))
  np.testing.assert_allclose(rule(parameters, jnp.asarray(x)), plan.barycentres(jnp.asarray(y)), atol=2e-4)
  np.testing.assert_allclose(rule(parameters, jnp.asarray(x + 100)), y[np.argmax(y.sum(1))][None].repeat(30, 0), atol=9)


def test_an_nnx_map_is_its_rule_and_says_what_moves_each_parameter():
  rule = t.Chain.of(t.FlowMap(4, 4, hidden=3), t.OrthogonalMap(4, 6))
  module = t.TransportMap(rule, rngs=nnx.Rngs(0))
  x = jnp.ones((2, 4))
  np.testing.assert_array_equal(module(x), rule(module.parameters(), x))
  trained = nnx.state(module, nnx.Param)
  assert set(trained) == {name for name, role in rule.roles.items() if role != "fixed"}
  assert module.part1_frame.get_metadata("role") == "manifold:stiefel"


def test_an_estimated_volume_is_within_its_error():
  with jax.enable_x64(True):
    rng = np.random.default_rng(3)
    matrix = jnp.asarray(np.eye(80) + 0.05 * rng.normal(size=(80, 80)))
    value, error = t.log_volume(lambda x: matrix @ x, jnp.zeros(80), jax.random.key(0), probes=16)
    exact = np.linalg.slogdet(matrix)[1]
    assert 0 < error < 1 and abs(value - exact) < 5 * error
    with pytest.raises(ConfigError, match="^key=None: expected a random key"):
      t.log_volume(lambda x: matrix @ x, jnp.zeros(80))


@pytest.mark.parametrize(
  ("build", "error", "message"),
  [
    (lambda: t.OrthogonalMap(0, 3), ConfigError, "^source=0: expected at least 1"),
    (lambda: t.FlowMap(3, 4), ConfigError, "^target=4: expected source=3"),
    (lambda: t.FlowMap(1, 1), ConfigError, "^source=1: expected at least 2"),
    (lambda: t.SpectralMap(3, 4, low=2.0, high=1.0), ConfigError, "^high=1.0: expected at least low=2.0"),
    (lambda: t.OrthogonalMLP(3, 4, residual=0.5), ConfigError, "^target=4: expected source=3"),
    (lambda: t.Chain.of(t.LinearMap(2, 3), t.LinearMap(4, 2)), ConfigError, "^source=4: expected the target=3"),
    (lambda: t.OrthogonalMap(3, 3).fit(np.ones((1, 3)), np.ones((1, 3))), DataError, r"^x has the shape \(1, 3\)"),
    (lambda: t.OrthogonalMap(3, 3).fit(np.ones((4, 3)), np.ones((5, 3))), DataError, "^x has 4 rows and y 5"),
    (
      lambda: t.OrthogonalMap(3, 5).fit(np.ones((4, 2)), np.ones((4, 5))),
      DataError,
      "^x has 2 features: expected source",
    ),
    (
      lambda: t.SpectralMap(3, 5).fit(np.ones((4, 3)), np.ones((4, 4))),
      DataError,
      "^y has 4 features: expected target",
    ),
    (lambda: t.BarycentricMap(3, 3).fit(np.ones((4, 2)), np.ones((1, 2))), ConfigError, "^source=3: expected 2, the"),
    (lambda: t.LinearMap(3, 3).fit(np.full((4, 3), np.nan), np.ones((4, 3))), DataError, "^x: row 0 has 12 values"),
    (lambda: t.AttentionMap(3, 3, anchors=9).fit(np.ones((4, 3)), np.ones((4, 3))), DataError, "anchors=9 pairs"),
    (lambda: t.LinearMap(3, 2)(t.LinearMap(3, 2).init(jax.random.key(0)), jnp.ones((2, 4))), DataError, "4 features"),
  ],
)
def test_bad_input_is_named(build, error, message):
  with pytest.raises(error, match=message):
    build()
