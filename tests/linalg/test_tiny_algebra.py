"""Closed forms on tiny matrices, and blocks of tokens, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.linalg import linear
from jpmhc_jax.linalg.blocks import by_blocks
from jpmhc_jax.linalg.sylvester import skew_sylvester
from jpmhc_jax.mixers import flops, make

RNG = np.random.default_rng(0)


def tokens_last(matrices):
  return jnp.asarray(np.moveaxis(matrices, 0, -1))


@pytest.mark.parametrize("n", (2, 4, 7))
def test_inverse_of_matrices_with_positive_symmetric_part(n):
  root, skew = RNG.standard_normal((2, 16, n, n))
  matrices = root @ root.swapaxes(1, 2) / n + 0.1 * np.eye(n) + skew - skew.swapaxes(1, 2)
  with jax.enable_x64(True):
    found = linear.inverse_positive(tokens_last(matrices))
  np.testing.assert_allclose(np.moveaxis(found, -1, 0), np.linalg.inv(matrices), atol=1e-10)


def test_cofactors_and_products_apart():
  for n, cofactors in ((3, linear.cofactors_3), (4, linear.cofactors_4)):
    a, b = RNG.standard_normal((2, 8, n, n))
    with jax.enable_x64(True):
      found, product = cofactors(tokens_last(a)), linear.unfused_matmul(tokens_last(a), tokens_last(b))
    expected = np.linalg.det(a)[:, None, None] * np.linalg.inv(a).swapaxes(1, 2)
    np.testing.assert_allclose(np.moveaxis(found, -1, 0), expected, atol=1e-12)
    np.testing.assert_allclose(np.moveaxis(product, -1, 0), a @ b, atol=1e-12)


@pytest.mark.parametrize("n", (2, 3, 4, 5, 8))
def test_skew_solution_of_the_sylvester_equation(n):
  root, k = RNG.standard_normal((2, 16, n, n))
  p, k = root @ root.swapaxes(1, 2) + 0.01 * np.eye(n), k - k.swapaxes(1, 2)
  with jax.enable_x64(True):
    y = np.moveaxis(np.asarray(skew_sylvester(tokens_last(p), tokens_last(k))), -1, 0)
  np.testing.assert_allclose(p @ y + y @ p, k, atol=1e-10)
  np.testing.assert_allclose(y + y.swapaxes(1, 2), 0, atol=1e-12)


@pytest.mark.parametrize("decades, n", ((2, 3), (2, 4), (6, 4), (2, 8), (6, 8)))
def test_newton_reaches_the_polar_factor_of_any_spectrum(decades, n):
  left, right = (np.linalg.qr(RNG.standard_normal((5000, n, n)))[0] for _ in range(2))
  spectra = 10 ** (-decades * RNG.random((5000, 1, n)))
  logits = jnp.asarray(tokens_last(left * spectra @ right), jnp.float32)
  manifold = make("polar")
  factor = jax.jit(lambda x: manifold.project(x, n))(logits)
  assert float(jnp.max(manifold.distance(factor))) < 1e-6
  if decades == 2:  # better conditioned than float32 resolves: also the right member of the set
    np.testing.assert_allclose(np.moveaxis(factor, -1, 0), left @ right, atol=1e-4)


@pytest.mark.parametrize("n", (4, 8))
def test_newton_gives_a_logit_matrix_of_rank_one_less_a_rotation(n):
  left, right = (np.linalg.qr(RNG.standard_normal((64, n, n)))[0] for _ in range(2))
  logits = jnp.asarray(tokens_last(left * np.arange(n) @ right), jnp.float32)
  logits = logits.at[0, :, ::2].set(0.0)  # singular exactly, and not only to rounding
  assert float(jnp.max(make("polar").distance(make("polar").project(logits, n)))) < 1e-6


@pytest.mark.slow
def test_gradient_of_the_polar_factor_beyond_four_streams():
  left, right = (np.linalg.qr(RNG.standard_normal((256, 6, 6)))[0] for _ in range(2))
  spectra, bar = 10 ** (-3 * RNG.random((256, 6))), RNG.standard_normal((256, 6, 6))
  k = left.swapaxes(1, 2) @ (bar @ right.swapaxes(1, 2))
  expected = left @ ((k - k.swapaxes(1, 2)) / (spectra[:, :, None] + spectra[:, None])) @ right
  for dtype, bound in ((jnp.float32, 1e-3), (jnp.float64, 1e-11)):
    with jax.enable_x64(True):
      logits, cotangent = (tokens_last(a).astype(dtype) for a in (left * spectra[:, None] @ right, bar))
      gradient = jax.jit(lambda x, g: jax.vjp(lambda y: make("polar").project(y, 6), x)[1](g)[0])(logits, cotangent)
    error = np.abs(np.moveaxis(np.asarray(gradient), -1, 0) - expected).max((1, 2)) / np.abs(expected).max((1, 2))
    assert error.max() < bound


def test_blocks_of_tokens_are_the_whole():
  # 512 tokens a block of 4x4 float32; the last block overlaps the one before it.
  x, y = (jnp.asarray(RNG.standard_normal((4, 4, 31, 43)), jnp.float32) for _ in range(2))
  history = jnp.asarray(RNG.standard_normal((3, 4, 31, 43)), jnp.float32)

  def function(a, b, h):
    return linear.matmul(a, b), jnp.sum(h, axis=0)

  for found, whole in zip(by_blocks(function, x, y, history), function(x, y, history), strict=True):
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_an_early_end_changes_no_token():
  # Tokens of one block finish at different steps; alone, each gives the same bits.
  manifold = make("birkhoff_newton")
  easy, hard = RNG.standard_normal((4, 4, 1)), 10 * np.sign(RNG.standard_normal((4, 4, 1)))
  both = jnp.asarray(np.concatenate([easy, hard], axis=-1), jnp.float32)
  project = jax.jit(lambda x: manifold.project(x, 4))
  np.testing.assert_allclose(project(both)[..., :1], project(both[..., :1]), atol=2e-7)


def test_loops_that_end_early_count_their_bound():
  def halve(x):
    return jax.lax.while_loop(lambda s: (s[0] < 7) & (s[1] > 1.0), lambda s: (s[0] + 1, s[1] / 2), (0, x))[1]

  assert flops.count(halve, jnp.ones(())) == 7
  with pytest.raises(ValueError, match="no bound on its trips"):
    flops.count(lambda x: jax.lax.while_loop(lambda y: y > 1.0, lambda y: y / 2, x), jnp.ones(()))
