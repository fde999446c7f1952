"""Sizes that networks reach when something goes wrong: huge, vanishing and absent logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.manifolds import (
  Cayley,
  EpsilonSinkhorn,
  FAMILIES,
  Grassmann,
  Householder,
  Iso,
  make,
  Orthostochastic,
  Polar,
  Quaternion,
)  # fmt: skip
from jpmhc_jax.manifolds.sylvester import skew_sylvester

TOKENS = 64
METHODS = [make("iso", method="newton"), make("polar", method="newton_schulz"), make("sinkhorn", adjoint="unrolled")]


def normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("manifold", [*(make(name) for name in FAMILIES), *METHODS], ids=str)
def test_there_may_be_no_token(manifold):
  def value_and_pullback(logits):
    value, pullback = jax.vjp(lambda x: manifold.project(x, 4), logits)
    return value, pullback(value)[0], manifold.distance(value)

  shape = manifold.logit_shape(4)
  for tokens in ((0,), (2, 0)):
    matrix, gradient, distance = jax.eval_shape(value_and_pullback, jax.ShapeDtypeStruct((*shape, *tokens), "float32"))
    assert (matrix.shape, gradient.shape, distance.shape) == ((4, 4, *tokens), (*shape, *tokens), tokens)


@pytest.mark.parametrize(
  ("manifold", "n"),
  [
    (Cayley(), 4), (Householder(), 4), (Quaternion(), 4), (Orthostochastic(copies=1), 4), (Orthostochastic(), 2),
    (Iso(), 2), (Iso(), 3), (Iso(), 4), (Iso(), 5),
  ],
)  # fmt: skip
def test_closed_forms_stay_on_their_set_at_any_size_of_the_logits(manifold, n, projected):
  shape = (*manifold.logit_shape(n), TOKENS)
  sizes = 10.0 ** np.random.default_rng(1).uniform(-9, 9, TOKENS)
  matrix = projected(manifold, n)(jnp.asarray(sizes * normal(0, *shape), jnp.float32))
  assert float(jnp.max(manifold.distance(matrix))) <= 1e-6


@pytest.mark.parametrize("n", [3, 4, 5])
def test_a_larger_alpha_keeps_iso_on_its_set(n, projected):
  box = np.random.default_rng(0).uniform(-10, 10, (n, n, TOKENS))
  for logits in (box, 10 * np.sign(box)):
    assert float(jnp.max(Iso().distance(projected(Iso(alpha=1.0), n)(jnp.asarray(logits, jnp.float32))))) <= 1e-6


@pytest.mark.parametrize(
  ("manifold", "n", "size"),
  [
    (Grassmann(), 1, 0.0),
    (Polar(method="newton_schulz", adjoint="unrolled"), 1, 0.0),
    (Polar(method="newton_schulz", adjoint="unrolled"), 2, 1e-20),
    (EpsilonSinkhorn(softmax_first=False), 4, 1e4),
  ],
)
def test_values_and_gradients_are_finite(manifold, n, size, compiled):
  logits = jnp.asarray(size * normal(0, *manifold.logit_shape(n), 512), jnp.float32)
  for array in compiled(manifold, n)(logits, jnp.asarray(normal(1, n, n, 512), jnp.float32)):
    assert np.isfinite(array).all()


def test_the_gradient_of_the_polar_factor_of_zero_is_finite_beyond_four_streams():
  k = normal(0, 5, 5, 3)
  found = jax.jit(skew_sylvester)(jnp.zeros((5, 5, 3)), jnp.asarray(k - k.swapaxes(0, 1), jnp.float32))
  assert np.isfinite(found).all()


def test_a_reflection_without_a_direction_is_none_and_never_half_a_one(projected):
  # Gate open, directions from far below rounding to above it.
  direction = np.array([1.0, -1.0, 0, 0])[:, None] * 10.0 ** np.linspace(-9, -5, TOKENS)
  logits = np.concatenate([np.zeros((16, TOKENS)), direction, np.full((1, TOKENS), -4.0)])
  matrix = projected(Householder(), 4)(jnp.asarray(logits, jnp.float32))
  assert float(jnp.max(Householder().distance(matrix))) <= 1e-6
  determinants = np.linalg.det(np.moveaxis(np.asarray(matrix), -1, 0))
  np.testing.assert_allclose(np.abs(determinants), 1, atol=1e-5)
  assert determinants[0] > 0 > determinants[-1]
