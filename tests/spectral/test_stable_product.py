"""Sampled products of any depth: the values of the plain product where it exists, known exponents where it does not."""

import jax
import numpy as np
from numpy.testing import assert_allclose
import pytest
from scipy.special import digamma

from jpmhc_jax.spectral import jacobian, rules, stable_product
from jpmhc_jax.spectral.layers import block_noise, full_noise


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def _root(covariance):
  vectors, values, _ = np.linalg.svd(covariance)
  return (vectors * np.sqrt(values)) @ vectors.T


def _plain(layers, width, seed):
  """The product that `log_singular_values` draws, multiplied out."""
  n, rng = layers.streams, np.random.default_rng(seed)
  size, eye = n * width, np.eye(width)
  product = np.eye(size)
  for mixer, variance, read, write in zip(*(np.asarray(part) for part in layers), strict=True):
    noise = rng.normal(size=(size, size)) * np.sqrt(variance / size)
    outer, inner = (np.kron(_root(part), eye) for part in (write, read))
    product = (np.kron(mixer, eye) + outer @ noise @ inner) @ product
  return np.log(np.linalg.svd(product, compute_uv=False))


@pytest.mark.parametrize("depth", [3, 12])
@pytest.mark.parametrize("noise", ["full", "block", "rotations"])
def test_values_are_those_of_the_plain_product(depth, noise, monkeypatch):
  rng = np.random.default_rng(depth)
  mixers = rng.normal(size=(depth, 3, 3))
  if noise == "rotations":  # values all close to each other, where the others are decades apart
    layers = full_noise(np.linalg.qr(mixers)[0], 0.02)
  elif noise == "full":
    layers = full_noise(mixers, 0.5)
  else:
    layers = block_noise(mixers, 0.5, rng.uniform(0, 1, (depth, 3)), rng.uniform(0, 1, (depth, 3)))
  plain = _plain(layers, 8, 1)
  found, large = stable_product.log_singular_values(layers, 8, seed=1), plain > plain[0] - 20
  assert large.sum() >= 4
  assert_allclose(found[large], plain[large], atol=1e-6)
  if noise != "rotations":
    monkeypatch.setattr(stable_product, "_DECOMPOSED", 2.0)  # what only the logarithms see, of the same product
    assert_allclose(stable_product.log_singular_values(layers, 8, seed=1), plain, atol=5e-3)


def test_exponents_of_gaussian_products_are_the_known_ones():
  """Real Ginibre factors of N(0, 1/N): exponent k is (ψ((N − k)/2) + log 2 − log N)/2. At this depth J spans 1e300."""
  size, depth = 24, 400
  found = stable_product.log_singular_values(full_noise(np.zeros((depth, 2, 2)), 1.0), size // 2) / depth
  expected = 0.5 * (digamma((size - np.arange(size)) / 2) + np.log(2 / size))
  assert np.ptp(found) * depth > 300 * np.log(10)
  assert_allclose(found, expected, atol=5 * np.sqrt(np.pi**2 / 8 / depth))  # five deviations of the mean of log χ₁


def test_singular_layers_and_huge_ones_are_no_trouble():
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(30, 3))
  projectors = vectors[:, :, None] * vectors[:, None, :] / np.sum(vectors**2, axis=1)[:, None, None]
  found = stable_product.log_singular_values(full_noise(projectors, 0.0), 4)
  overlaps = np.abs(np.sum(vectors[1:] * vectors[:-1], axis=1)) / np.linalg.norm(vectors, axis=1)[1:]
  overlaps /= np.linalg.norm(vectors, axis=1)[:-1]
  assert_allclose(found[:4], np.sum(np.log(overlaps)), rtol=1e-9)  # all that a product of projectors leaves
  assert np.all(found[4:] < found[0] - 30)
  wide = full_noise(np.tile(np.diag([1e100, 1e-100]), (8, 1, 1)), 0.0)
  assert_allclose(stable_product.log_singular_values(wide, 2), 800 * np.log(10) * np.array([1, 1, -1, -1]), rtol=1e-9)


@pytest.mark.slow
def test_beyond_a_depth_a_row_is_sampled_and_has_the_law_of_the_dyson_equation(monkeypatch):
  rng = np.random.default_rng(3)
  layers = full_noise(0.7 * rng.normal(size=(5, 2, 2)), 0.4)
  solved = rules.predict("solved", layers, None, points=96)
  monkeypatch.setattr(jacobian, "DEEPEST", 39)
  sampled = rules.predict("sampled", layers, None, points=96)
  assert solved.residual < 1e-3 and not solved.remark
  assert sampled.residual is None and "depth · streams³ = 40 is more than 39" in sampled.remark
  assert sampled.gradient_gain == solved.gradient_gain
  assert_allclose(sampled.mean_log, solved.mean_log, atol=0.1)
  assert_allclose(sampled.spread_log, solved.spread_log, rtol=0.1)
  assert_allclose(sampled.stalled, solved.stalled, atol=0.03)
  for row in (solved, sampled):
    mass = np.trapezoid(row.log_density, np.log(row.singular_values))
    assert_allclose(mass, 1 - row.dead, atol=0.03)
