"""The Dyson solver against closed forms, Monte Carlo, finite differences and its own symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest

from jpmhc_jax.spectral import chain, density, dyson, moments, monte_carlo
from jpmhc_jax.spectral.layers import block_noise, full_noise


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def _doubly_stochastic(rng, layers, n):
  matrix = np.exp(rng.normal(size=(layers, n, n)))
  for _ in range(200):
    matrix /= matrix.sum(1, keepdims=True)
    matrix /= matrix.sum(2, keepdims=True)
  return matrix


def _rotations(rng, layers, n):
  return np.linalg.qr(rng.normal(size=(layers, n, n)))[0]


def _stack(rng, layers, n, kind, noise):
  mixers = _rotations(rng, layers, n) if kind == "haar" else _doubly_stochastic(rng, layers, n)
  sigma = np.sqrt(0.3 / layers) * rng.uniform(0.5, 1.5, layers)
  if noise == "full":
    return full_noise(mixers, sigma)
  return block_noise(mixers, sigma, rng.dirichlet(np.ones(n), layers), rng.uniform(0.2, 2, (layers, n)))


LINE = np.linspace(0.05, 4, 24) + 0.1j


@pytest.mark.parametrize("kind", ["haar", "birkhoff"])
@pytest.mark.parametrize("noise", ["full", "block"])
@pytest.mark.parametrize("layers", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_theory_is_monte_carlo_within_sampling_error(kind, noise, layers):
  stack = _stack(np.random.default_rng(layers), layers, 3, kind, noise)
  predicted = np.asarray(dyson.checked(stack, LINE).g)
  values = np.asarray(monte_carlo.eigenvalues(stack, 24, 24, jax.random.key(1)))
  each = np.mean(1 / (np.asarray(LINE)[None, :, None] - values[:, None, :]), axis=2)
  error = each.std(axis=0) / np.sqrt(len(each))
  # 5 standard errors for chance, 2/N for the finite size (N = 72) at these heights above the axis.
  assert np.all(np.abs(each.mean(axis=0) - predicted) < 5 * error + 2 / 72 * np.abs(predicted))
  assert np.sum(np.abs(each.mean(axis=0) - predicted)) < 2 * np.sum(error) + 0.005 * np.sum(np.abs(predicted))


@pytest.mark.parametrize("layers", [1, 5])
def test_orthogonal_mixers_give_exactly_the_identity_skip(layers):
  rng = np.random.default_rng(0)
  sigma = rng.uniform(0.1, 0.4, layers)
  rotated = dyson.checked(full_noise(_rotations(rng, layers, 3), sigma), LINE).g
  plain = dyson.checked(full_noise(np.stack([np.eye(3)] * layers), sigma), LINE).g
  assert_allclose(rotated, plain, rtol=1e-9)


@pytest.mark.slow
def test_a_deep_stack_of_different_layers_solves_to_tolerance():
  stack = _stack(np.random.default_rng(3), 100, 4, "birkhoff", "full")
  result = dyson.resolvent(stack, jnp.asarray(LINE))
  assert float(jnp.max(result.residual)) < 1e-8
  assert float(jnp.max(result.g.imag)) < 0


@pytest.mark.slow
def test_a_grid_far_outside_the_spectrum_is_solved_as_fast_as_any():
  """Unknowns are real there but for 1e-17 and less: the sign of that is rounding, and no reason to refuse a step."""
  for seed in range(6):
    rng = np.random.default_rng(seed)
    mixers = rng.normal(size=(30, 2, 2))
    mixers *= 0.2 / np.max(np.linalg.norm(mixers, 2, axis=(1, 2)))
    stack = block_noise(mixers, 0.02, rng.dirichlet(np.ones(2), 30), rng.uniform(0.2, 2, (30, 2)))
    result = dyson.resolvent(stack, jnp.asarray(LINE))
    assert float(jnp.max(result.residual)) < 1e-9
    assert float(jnp.max(result.iterations)) < 30
    assert_allclose(result.g, 1 / LINE, rtol=1e-9)


def test_a_layer_without_noise_is_its_mixer():
  mixer = np.diag([0.5, 1.0, 2.0])[None]
  g = dyson.checked(full_noise(mixer, 0.0), LINE).g
  expected = np.mean(1 / (np.asarray(LINE)[:, None] - np.array([0.25, 1.0, 4.0])), axis=1)
  assert_allclose(g, expected, rtol=1e-10)


def test_permuting_streams_changes_nothing():
  rng = np.random.default_rng(4)
  mixers, order = _doubly_stochastic(rng, 5, 3), rng.permutation(3)
  permuted = mixers[:, order][:, :, order]
  assert_allclose(
    dyson.checked(full_noise(mixers, 0.3), LINE).g, dyson.checked(full_noise(permuted, 0.3), LINE).g, rtol=1e-8
  )


@pytest.mark.slow
def test_linearised_chain_is_the_derivative_of_the_map():
  stack, z = _stack(np.random.default_rng(5), 5, 3, "birkhoff", "block"), jnp.asarray(LINE)
  key = jax.random.key(0)
  unknowns, tangent = (jax.random.normal(k, (2, 5, 24)) * (0.1 - 0.2j) for k in jax.random.split(key))
  _, expected = jax.jvp(lambda u: chain.dyson_map(stack, z, u)[0], (unknowns,), (tangent,))
  linear = chain.linearised(stack, chain.messages(stack, z, unknowns))
  assert_allclose(chain.derivative(stack, linear, tangent), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_gradients_of_predicted_statistics_match_finite_differences():
  rng = np.random.default_rng(6)
  mixers, sigma = _doubly_stochastic(rng, 2, 3) + 0.5 * np.eye(3), np.array([0.3, 0.5])
  reads, writes = rng.dirichlet(np.ones(3), 2), rng.uniform(0.2, 2, (2, 3))
  x = jnp.exp(jnp.linspace(-6.0, 3.0, 24))

  @jax.jit
  def spread(mixers, sigma):
    stack = block_noise(mixers, sigma, reads, writes)  # full noise is the case E = B = I of the same code
    return density.statistics(density.log_spectrum(stack, x, 0.2)).spread_log

  by_mixer, by_sigma = jax.grad(spread, argnums=(0, 1))(jnp.asarray(mixers), jnp.asarray(sigma))
  direction = rng.normal(size=mixers.shape)
  step = 1e-5
  numeric = (spread(mixers + step * direction, sigma) - spread(mixers - step * direction, sigma)) / (2 * step)
  assert_allclose(jnp.sum(by_mixer * direction), numeric, rtol=1e-5)
  push = np.array([0.0, step])
  assert_allclose(by_sigma[1], (spread(mixers, sigma + push) - spread(mixers, sigma - push)) / (2 * step), rtol=1e-5)


@pytest.mark.slow
def test_moments_follow_their_recursions():
  rng = np.random.default_rng(7)
  sigma = np.array([0.3, 0.5, 0.2])
  isotropic = full_noise(np.array([1.0, 0.7, 1.2])[:, None, None] * _rotations(rng, 3, 3), sigma)
  assert_allclose(moments.first_moment(isotropic), np.prod(np.array([1, 0.49, 1.44]) + sigma**2), rtol=1e-12)
  general = _stack(rng, 3, 3, "birkhoff", "block")
  limit = moments.limit_moments(general, 2)
  assert_allclose(limit[0], moments.first_moment(general), rtol=1e-7)
  values = np.asarray(monte_carlo.eigenvalues(general, 24, 48, jax.random.key(0)))
  mean, error = monte_carlo.mean_and_error(values, np.mean)
  assert abs(mean - float(limit[0])) < 4 * error
  mean, error = monte_carlo.mean_and_error(values, lambda v: np.mean(v**2))
  assert abs(mean - float(limit[1])) < 4 * error + 0.02 * mean


@pytest.mark.slow
def test_mass_is_one_and_the_support_is_positive():
  stack = _stack(np.random.default_rng(8), 5, 3, "haar", "full")
  spectrum = density.spectrum(stack, 96)
  assert_allclose(jnp.sum(spectrum.weights), 1.0, atol=5e-3)
  far_left = dyson.checked(stack, jnp.asarray([-0.5 + 1e-9j, -5.0 + 1e-9j])).g
  assert np.all(np.abs(far_left.imag) < 1e-7)  # no spectrum below zero


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match="upper half-plane|above the real axis"):
    dyson.checked(full_noise(np.eye(2)[None], 0.1), jnp.asarray([1.0 - 0.1j]))
  with pytest.raises(ValueError, match="standard deviation"):
    full_noise(np.eye(2)[None], -0.1)
  with pytest.raises(ValueError, match="reads: shape"):
    block_noise(np.eye(2)[None], 0.1, np.ones((1, 3)), np.ones((1, 2)))
  with jax.enable_x64(False), pytest.raises(ValueError, match="enable_x64"):
    full_noise(np.eye(2)[None], 0.1)
