"""Losses against exact Jacobians in float64: the mean of each estimator to 5 standard errors, and what it misses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jpmhc_jax as jp
from jpmhc_jax.core.errors import ConfigError, DataError

t = jp.transport
M, K, DRAWS = 4, 6, 20_000


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def a_map():
  rng = np.random.default_rng(0)
  first, second = rng.normal(size=(5, M)) / 2, rng.normal(size=(K, 5)) / 2
  return lambda x: second @ jnp.tanh(first @ x) + second @ (first @ x)


def gram(f, x):
  j = jax.jacfwd(f)(x)
  return j.T @ j


with jax.enable_x64(True):
  F, X = a_map(), jnp.asarray([0.3, -0.2, 0.5, 0.1])
  U = jnp.linalg.qr(jnp.asarray(np.random.default_rng(1).normal(size=(M, 2))))[0]


def one_probe_mean(f, x):
  excess = gram(f, x) - jnp.eye(M)
  return 2 * jnp.sum(excess**2) + jnp.trace(excess) ** 2


@pytest.mark.parametrize(
  ("estimate", "exact"),
  [
    (lambda k: t.isometry_estimate(F, X, k), t.isometry),
    (lambda k: t.isometry_estimate(F, X, k, probes=4), t.isometry),
    (lambda k: t.one_probe_isometry(F, X, k), one_probe_mean),
    (lambda k: t.trace_isometry_estimate(F, X, k), t.trace_isometry),
    (lambda k: t.trace_isometry_estimate(F, X, k, probes=4), t.trace_isometry),
    (
      lambda k: t.tangent_isometry_estimate(F, X, U, k),
      lambda f, x: t.tangent_isometry(f, x, U),
    ),
  ],
)
def test_an_estimator_has_the_mean_that_it_names(estimate, exact):
  samples = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), DRAWS))
  error = float(jnp.std(samples)) / DRAWS**0.5
  assert abs(float(jnp.mean(samples)) - float(exact(F, X))) < 5 * error
  assert error < 0.05 * float(exact(F, X)) + 1e-3  # the test can tell


@pytest.mark.parametrize(("probes", "share", "basis"), [(3, 1.0, False), (2, 0.4, True)])
def test_the_penalty_of_a_share_of_the_rows_has_the_mean_and_the_variance_that_it_names(probes, share, basis):
  points = jnp.asarray(np.random.default_rng(2).normal(size=(7, M)))
  bases = jnp.broadcast_to(U, (7, M, 2)) if basis else None
  f = lambda rows: jax.vmap(F)(rows)  # noqa: E731
  draw = lambda key: t.isometry_penalty(f, points, key, probes, share, bases)  # noqa: E731
  samples = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), DRAWS))
  exact = (lambda x: t.tangent_isometry(F, x, U)) if basis else (lambda x: t.isometry(F, x))
  each = jax.jit(jax.vmap(exact))(points)
  error = float(jnp.std(samples)) / DRAWS**0.5
  assert abs(float(jnp.mean(samples)) - each.mean()) < 5 * error < 0.1 * each.mean()
  if share == 1:  # nothing but probes varies
    excess = np.asarray(jax.jit(jax.vmap(lambda x: gram(F, x)))(points)) - np.eye(M)
    square = np.trace(excess @ excess, axis1=1, axis2=2)
    fourth = np.trace(excess @ excess @ excess @ excess, axis1=1, axis2=2)
    variance = np.sum((4 * (probes - 2) + 6) * fourth + 2 * square**2) * 2 / (probes * (probes - 1) * 7**2)
    np.testing.assert_allclose(jnp.var(samples), variance, rtol=0.15)


def test_the_relaxed_isometry_of_many_points_is_that_of_the_mean_jacobian_moments():
  points = jnp.tile(X[None], (DRAWS, 1))
  estimate = jax.jit(lambda k: t.relaxed_isometry_estimate(F, points, k))(jax.random.key(1))
  assert abs(float(estimate) - float(t.relaxed_isometry(F, X))) < 0.1 * float(t.relaxed_isometry(F, X))
  np.testing.assert_allclose(t.relaxed_isometry(lambda x: 3 * F(x), X), t.relaxed_isometry(F, X), rtol=1e-10)


def test_exact_losses_are_those_of_the_singular_values():
  s = np.linalg.svd(jax.jacfwd(F)(X), compute_uv=False)
  np.testing.assert_allclose(t.isometry(F, X), np.sum((s**2 - 1) ** 2), rtol=1e-10)
  np.testing.assert_allclose(t.trace_isometry(F, X), (np.mean(s**2) - 1) ** 2, rtol=1e-10)
  np.testing.assert_allclose(t.relaxed_isometry(F, X), M * np.sum(s**4) / np.sum(s**2) ** 2 - 1, rtol=1e-10)
  np.testing.assert_allclose(t.volume(F, X, target=0.3), (np.log(s).sum() - 0.3) ** 2, rtol=1e-10)
  np.testing.assert_allclose(t.singular_values(F, X), s, rtol=1e-10)


def snippet_sum(f, x, key):
  """A widely copied "isometry penalty": the gradient of the sum of outputs, pulled to length one."""
  del key
  return (jnp.linalg.norm(jax.grad(lambda x: jnp.sum(f(x)))(x)) - 1) ** 2


def snippet_vjp(f, x, key):
  """Another: one random vector through the transposed Jacobian, its squared length pulled to its dimension."""
  y, pull = jax.vjp(f, x)
  v = jax.random.rademacher(key, y.shape, x.dtype)
  return jnp.sum(pull(v)[0] ** 2) / len(x) - 1


def test_what_the_cheap_losses_miss():
  ones = jnp.ones(2)
  collapsed = lambda x: jnp.asarray([2**0.5, 0.0]) * x  # noqa: E731
  np.testing.assert_allclose(t.trace_isometry(collapsed, ones), 0, atol=1e-12)
  np.testing.assert_allclose(t.isometry(collapsed, ones), 2)
  halved = lambda x: jnp.asarray([0.5, 2.0]) * x  # noqa: E731
  np.testing.assert_allclose(t.volume(halved, ones), 0, atol=1e-12)
  assert t.isometry(halved, ones) > 9
  np.testing.assert_allclose(t.relaxed_isometry(lambda x: 0.01 * x, ones), 0, atol=1e-12)
  stretched = lambda x: U @ U.T @ x + 3 * (x - U @ U.T @ x)  # noqa: E731
  np.testing.assert_allclose(t.tangent_isometry(stretched, X, U), 0, atol=1e-12)
  assert t.isometry(stretched, X) > 9


def test_two_copied_snippets_accept_maps_that_are_no_isometries():
  key, ones = jax.random.key(0), jnp.ones(2)
  # The sum's gradient is Jᵀ1, one vector: a projection passes, and a rotation that is an isometry does not.
  flat = lambda x: jnp.asarray([[1.0, 0.0], [0.0, 0.0]]) @ x  # noqa: E731
  np.testing.assert_allclose(snippet_sum(flat, ones, key), 0, atol=1e-12)
  np.testing.assert_allclose(t.isometry(flat, ones), 1)
  assert snippet_sum(lambda x: x, ones, key) > 0.1 and t.isometry(lambda x: x, ones) == 0
  # The transposed product sees tr J Jᵀ = tr JᵀJ only: a collapse passes for every draw.
  collapsed = lambda x: jnp.asarray([2**0.5, 0.0]) * x  # noqa: E731
  for seed in range(4):
    np.testing.assert_allclose(snippet_vjp(collapsed, ones, jax.random.key(seed)), 0, atol=1e-12)
  assert t.isometry_estimate(collapsed, ones, key) > 0.01


def test_tangent_directions_are_those_of_the_cloud():
  rng = np.random.default_rng(4)
  plane = np.linalg.qr(rng.normal(size=(5, 2)))[0]
  points = jnp.asarray(rng.normal(size=(30, 2)) @ plane.T + 3)
  basis = t.tangent_basis(points, neighbours=6, rank=2)
  np.testing.assert_allclose(
    basis @ jnp.swapaxes(basis, 1, 2), np.broadcast_to(plane @ plane.T, (30, 5, 5)), atol=1e-10
  )
  with pytest.raises(ConfigError, match="^neighbours=30: expected 1 to below 30"):
    t.tangent_basis(points, neighbours=30, rank=2)


def test_the_likelihood_is_the_density_that_the_map_pulls_back():
  rng = np.random.default_rng(7)
  y, x, kernel = rng.normal(size=(9, 3)) * 2 + 1, rng.normal(size=(5, 3)), rng.normal(size=(3, 3))
  mean, variance = y.mean(0), ((y - y.mean(0)) ** 2).mean()
  inverse = np.linalg.inv(kernel)  # x = (z - shift) kernel^-1 of a Gaussian z is Gaussian
  pulled = scipy.stats.multivariate_normal(mean @ inverse, variance * inverse.T @ inverse)
  volumes = jnp.full(5, np.linalg.slogdet(kernel)[1])
  value = t.negative_log_likelihood(jnp.asarray(x @ kernel), jnp.asarray(y), volumes, 3)
  np.testing.assert_allclose(value, -pulled.logpdf(x).mean() / 3, rtol=1e-9)


def test_contrastive_and_mmd_are_their_sums():
  rng = np.random.default_rng(5)
  x, y, bank = (rng.normal(size=(n, 3)) for n in (6, 6, 4))
  unit = [p / np.linalg.norm(p, axis=1, keepdims=True) for p in (x, y, bank)]
  logits, more = unit[0] @ unit[1].T / 0.2, unit[0] @ unit[2].T / 0.2
  rows = np.log(np.exp(np.concatenate([logits, more], 1)).sum(1)) - np.diag(logits)
  columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
  value = t.contrastive(jnp.asarray(x), jnp.asarray(y), 0.2, jnp.asarray(bank))
  np.testing.assert_allclose(value, 0.5 * (rows + columns).mean(), rtol=1e-9)
  assert np.all(jax.grad(lambda b: t.contrastive(jnp.asarray(x), jnp.asarray(y), 0.2, b))(jnp.asarray(bank)) == 0)

  def draw(key):
    a, b = jax.random.split(key)
    return t.mmd(jax.random.normal(a, (8, 2)), jax.random.normal(b, (8, 2)))

  samples = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(6), 4000))
  assert abs(float(samples.mean())) < 5 * float(samples.std()) / 4000**0.5 + 0.02  # the width comes from the data


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (
      lambda: t.isometry_estimate(F, X, jax.random.key(0), probes=1),
      ConfigError,
      "^probes=1: expected at least 2",
    ),
    (
      lambda: t.isometry_penalty(F, jnp.ones((4, M)), jax.random.key(0), share=0.0),
      ConfigError,
      "^share=0.0: expected above 0",
    ),
    (lambda: t.contrastive(jnp.ones((1, 2)), jnp.ones((1, 2))), DataError, r"^image has the shape \(1, 2\)"),
    (lambda: t.contrastive(jnp.ones((3, 2)), jnp.ones((3, 4))), DataError, "^image has 2 features and y 4"),
    (lambda: t.contrastive(jnp.ones((3, 2)), jnp.ones((3, 2)), 0.0), ConfigError, "^temperature=0.0"),
    (lambda: t.mmd(jnp.ones((1, 2)), jnp.ones((3, 2))), DataError, "^image has the shape"),
    (
      lambda: t.negative_log_likelihood(jnp.ones((3, 2)), jnp.ones((3, 4)), jnp.zeros(3), 2),
      DataError,
      "^image has 2 features and y 4",
    ),
    (lambda: t.isometry_penalty(F, jnp.ones((0, M)), jax.random.key(0)), DataError, "^points has the shape"),
  ],
)
def test_bad_input_is_named(call, error, message):
  with pytest.raises(error, match=message):
    call()
