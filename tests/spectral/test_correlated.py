"""The Dyson equation of recursions against the full linearisation, the chain, samples and finite differences."""

from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest

from jpmhc_jax import mixers as families
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.spectral import correlated, density, dyson, krylov, monte_carlo
from jpmhc_jax.spectral.correlated import correlated_noise, equation, tied_covariance
from jpmhc_jax.spectral.jacobian import mixer_stack

Z = np.array([0.3, 0.9, 1.6, 3.0]) + 0.25j


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def _moments(rng, depth, size=0.3, alike=1.0):
  """K and T of random noise: Gram matrices of symmetric and antisymmetric parts; alike=1: calls share most of it."""
  parts = alike * rng.normal(size=(2, 1, 4)) + rng.normal(size=(2, depth, 4))
  even, odd = (part @ part.T * size / np.trace(part @ part.T) for part in parts)
  return even + odd, even - odd


def _stack(seed, depth=3, streams=2, segments=1):
  rng = np.random.default_rng(seed)
  covariance, elliptic = _moments(rng, depth, alike=rng.uniform(0, 2))
  reads, writes = rng.normal(size=(depth, segments, streams)), rng.normal(size=(depth, streams, segments))
  mixers, mean = 0.6 * rng.normal(size=(depth, streams, streams)), 0.2 * rng.normal(size=depth)
  return correlated_noise(mixers, reads, writes, covariance, elliptic, mean)


def _linearised(layers, z):
  """G(z) from the whole cyclic 2L x 2L block matrix of n x n blocks, by damped iteration; factor k at (k, k + 1)."""
  (mixers,), (reads,), (writes,), k, t, _ = (np.asarray(a) for a in layers)
  depth, streams, segments = writes.shape
  around = 2 * depth
  fixed = np.zeros((around, streams, around, streams), complex)
  fixed[range(around), :, range(around), :] = np.eye(streams)
  fixed[0, :, 0, :] *= z
  left = np.zeros(
    (around, streams, around, segments)
  )  # noise p stands at block (p, p + 1): layers turned, then straight
  right = np.zeros((around, segments, around, streams))
  for place in range(around):
    layer, following = min(place, around - 1 - place), (place + 1) % around
    turned = place < depth
    fixed[place, :, following] -= mixers[layer].T if turned else mixers[layer]
    left[place, :, place] = reads[layer].T if turned else writes[layer]
    right[place, :, following] = writes[layer].T if turned else reads[layer]
  backwards = slice(None, None, -1)
  moments = np.block([[t, k[:, backwards]], [k[backwards], t[backwards, backwards]]])
  fixed, left = fixed.reshape(around * streams, -1), left.reshape(around * streams, around, segments)
  right = right.reshape(around, segments, around * streams)
  resolvent = np.linalg.inv(fixed)
  for _ in range(5000):
    traces = np.einsum("iax,xja->ij", right @ resolvent, left) / segments
    energy = np.einsum("xia,ij,jay->xy", left, moments * traces, right, optimize=True)
    following = np.linalg.inv(fixed - energy)
    change, resolvent = np.max(np.abs(following - resolvent)), 0.5 * (resolvent + following)
    if change < 1e-11:
      break
  return np.trace(resolvent[:streams, :streams]) / streams


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.integers(0, 2**32 - 1))
@pytest.mark.slow
def test_the_small_equation_is_the_whole_linearisation(seed):
  with jax.enable_x64(True):
    layers = _stack(seed)
    result = correlated.resolvent(layers, jnp.asarray(Z))
    assert float(jnp.max(result.residual)) < 1e-8
    assert_allclose(result.g[2], _linearised(layers, Z[2]), rtol=1e-8)


@pytest.mark.slow
def test_segments_are_those_of_the_whole_linearisation():
  layers = _stack(1, segments=2)
  assert_allclose(correlated.resolvent(layers, jnp.asarray(Z)).g[2], _linearised(layers, Z[2]), rtol=1e-8)


def _rotations(rng, layers, n):
  return np.linalg.qr(rng.normal(size=(layers, n, n)))[0]


