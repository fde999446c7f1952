"""Measured Jacobian spectra, laws, propagation and the design rules."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest

from jpmhc_jax.commands import spectrum
from jpmhc_jax.core.errors import UserError
from jpmhc_jax.spectral import compare, density, dyson, laws, measured, monte_carlo, propagation, rules
from jpmhc_jax.spectral.layers import full_noise


def _model(inputs=24, outputs=24):
  weights = jax.random.normal(jax.random.key(0), (inputs, outputs)) / np.sqrt(inputs)
  return lambda x: jnp.tanh(x @ weights)


def test_matrix_free_extremes_are_the_exact_ones():
  function, at = _model(24, 16), jax.random.normal(jax.random.key(1), (3, 24))
  exact = measured.singular_values(function, at)
  jacobian = measured.operator(function, at)
  found = measured.extreme_singular_values(jacobian, jax.random.key(2), steps=48)
  assert_allclose(found[:6], exact[:6], rtol=1e-4)


def test_full_lanczos_recovers_every_singular_value_of_a_wide_spread():
  values = 10.0 ** -np.linspace(0, 3, 12)
  rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
  matrix = jnp.asarray(values[:, None] * rotation, jnp.float32)
  found = measured.extreme_singular_values(measured.operator(lambda x: matrix @ x, jnp.ones(12)), jax.random.key(0), 12)
  assert_allclose(found, values, rtol=2e-3)


def test_lanczos_quadrature_integrates_within_its_error():
  function, at = lambda x: x + 0.5 * _model()(x), jax.random.normal(jax.random.key(1), (4, 24))
  exact = np.asarray(measured.singular_values(function, at), np.float64) ** 2
  quadrature = measured.lanczos_quadrature(measured.operator(function, at), jax.random.key(3), steps=24, probes=24)
  assert_allclose(quadrature.weights.sum(axis=1), 1.0, rtol=1e-5)
  for statistic in (lambda v: v, np.log, lambda v: (v < 1).astype(float)):
    mean, error = quadrature.mean(statistic)
    assert abs(mean - np.mean(statistic(exact))) < 4 * error + 5e-3
  grid = np.linspace(-4, 4, 400)
  assert_allclose(np.trapezoid(quadrature.log_density(grid), grid), 1.0, atol=1e-2)


@pytest.mark.parametrize(
  "law", [laws.MarchenkoPastur(0.5), laws.MarchenkoPastur(1.0), laws.GinibreProduct(1), laws.GinibreProduct(3)]
)
def test_laws_have_their_moments_and_samples(law):
  low, high = law.edges()
  angle = np.linspace(0, np.pi / 2, 20_001)[1:-1]
  x = low + (high - low) * np.sin(angle) ** 8  # resolves the hard edge at zero
  for order in (0, 1, 2):
    moment = law.moment(order) if order else 1.0
    assert_allclose(np.trapezoid(x**order * law.density(x), x), moment, rtol=2e-2 if order == 0 else 2e-3)
  values = np.stack([np.asarray(law.sample(key, 60)) for key in jax.random.split(jax.random.key(0), 12)])
  for order in (1, 2):
    mean, error = monte_carlo.mean_and_error(values, lambda v, k=order: np.mean(v**k))
    assert abs(mean - law.moment(order)) < 5 * error + 0.03 * law.moment(order)


@pytest.mark.slow
def test_identity_skip_and_haar():
  skip = laws.IdentitySkip(depth=3, sigma=0.3, eta=1e-3)
  x = np.linspace(0.02, 9, 1200)
  rho = skip.density(x)
  assert_allclose(np.trapezoid(rho, x), 1.0, atol=3e-3)
  assert_allclose(np.trapezoid(x * rho, x), skip.moment(1), rtol=1e-2)
  assert_allclose(np.trapezoid(x**2 * rho, x), skip.moment(2), rtol=2e-2)
  values = np.stack([np.asarray(skip.sample(key, 60)) for key in jax.random.split(jax.random.key(0), 12)])
  mean, error = monte_carlo.mean_and_error(values, lambda v: np.mean(v**2))
  assert abs(mean - skip.moment(2)) < 5 * error + 0.03 * skip.moment(2)
  mean, error = monte_carlo.mean_and_error(values, lambda v: np.mean(v**3))
  assert abs(mean - skip.moment(3)) < 5 * error + 0.05 * skip.moment(3)
  assert_allclose(laws.HaarOrthogonal().sample(jax.random.key(0), 20), 1.0, rtol=1e-5)


@pytest.mark.parametrize("activation", sorted(propagation.ACTIVATIONS))
def test_gaussian_moments_match_samples(activation):
  draws = jnp.asarray(np.random.default_rng(0).normal(size=200_000) * np.sqrt(1.7), jnp.float32)
  phi = propagation.ACTIVATIONS[activation]
  assert_allclose(propagation.second_moment(activation, 1.7), jnp.mean(phi(draws) ** 2), rtol=1.5e-2)
  assert_allclose(propagation.slope_moment(activation, 1.7), jnp.mean(jax.vmap(jax.grad(phi))(draws) ** 2), rtol=1.5e-2)


def test_critical_scales_are_the_known_ones():
  assert_allclose(propagation.critical_sigma_w("relu"), np.sqrt(2), rtol=1e-6)
  assert_allclose(propagation.critical_sigma_w("tanh", 1e-6), 1.0, rtol=1e-4)
  assert_allclose(propagation.fixed_point("tanh", 0.8), 0.0, atol=1e-6)
  assert propagation.fixed_point("linear", 1.5) == float("inf")
  sigma_w = propagation.isometric_sigma_w("relu", 20, 0.05)
  noise = propagation.propagate("relu", sigma_w, 20, norm=False).noise
  assert_allclose(jnp.sum(noise**2), 0.05, rtol=1e-5)
  with pytest.raises(UserError, match="sigma_w"):
    propagation.propagate("relu", 0.0, 3)


def test_propagation_is_what_a_wide_network_does():
  width, depth, key = 2000, 3, jax.random.key(0)
  x = jax.random.normal(key, (width,))
  found = [float(jnp.mean(x**2))]
  for each in jax.random.split(key, depth):
    into, out = jax.random.normal(each, (2, width, width)) / np.sqrt(width)
    x = x + out @ jax.nn.relu(1.2 * into @ x)  # the output projection keeps the mean of the streams at zero
    found.append(float(jnp.mean(x**2)))
  predicted = propagation.propagate("relu", 1.2, depth, norm=False).stream
  assert_allclose(found, predicted, rtol=0.1)


def test_distances_vanish_for_equal_curves_and_measure_a_shift():
  z = np.linspace(-3, 4, 700) + 0.05j
  values = np.random.default_rng(0).uniform(0, 1, (2, 400))
  curve = monte_carlo.line_curve(z, monte_carlo.empirical_resolvent(values, z))
  shifted = monte_carlo.line_curve(z, monte_carlo.empirical_resolvent(values + 0.25, z))
  assert monte_carlo.distances(curve, curve).w1 == 0.0
  assert_allclose(monte_carlo.distances(curve, shifted).w1, 0.25, rtol=2e-2)
  assert_allclose(monte_carlo.distances(curve, shifted).ks, 0.25, rtol=0.1)
  assert monte_carlo.sampling_error(values, z, monte_carlo.line_curve).w1 < 0.03
  with pytest.raises(ValueError, match="at least 2"):
    monte_carlo.sampling_error(values[:1], z, monte_carlo.line_curve)


@pytest.mark.slow
def test_richardson_gains_an_order_and_rational_continuation_reaches_the_axis():
  x = np.linspace(0.4, 2.4, 16)
  with jax.enable_x64(True):
    stack = full_noise(np.eye(2)[None], 0.5)
    exact = monte_carlo.line_curve(x + 1e-7j, np.asarray(dyson.checked(stack, x + 1e-7j).g)).density
    plain = np.asarray(density.line_spectrum(stack, jnp.asarray(x), 0.02, richardson=False).density)
    better = np.asarray(density.line_spectrum(stack, jnp.asarray(x), 0.02).density)
    z = np.linspace(0.05, 4, 48) + 0.1j
    rational = density.aaa_density(z, np.asarray(dyson.checked(stack, z).g), x)
  error = lambda rho: np.max(np.abs(rho - exact))  # noqa: E731
  assert error(better) < 0.2 * error(plain)
  assert error(rational) < 1e-3


@pytest.mark.slow
def test_isometric_mixers_predict_alike_and_averaging_ones_stall():
  report = rules.what_if(("identity", "cayley", "iso", "sinkhorn"), 4, (12,), points=96)
  rows = {row.mixer: row for row in report.predictions}
  for name in ("cayley", "iso"):
    assert_allclose(rows[name].spread_log, rows["identity"].spread_log, rtol=1e-3)
    assert_allclose(rows[name].gradient_gain, rows["identity"].gradient_gain, rtol=1e-5)
  assert rows["sinkhorn"].stalled > 0.7 > 0.05 > rows["identity"].stalled
  assert report.recommendation != "sinkhorn"
  assert all(row.residual < 1e-8 for row in report.predictions)


def test_options_that_make_no_sense_are_refused():
  parser = argparse.ArgumentParser()
  spectrum.Spectrum().add_arguments(parser)
  with pytest.raises(UserError, match="Did you mean 'cayley'"):
    spectrum.question(parser.parse_args(["--mixer=cayly"]))


def test_a_jacobian_through_a_custom_vjp_is_measured_too():
  """Such functions have no forward derivative: products and dense matrices must do without."""

  @jax.custom_vjp
  def double(x):
    return 2 * x

  double.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))
  matrix = jax.random.normal(jax.random.key(0), (6, 6))
  function = lambda x, m: double(jnp.tanh(m @ x))  # noqa: E731
  exact = measured.singular_values(function, jnp.ones(6), matrix)
  slope = 1 - jnp.tanh(matrix @ jnp.ones(6)) ** 2
  assert_allclose(exact, jnp.linalg.svd(2 * slope[:, None] * matrix, compute_uv=False), rtol=1e-4)
  jacobian = measured.operator(function, jnp.ones(6), matrix)
  assert_allclose(measured.extreme_singular_values(jacobian, jax.random.key(1), 6), exact, rtol=1e-3)


def test_distances_between_weighted_spectra():
  first = compare.atoms(np.array([1.0, 2.0, 4.0]))
  assert compare.w1(first, first) == 0
  assert_allclose(compare.w1(first, compare.atoms(np.array([2.0, 4.0, 8.0]))), np.log(2))
  assert_allclose(compare.w1(first, compare.atoms(np.array([1.0, 4.0]), np.array([2.0, 1.0]))), np.log(2) / 3)
  found = compare.summary(compare.atoms(np.array([1e-9, 1.0, 1.0, 2.0]), floor=0.5), 0.1, 0.5)
  assert_allclose([found.stalled, found.mean_log, found.largest], [0.25, 0.0, 2.0], atol=1e-12)
  grid = np.linspace(-3, 3, 400)
  assert_allclose(np.trapezoid(compare.smoothed(first, grid, 0.1), grid), 1.0, rtol=1e-6)


def test_a_spectrum_that_lies_wholly_below_the_grid_is_all_dead():
  nothing = density.Spectrum(np.ones(3), np.zeros(3), np.zeros(3), np.zeros(3))
  found = compare.of_spectrum(nothing)
  np.testing.assert_array_equal(found.weights, [1, 0, 0, 0])
  assert np.all(np.isfinite(found.log_values))
