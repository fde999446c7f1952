"""Known mistakes of published implementations: each test fails on the wrong one."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax import mixers


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def diagonal_value(manifold, logits):
  return float(manifold.project(logits, 4)[0, 0])


def test_truncated_cayley_is_no_isometry_at_unit_logits_and_the_closed_form_is(projected):
  # Published: below 1e-3 at two steps. True means over normal logits, alpha = 0.1:
  for size, published in ((0.1, 3.5e-7), (1.0, 3.3e-3), (2.0, 4.5e-2)):
    logits = size * normal(0, 4, 4, 2048)
    truncated = mixers.CayleyIterative()
    error = float(jnp.mean(truncated.distance(projected(truncated, 4)(logits))))
    assert np.isclose(error, published, rtol=0.25, atol=2e-7)
    exact = mixers.Cayley()
    assert float(jnp.max(exact.distance(projected(exact, 4)(logits)))) < 1e-6
  worst = float(jnp.max(truncated.distance(projected(truncated, 4)(normal(0, 4, 4, 2048)))))
  assert worst > 2e-2


@pytest.mark.slow
def test_closed_form_is_the_limit_of_the_iteration_with_its_sign_and_scale(projected):
  for n in (2, 3, 4, 5):
    logits = 0.5 * normal(1, n, n, 16)
    limit = projected(mixers.CayleyIterative(steps=40), n)(logits)
    np.testing.assert_allclose(projected(mixers.Cayley(), n)(logits), limit, atol=5e-7)


def test_orientation_of_the_rotation_is_not_transposed():
  # out[i] = Σ_j H[i, j] x[j]; logit (0, 1) positive turns stream 1 into stream 0: H = I + αW + O(W²).
  logits = jnp.zeros((4, 4)).at[0, 1].set(0.2)
  matrix = mixers.Cayley().project(logits, 4)
  half = 0.5 * 0.1 * 0.2
  cosine, sine = (1 - half**2) / (1 + half**2), 2 * half / (1 + half**2)
  np.testing.assert_allclose(matrix[:2, :2], [[cosine, sine], [-sine, cosine]], atol=1e-7)


def test_orientation_of_permutations_and_shifts():
  x = np.arange(4.0)
  weights = jnp.full((6,), -1e4).at[3].set(1e4)
  mixture = mixers.PermutationMixture(basis="jpmhc")
  np.testing.assert_array_equal(mixture.project(weights, 4) @ x, x[list(mixture.terms(4)[3])])
  shift = mixers.Circulant(leak=1.0).project(jnp.asarray([-1e4, 1e4, -1e4, -1e4]), 4)
  np.testing.assert_array_equal(shift @ x, np.roll(x, -1))


def test_rows_first_and_columns_first_are_transposes_of_each_other():
  logits = normal(2, 4, 4, 4) * 3
  rows, columns = mixers.Sinkhorn(sweeps=2), mixers.Sinkhorn(sweeps=2, order="columns_first")
  swapped = jnp.swapaxes(columns.project(jnp.swapaxes(logits, 0, 1), 4), 0, 1)
  np.testing.assert_allclose(rows.project(logits, 4), swapped, atol=1e-6)
  assert float(jnp.max(jnp.abs(rows.project(logits, 4) - columns.project(logits, 4)))) > 1e-2


@pytest.mark.slow
def test_underflowing_temperature_freezes_the_mixer_and_no_start_of_ours_does(compiled):
  def at_start(manifold, logits):
    matrix, gradient = compiled(manifold, 4)(logits, normal(3, 4, 4))
    return np.asarray(matrix), np.abs(gradient)

  # exp(−8/0.05) = exp(−160) is zero in float32: exactly I, and exactly no gradient.
  frozen = mixers.Sinkhorn(sweeps=10, temperature=0.05, clip=0.0, adjoint="unrolled")
  matrix, gradient = at_start(frozen, 8 * jnp.eye(4) - 8)
  np.testing.assert_array_equal(matrix, np.eye(4))
  assert gradient.max() == 0.0
  # Behind a clip or at our start the same temperature still leaves the diagonal without a gradient.
  for manifold in (dataclasses.replace(frozen, clip=10.0), mixers.Sinkhorn(temperature=0.05), frozen):
    _, gradient = at_start(manifold, manifold.identity_logits(4, 4.0))
    assert np.diagonal(gradient).max() == 0.0
  # Without the trap every logit learns, also where no clip hides an underflow.
  for manifold in (mixers.Sinkhorn(), mixers.Sinkhorn(clip=0.0), mixers.BirkhoffNewton()):
    matrix, gradient = at_start(manifold, manifold.identity_logits(4, 4.0))
    assert 1e-3 < np.min(matrix) and np.min(gradient) > 1e-3


def test_orthostochastic_start_of_the_published_code_is_the_mean_matrix(projected):
  published = projected(mixers.OrthostochasticNewtonSchulz(), 4)(8 * jnp.eye(4) - 8)
  np.testing.assert_allclose(published, np.full((4, 4), 0.25), atol=3e-3)
  exact = projected(mixers.Polar(), 4)(8 * jnp.eye(4) - 8) ** 2
  np.testing.assert_allclose(exact, np.full((4, 4), 0.25), atol=1e-6)
  for n in (2, 3, 8):
    entries = projected(mixers.Polar(), n)(8 * jnp.eye(n) - 8) ** 2
    np.testing.assert_allclose(jnp.diagonal(entries), np.full(n, (1 - 2 / n) ** 2), atol=1e-6)


def test_transport_at_zero_logits_is_singular_and_its_identity_start_is_not():
  zero = mixers.Transport().project(jnp.zeros((3, 3)), 4)
  expected = [[0.5, 0.25, 0.125, 0.125], [0.25, 0.375, 0.1875, 0.1875], *[[0.125, 0.1875, 0.34375, 0.34375]] * 2]
  np.testing.assert_allclose(zero, expected, atol=1e-6)
  assert np.linalg.svd(zero, compute_uv=False)[-1] < 1e-6
  start = mixers.Transport().project(mixers.Transport().identity_logits(4, 4.0), 4)
  assert np.linalg.svd(start, compute_uv=False)[-1] > 0.8


@pytest.mark.slow
def test_no_family_starts_at_the_mean_matrix():
  for name in mixers.FAMILIES:
    manifold = mixers.make(name)
    start = manifold.project(manifold.identity_logits(4, 4.0), 4)
    assert float(jnp.max(jnp.abs(start - 0.25))) > 0.2, name


@pytest.mark.parametrize("bias, diagonal", ((1, 0.475367), (2, 0.711235), (4, 0.947915), (6, 0.992619), (8, 0.998995)))
def test_sinkhorn_of_a_multiple_of_the_identity(bias, diagonal):
  for manifold in (mixers.Sinkhorn(sweeps=1), mixers.Sinkhorn(), mixers.BirkhoffNewton()):
    assert abs(diagonal_value(manifold, bias * jnp.eye(4)) - diagonal) < 1e-6


def test_published_starting_values():
  permutation = mixers.PermutationMixture()
  assert abs(diagonal_value(permutation, permutation.identity_logits(4, 8.0)) - 0.9940079) < 1e-6
  assert abs(diagonal_value(mixers.Kronecker(), mixers.Kronecker().identity_logits(4, 8.0)) - 0.99932941) < 1e-6
  sphere = mixers.SpectralSphere()
  assert abs(diagonal_value(sphere, sphere.identity_logits(4, 4.0)) - 0.999497) < 1e-6


def test_a_published_doubly_stochastic_matrix_is_a_fixed_point():
  # mHC-proj's example, printed to four digits; rescaling rows and columns must not change its projection.
  matrix = np.array(
    [[0.4750, 0.1686, 0.0225, 0.3339], [0.0721, 0.2143, 0.4805, 0.2332], [0.4112, 0.1480, 0.0948, 0.3460],
     [0.0418, 0.4692, 0.4022, 0.0869]]
  )  # fmt: skip
  rng = np.random.default_rng(0)
  logits = np.log(matrix) + rng.standard_normal((4, 1)) + rng.standard_normal((1, 4))
  found = mixers.BirkhoffNewton().project(jnp.asarray(logits, jnp.float32), 4)
  np.testing.assert_allclose(found, matrix, atol=1e-4)


def test_twenty_sweeps_miss_the_polytope_at_large_logits_and_newton_does_not(projected):
  logits = 10 * normal(4, 4, 4, 1000)
  sweeps = mixers.Sinkhorn(clip=0.0)
  assert 0.02 < float(jnp.mean(sweeps.distance(projected(sweeps, 4)(logits)))) < 0.2
  newton = mixers.BirkhoffNewton()
  assert float(jnp.max(newton.distance(projected(newton, 4)(logits)))) < 1e-6


def test_quaternions_reach_the_rotations_that_cayley_cannot(projected):
  quaternion = mixers.Quaternion()
  minus = projected(quaternion, 4)(jnp.asarray([-2.0, 0, 0, 0, 0, 0, 0, 0]))
  np.testing.assert_array_equal(minus, -np.eye(4))
  half_turn = projected(quaternion, 4)(jnp.asarray([-1.0, 1, 0, 0, -1.0, 1, 0, 0]))
  np.testing.assert_allclose(half_turn, np.diag([1.0, 1, -1, -1]), atol=1e-7)
  rotated = projected(mixers.Cayley(), 4)(1e3 * normal(5, 4, 4, 256))
  identity = np.eye(4)[..., None]
  gaps = np.linalg.svd(np.moveaxis(np.asarray(rotated) + identity, -1, 0), compute_uv=False)[:, -1]
  assert gaps.min() > 0


def test_reflections_are_reached_by_the_gate_and_by_the_polar_factor_only(projected, compiled):
  householder = mixers.Householder()
  closed = householder.identity_logits(4, -4.0)
  reflected, gradient = compiled(householder, 4)(closed, normal(6, 4, 4))
  assert np.linalg.det(reflected) < -0.99
  assert np.linalg.det(projected(householder, 4)(householder.identity_logits(4, 4.0))) > 0.99
  assert abs(float(gradient[-1])) > 1e-3  # the rounded gate still learns
  signs = np.linalg.det(np.moveaxis(np.asarray(projected(mixers.Polar(), 4)(normal(7, 4, 4, 64))), -1, 0))
  assert signs.min() < -0.99 and signs.max() > 0.99