def _full(mixers, covariance):
  eye = np.broadcast_to(np.eye(mixers.shape[1]), mixers.shape)
  return correlated_noise(mixers, eye, eye, covariance)


@pytest.mark.slow
def test_independent_noise_is_the_chain():
  """Moments that are known to be diagonal take the chain; unknown ones, while JAX traces, the correlated equation."""
  rng = np.random.default_rng(0)
  mixers, covariance = 0.6 * rng.normal(size=(3, 2, 2)), np.diag([0.2, 0.1, 0.3])
  traced = jax.jit(lambda k: correlated.resolvent(_full(mixers, k), jnp.asarray(Z)))(covariance)
  known = correlated.resolvent(_full(mixers, covariance), jnp.asarray(Z))
  assert_allclose(traced.g, known.g, rtol=1e-8)
  assert_allclose(known.g, dyson.resolvent(correlated.independent(_full(mixers, covariance)), jnp.asarray(Z)).g)


@pytest.mark.slow
def test_rotations_change_nothing_under_independent_full_noise_and_much_otherwise():
  """The condition of "an orthogonal mixer has the spectrum of the identity skip", and its two counter-examples."""
  rng = np.random.default_rng(1)
  turned, straight = _rotations(rng, 3, 2), np.stack([np.eye(2)] * 3)
  fresh, tied = tied_covariance(0.5, [0, 1, 2]), tied_covariance(0.5, [0, 0, 0])
  reads, writes = np.full((3, 2), 0.5), np.ones((3, 2))
  g = lambda stack: np.asarray(correlated.resolvent(stack, jnp.asarray(Z)).g)  # noqa: E731
  apart = lambda a, b: np.max(np.abs(a - b) / np.abs(b))  # noqa: E731
  assert apart(g(_full(turned, fresh)), g(_full(straight, fresh))) < 1e-8
  assert apart(g(_full(turned, tied)), g(_full(straight, tied))) > 0.1
  rank_one = lambda mixers: correlated_noise(mixers, reads, writes, fresh)  # noqa: E731
  assert apart(g(rank_one(turned)), g(rank_one(straight))) > 0.1


@pytest.mark.slow
def test_layers_without_noise_drop_out():
  full, noisy = _stack(2, depth=4), np.array([1.0, 0.0, 1.0, 1.0])
  silent = noisy[:, None] * noisy
  layers = full._replace(covariance=full.covariance * silent, elliptic=full.elliptic * silent)
  assert equation.places(layers).moments.shape == (6, 6)
  assert_allclose(correlated.resolvent(layers, jnp.asarray(Z)).g[2], _linearised(layers, Z[2]), rtol=1e-8)


def _distance(layers, width, draws, extra):
  """Largest |predicted G − sampled G| over its bound: five standard errors for chance, `extra`/width for the width."""
  predicted = np.asarray(correlated.resolvent(layers, jnp.asarray(Z)).g)
  values = np.asarray(monte_carlo.correlated_eigenvalues(layers, width, draws, jax.random.key(0)))
  each = np.mean(1 / (Z[None, :, None] - values[:, None, :]), axis=2)
  error = 5 * each.std(axis=0) / np.sqrt(len(each)) + extra / width * np.abs(predicted)
  return np.max(np.abs(each.mean(axis=0) - predicted) / error)


@pytest.mark.parametrize("cells", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_theory_is_monte_carlo_for_elliptic_noise_with_a_mean(cells):
  """Two cells have the moments of one, and coefficients of their own."""
  layers, others = _stack(3), _stack(7)
  stacked = [jnp.concatenate(pair) for pair in zip(layers[:3], others[:3], strict=True)]
  unequal = dict(zip(layers._fields[:3], stacked, strict=True), shares=jnp.array([0.25, 0.75]))
  both = layers if cells == 1 else layers._replace(**unequal)
  assert _distance(both, width=60, draws=24, extra=2) < 1


@pytest.mark.slow
def test_equal_cells_are_one():
  layers = _stack(3)
  twice = {name: jnp.concatenate([each, each]) for name, each in zip(layers._fields[:3], layers[:3], strict=True)}
  g = correlated.resolvent(layers._replace(shares=jnp.array([0.2, 0.8]), **twice), jnp.asarray(Z)).g
  assert_allclose(g, correlated.resolvent(layers, jnp.asarray(Z)).g, rtol=1e-8)


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, np.nan]])
def test_shares_that_are_none_are_refused(shares):
  cells = np.ones((2, 1, 1, 1))
  with pytest.raises(ValueError, match="expected 2 positive numbers, one for each cell"):
    correlated_noise(cells, cells, cells, np.eye(1), shares=shares)


