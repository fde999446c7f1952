"""The theory's claims for every family and depth, at extreme scales, on another device, and as an objective."""

import functools

from hypothesis import given, HealthCheck, Phase, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers import FAMILIES, make
from jpmhc_jax.spectral import density, dyson, moments, monte_carlo, rules
from jpmhc_jax.spectral.layers import block_noise, full_noise

LINE = np.linspace(0.05, 4, 24) + 0.1j


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


@functools.cache
def _members(family, n):
  """One program for all members of a stack: op by op, drawing from every family at n = 8 compiles gigabytes of them."""
  manifold = make(family)
  return jax.jit(lambda keys: jax.lax.map(lambda key: manifold.random(key, n), keys))


def _random_mixers(family, n, layers, equal, seed):
  """Random members, scaled to norm 1: products of 30 unnormalised draws span 24 decades."""
  keys = jax.random.split(jax.random.key(seed), layers)
  keys = jnp.broadcast_to(keys[:1], keys.shape) if equal else keys
  mixers = np.asarray(_members(family, n)(keys), np.float64)
  return mixers / np.max(np.linalg.norm(mixers, 2, axis=(1, 2)))


def _assert_theory_is_monte_carlo(stack, seed):
  predicted = np.asarray(dyson.checked(stack, LINE).g)
  values = np.asarray(monte_carlo.eigenvalues(stack, 96 // stack.streams, 16, jax.random.key(seed)))
  each = np.mean(1 / (np.asarray(LINE)[None, :, None] - values[:, None, :]), axis=2)
  error = each.std(axis=0) / np.sqrt(len(each))
  # 6 standard errors for chance, 3 % for the finite size N = 96 (the theory is the limit)
  assert np.all(np.abs(each.mean(axis=0) - predicted) < 6 * error + 0.03 * np.abs(predicted).max())


# Every n and every depth.
SHAPES = ((2, 30), (3, 10), (4, 5), (5, 2), (6, 1), (7, 5), (8, 10))


@pytest.fixture
def few_programs():
  """Forgets the programs of a shape, which no other test uses."""
  yield
  jax.clear_caches()


@pytest.mark.slow
@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(("n", "layers"), SHAPES)
@settings(
  max_examples=3,
  deadline=None,
  derandomize=True,
  phases=[Phase.generate],
  database=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(equal=st.booleans(), block=st.booleans(), seed=st.integers(0, 2**16))
def test_theory_is_monte_carlo_for_every_family(n, layers, equal, block, seed):
  rng, tried = np.random.default_rng(seed), 0
  for family in sorted(FAMILIES):
    try:
      mixers = _random_mixers(family, n, layers, equal, seed)
    except ConfigError:
      continue  # the family does not exist for this many streams
    tried += 1
    sigma = np.sqrt(0.3 / layers) * (1.0 if equal else rng.uniform(0.5, 1.5, layers))
    if block:
      stack = block_noise(mixers, sigma, rng.dirichlet(np.ones(n), layers), rng.uniform(0.2, 2, (layers, n)))
    else:
      stack = full_noise(mixers, sigma)
    _assert_theory_is_monte_carlo(stack, seed)
  assert tried >= 10


@pytest.mark.slow
def test_segmented_connections_are_predicted():
  """Two segments of four streams: reads and writes are matrices, the sub-layer's Jacobian couples both segments."""
  rng = np.random.default_rng(0)
  n, m, p, layers = 4, 2, 40, 2
  mixers = np.linalg.qr(rng.normal(size=(layers, n, n)))[0]
  reads, writes = rng.uniform(0, 1, (layers, m, n)), rng.uniform(0, 1, (layers, n, m))
  predicted = np.asarray(dyson.checked(block_noise(mixers, 0.4, reads, writes), LINE).g)
  draws = []
  for _ in range(16):
    jacobian = np.eye(n * p)
    for a, read, write in zip(mixers, reads, writes, strict=True):
      inner = rng.normal(size=(m * p, m * p)) / np.sqrt(m * p)
      eye = np.eye(p)
      jacobian = (np.kron(a, eye) + 0.4 * np.kron(write, eye) @ inner @ np.kron(read, eye)) @ jacobian
    values = np.linalg.svd(jacobian, compute_uv=False) ** 2
    draws.append(np.mean(1 / (LINE[:, None] - values[None, :]), axis=1))
  error = np.std(draws, axis=0) / 4
  assert np.all(np.abs(np.mean(draws, axis=0) - predicted) < 6 * error + 0.02 * np.abs(predicted))


@pytest.mark.slow
def test_the_order_of_the_grid_does_not_matter():
  """Every point is solved from its neighbour's solution, but the solution is unique."""
  rng = np.random.default_rng(1)
  stack = full_noise(rng.normal(size=(3, 2, 2)), 0.3)
  z = np.linspace(0.01, 6, 40) + 0.02j
  order = rng.permutation(40)
  assert_allclose(dyson.checked(stack, z[order]).g, np.asarray(dyson.checked(stack, z).g)[order], rtol=1e-7)


@pytest.mark.parametrize("sigma", [1e-8, 1e-3, 1e3, 1e8])
def test_extreme_noise_gives_its_limit(sigma):
  """Tiny noise: the mixer alone. Huge noise: sigma² times the squared singular values of a product of Ginibres."""
  stack = full_noise(np.diag([0.5, 2.0])[None].repeat(2, axis=0), sigma)
  scale = max(sigma**4, 1.0)
  z = scale * (np.linspace(0.5, 20, 8) + 0.2j)
  expected = np.mean(1 / (z[:, None] - np.array([0.5**4, 2.0**4])), axis=1)
  if sigma > 1:
    expected = dyson.checked(full_noise(np.zeros((2, 2, 2)), 1.0), z / scale).g / scale
  assert_allclose(dyson.checked(stack, z).g, expected, rtol=1e-4)


@pytest.mark.slow
def test_ill_conditioned_mixers_are_solved_or_sampled_and_say_so():
  rng = np.random.default_rng(2)
  rotation = np.linalg.qr(rng.normal(size=(2, 3, 3)))[0]
  found = rules.predict(
    "hard", full_noise(rotation[:1] @ np.diag([1e2, 1.0, 1e-2]) @ rotation[1:], 0.1), None, points=48
  )
  assert found.residual < 1e-7
  assert found.condition > 1e3
  hopeless = rules.predict(
    "h", full_noise(rotation[:1] @ np.diag([1e6, 1.0, 1e-6]) @ rotation[1:], 0.1), None, points=48
  )
  assert hopeless.residual is None
  assert hopeless.remark.startswith("squared singular values span 18.1 decades, too many for 48 points of a ray")
  assert hopeless.remark.endswith("the numbers are those of 1 sampled product of 96 dimensions")
  assert_allclose(hopeless.stalled, 1 / 3, atol=0.05)  # 1e6, 1 and noise of 0.1, a third of the directions each
  stack = full_noise(np.eye(3)[None], 0.1)
  with pytest.raises(ValueError, match="residual .* at z = "):
    dyson.checked(stack, np.array([1e-13 + 1e-26j]), limit=1e-30)
  with pytest.raises(ValueError, match="not finite"):
    full_noise(np.full((1, 2, 2), np.nan), 0.1)


@pytest.mark.slow
def test_zero_mixers_and_zero_noise_are_all_dead():
  stack = full_noise(np.zeros((2, 2, 2)), 0.0)
  assert_allclose(dyson.checked(stack, LINE).g, 1 / LINE, rtol=1e-12)
  assert float(moments.first_moment(stack)) == 0


def test_the_default_solver_lowers_for_cpu_and_gpu_alike():
  """No host callback and no CPU-only primitive: the same program is accepted by XLA for CUDA (it is not run here)."""
  stack, z = full_noise(np.eye(3)[None].repeat(2, axis=0), 0.2), jnp.asarray(LINE)
  for platform in ("cpu", "cuda"):
    text = jax.jit(dyson.resolvent).trace(stack, z).lower(lowering_platforms=(platform,)).as_text()
    assert "callback" not in text


@pytest.mark.slow
def test_a_mixer_is_optimised_for_its_spectrum():
  """Gradient descent on mixer logits and on log σ narrows the predicted spread of the log singular values."""
  sinkhorn = make("sinkhorn")
  x = jnp.exp(jnp.linspace(-7.0, 3.0, 24))
  logits = jax.random.normal(jax.random.key(0), (2, 2, 2))

  def spread(parameters):
    logits, log_sigma = parameters
    mixers = jnp.stack([sinkhorn.project(each, 2) for each in logits])
    stack = full_noise(mixers, jnp.exp(log_sigma) * jnp.ones(2))
    return density.statistics(density.log_spectrum(stack, x, 0.3)).spread_log

  step = jax.jit(jax.value_and_grad(spread))
  parameters, history = (logits, jnp.log(0.3)), []
  for _ in range(10):
    value, slope = step(parameters)
    history.append(float(value))
    parameters = jax.tree.map(lambda p, g: p - 0.5 * g, parameters, slope)
  assert history[-1] < 0.8 * history[0], history
