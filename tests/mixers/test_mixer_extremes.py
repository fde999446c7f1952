"""Sizes that networks reach when something goes wrong: huge, vanishing and absent logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.linalg.sylvester import skew_sylvester
from jpmhc_jax.mixers import (  # fmt: skip
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
  Transport,
)

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
    (Iso(), 2), (Iso(), 3), (Iso(), 4), (Iso(), 5), (Cayley(alpha=1.0), 5),
  ],
)  # fmt: skip
def test_closed_forms_stay_on_their_set_at_any_size_of_the_logits(manifold, n, projected):
  shape = (*manifold.logit_shape(n), TOKENS)
  sizes = 10.0 ** np.random.default_rng(1).uniform(-9, 9, TOKENS)
  matrix = projected(manifold, n)(jnp.asarray(sizes * normal(0, *shape), jnp.float32))
  assert float(jnp.max(manifold.distance(matrix))) <= 1e-6


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4, 1e6, 1e9])
def test_a_rotation_of_five_streams_is_the_right_one_at_any_size_of_the_logits(size, projected):
  # An odd number of streams: one direction stays at rest, however large S is.
  logits = np.asarray(size * normal(0, 5, 5, TOKENS), np.float32)
  skew = np.moveaxis(logits - logits.swapaxes(0, 1), -1, 0).astype(np.float64)
  exact = np.linalg.solve(np.eye(5) - 0.5 * skew, np.eye(5) + 0.5 * skew)
  found = projected(Cayley(alpha=1.0), 5)(jnp.asarray(logits))
  np.testing.assert_allclose(np.moveaxis(np.asarray(found), -1, 0), exact, atol=1e-5)
  assert float(jnp.max(Cayley().distance(found))) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("manifold", [Cayley(alpha=1.0), Orthostochastic(), Iso(alpha=1.0)], ids=str)
@pytest.mark.parametrize("n", [7, 8])
def test_more_streams_stay_on_their_set_at_any_size_of_the_logits(manifold, n, projected):
  shape, seeds = (*manifold.logit_shape(n), TOKENS), (0, 1)
  draws = [*(normal(seed, *shape) for seed in seeds), *(np.sign(normal(seed, *shape)) for seed in seeds)]
  for size in (1e1, 1e4, 1e6, 1e9):
    for draw in draws:
      matrix = projected(manifold, n)(jnp.asarray(size * draw, jnp.float32))
      assert float(jnp.max(manifold.distance(matrix))) <= 1e-6


def test_many_streams_keep_the_transport_chart_on_its_set(projected):
  box = np.random.default_rng(0).uniform(-10, 10, (15, 15, 2048))
  for logits in (box, 10 * np.sign(box), 1e4 * box, normal(0, 15, 15, 2048)):
    matrix = projected(Transport(), 16)(jnp.asarray(logits, jnp.float32))
    assert float(jnp.max(Transport().distance(matrix))) <= 1e-6


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


def singular(n):
  """Logits (n, n, kinds) of rank 0, 1, 2, n − 1, and of rank 1 up to 1e-3, 1e-5, 1e-7, 1e-9, all of size one."""
  near = [normal(n, n, r) @ normal(r + 1, r, n) for r in (0, 1, 2, n - 1) if r < n]
  near += [normal(n, n, 1) @ normal(2, 1, n) + noise * normal(3, n, n) for noise in (1e-3, 1e-5, 1e-7, 1e-9)]
  near += [np.ones((n, n)) * np.arange(n)[:, None], np.diag([1.0] + [0.0] * (n - 1))]  # singular without any rounding
  return np.stack(near, axis=-1)


@pytest.mark.parametrize(
  ("manifold", "n"),
  [
    (Polar(), 3), (Polar(), 4), (Polar(), 5), (Iso(method="newton"), 4),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
      (Polar(), 2), (Polar(), 6), (Polar(), 8), (Iso(method="newton"), 6), (Iso(method="newton"), 8),
      (Polar(adjoint="unrolled"), 5), (Polar(method="express", adjoint="unrolled"), 4),
    )),
  ],
  ids=str,
)  # fmt: skip
def test_the_gradient_of_a_polar_factor_is_bounded_at_singular_logits_and_zero_at_none(manifold, n, compiled):
  logits = singular(n)
  cotangent = normal(1, n, n, 1) * np.ones_like(logits)
  # 1 / (16 ε) for each plane; the steps themselves lose some digits more.
  bound = n * (1e6 if manifold.adjoint == "implicit" else 1e9) * np.linalg.norm(cotangent[..., 0])
  program = compiled(manifold, n)
  for size in (1.0, 0.0, 1e-16, 1e-30):
    _, gradient = program(jnp.asarray(size * logits, jnp.float32), jnp.asarray(cotangent, jnp.float32))
    assert np.max(np.abs(gradient)) < (bound if size == 1.0 else 1e-30)  # false for NaN
  if n == 5:
    _, gradient = program(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(cotangent, jnp.bfloat16))
    assert np.max(np.abs(np.asarray(gradient, np.float64))) < bound


@pytest.mark.parametrize("n", [3, 4])
def test_no_solution_of_the_sylvester_equation_is_longer_than_rounding_allows(n):
  k = normal(0, n, n, TOKENS)
  k = jnp.asarray(k - k.swapaxes(0, 1), jnp.float32)
  # Positive, indefinite (from a factor that is none), and zero.
  roots = normal(1, n, n, TOKENS) * 10.0 ** -np.arange(n)[None, :, None]
  symmetric = normal(2, n, n, TOKENS)
  for p in (np.einsum("ikt,jkt->ijt", roots, roots), symmetric + symmetric.swapaxes(0, 1), np.zeros((n, n, TOKENS))):
    y = np.abs(jax.jit(skew_sylvester)(jnp.asarray(p, jnp.float32), k))
    eps = np.finfo(np.float32).eps
    least = 16 * eps * np.maximum(np.abs(p).max((0, 1)), eps)
    assert np.all(y.sum((0, 1)) * least <= 1.01 * np.abs(k).sum((0, 1)))


def test_a_reflection_without_a_direction_is_none_and_never_half_a_one(projected):
  # Gate open, directions from far below rounding to above it.
  direction = np.array([1.0, -1.0, 0, 0])[:, None] * 10.0 ** np.linspace(-9, -5, TOKENS)
  logits = np.concatenate([np.zeros((16, TOKENS)), direction, np.full((1, TOKENS), -4.0)])
  matrix = projected(Householder(), 4)(jnp.asarray(logits, jnp.float32))
  assert float(jnp.max(Householder().distance(matrix))) <= 1e-6
  determinants = np.linalg.det(np.moveaxis(np.asarray(matrix), -1, 0))
  np.testing.assert_allclose(np.abs(determinants), 1, atol=1e-5)
  assert determinants[0] > 0 > determinants[-1]