def _members(streams, depth):
  """Random members of the families that exist for so many streams."""
  for name in list(families.FAMILIES)[:: 1 if streams == 4 else 3]:
    try:
      yield mixer_stack(families.make(name), streams, depth)
    except ConfigError:
      continue


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 2, 4, 8])
def test_theory_is_monte_carlo_for_every_family_and_similarity(streams):
  """All families at four streams, every third at other numbers of them."""
  depth, rng, seen = 4, np.random.default_rng(streams), 0
  for index, mixers in enumerate(_members(streams, depth)):
    similarity = (0.0, 0.5, 1.0)[index % 3]
    reads, writes = rng.dirichlet(np.ones(streams), depth), rng.uniform(0.5, 1.5, (depth, streams))
    weights = [0, 1, 0, 1]
    layers = correlated_noise(mixers, reads, writes, tied_covariance(0.4, weights, similarity))
    assert _distance(layers, width=64 // streams, draws=12, extra=2) < 1
    seen += 1
  assert seen > (10 if streams == 4 else 0)


@pytest.mark.slow
def test_derivatives_are_finite_differences_in_both_modes():
  rng = np.random.default_rng(4)
  covariance, elliptic = _moments(rng, 2)
  point = (0.6 * rng.normal(size=(2, 2, 2)), *rng.normal(size=(2, 2, 2)), covariance, elliptic, 0.2 * np.ones(2))
  point = tuple(map(jnp.asarray, point))
  along = tuple(jnp.asarray(rng.normal(size=a.shape)) for a in point)
  along = tuple(0.5 * (a + a.T) if i in (3, 4) else a for i, a in enumerate(along))

  @jax.jit
  def value(*arguments):
    g = correlated.resolvent(correlated_noise(*arguments), jnp.asarray(Z)).g
    return jnp.sum(g.imag * jnp.arange(4.0) + g.real)

  moved = lambda step: value(*(a + step * d for a, d in zip(point, along, strict=True)))  # noqa: E731
  numeric = (moved(1e-4) - moved(-1e-4)) / 2e-4
  gradient = jax.grad(value, argnums=tuple(range(6)))(*point)
  assert_allclose(sum(jnp.sum(g * d) for g, d in zip(gradient, along, strict=True)), numeric, rtol=1e-5)
  assert_allclose(jax.jvp(value, point, along)[1], numeric, rtol=1e-5)


@pytest.mark.slow
def test_equal_calls_without_mixing_are_a_power_of_one_matrix():
  """With a read of 1/n and a write of 1 the mean of the streams turns into (1 + W)^L of itself: that has the top."""
  depth, streams, sigma = 8, 2, 0.25
  mixers = np.broadcast_to(np.eye(streams), (depth, streams, streams))
  reads, writes = np.full((depth, streams), 1 / streams), np.ones((depth, streams))
  layers = correlated_noise(mixers, reads, writes, tied_covariance(sigma, [0] * depth))
  noise = sigma * np.random.default_rng(0).normal(size=(600, 600)) / np.sqrt(600)
  sampled = np.linalg.norm(np.linalg.matrix_power(np.eye(600) + noise, depth), 2) ** 2
  assert_allclose(density.upper_edge(layers, 1.0, 1e4), sampled, rtol=0.06)
  spectrum = density.spectrum(layers, 160)
  assert float(jnp.max(spectrum.residual)) < 1e-8
  assert_allclose(jnp.sum(spectrum.weights), 1.0, atol=0.02)


def test_the_first_moment_is_that_of_samples():
  layers = _stack(5)
  values = np.asarray(monte_carlo.correlated_eigenvalues(layers, 60, 24, jax.random.key(1)))
  mean, error = monte_carlo.mean_and_error(values, np.mean)
  assert abs(mean - correlated.first_moment(layers)) < 5 * error + 2 / 60 * mean


@pytest.mark.parametrize(
  ("mixers", "expected"),
  [
    (np.broadcast_to(np.eye(2), (4, 2, 2)), 1.0),
    (np.full((4, 2, 2), 0.5), 1.0),
    (np.broadcast_to(np.array([[0.0, -1.0], [1.0, 0.0]]), (4, 2, 2)), 0.0),  # a quarter turn between two calls
  ],
)
def test_coherence_is_what_a_weight_reads_of_what_it_wrote(mixers, expected):
  layers = correlated_noise(mixers, np.full((4, 2), 0.5), np.ones((4, 2)), np.zeros((4, 4)))
  assert_allclose(correlated.coherence(layers, [0, 1, 0, 1]), expected, atol=1e-12)
  assert correlated.coherence(layers, [0, 1, 2, 3]) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("size, mixing", [(8.0, 0.3), (16.0, 0.2)])
def test_loud_noise_that_repeats_over_many_layers_is_solved_from_infinity(size, mixing):
  """Without a neighbour, beside the first moment and far above it: no chain of places is too long for the start."""
  rng, depth = np.random.default_rng(0), 24
  mixers = mixing * (np.eye(2) + 0.1 * rng.normal(size=(depth, 2, 2)))
  reads, writes = 1 + 0.3 * rng.normal(size=(depth, 2)), 0.5 * rng.normal(size=(depth, 2))
  covariance = tied_covariance(np.sqrt(size), [layer % 4 for layer in range(depth)], 0.97)
  layers = correlated_noise(mixers, reads, writes, covariance)
  first = correlated.first_moment(layers)
  assert first > 1e4
  for scale in (1.0, 1e6):
    z = first * scale * np.exp([0.15j])
    solved = correlated.resolvent(layers, jnp.asarray(z))
    assert solved.residual[0] < 1e-8
  assert_allclose(z * solved.g - 1, first / z, rtol=0.05)


def test_gmres_of_pairs_solves_to_its_tolerance():
  rng = np.random.default_rng(0)
  matrix = np.eye(12) + 0.3 * (rng.normal(size=(12, 12)) + 1j * rng.normal(size=(12, 12)))
  rhs = rng.normal(size=12) + 1j * rng.normal(size=12)
  real, imaginary = jnp.asarray(matrix.real), jnp.asarray(matrix.imag)
  apply = lambda v: jnp.stack([real @ v[0] - imaginary @ v[1], real @ v[1] + imaginary @ v[0]])  # noqa: E731
  for dimension, tolerance, reached in ((12, 0.0, 1e-12), (12, 1e-2, 1e-2)):
    x, y = krylov.gmres_of_pairs(apply, jnp.stack([rhs.real, rhs.imag]), dimension, jnp.asarray(tolerance))
    assert np.linalg.norm(matrix @ (np.asarray(x) + 1j * np.asarray(y)) - rhs) <= reached * np.linalg.norm(rhs)


def test_moments_that_no_noise_has_are_refused():
  mixers, ends = np.eye(2)[None].repeat(2, 0), np.ones((2, 2))
  with pytest.raises(ValueError, match="positive semidefinite"):
    correlated_noise(mixers, ends, ends, np.array([[1.0, 2.0], [2.0, 1.0]]))
  with pytest.raises(ValueError, match="covariance - elliptic"):
    correlated_noise(mixers, ends, ends, np.eye(2), 2 * np.eye(2))
  with pytest.raises(ValueError, match="covariance: shape"):
    correlated_noise(mixers, ends, ends, np.eye(3))
  with pytest.raises(ValueError, match="reads: shape"):
    correlated_noise(mixers, np.ones((2, 3)), ends, np.eye(2))
  with pytest.raises(ValueError, match="the same numbers of cells and of layers"):
    correlated_noise(mixers[None], ends[:, None], ends[:, None], np.eye(2))
  with pytest.raises(ValueError, match="similarity"):
    tied_covariance(1.0, [0, 0], 1.5)
