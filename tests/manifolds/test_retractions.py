"""Retractions: their order against geodesics, their formulas, steps of any length. Geodesics are the yardstick."""

import jax
import jax.numpy as jnp
from manifold_cases import by_retraction, draw
import numpy as np
from numpy.testing import assert_allclose
import pytest
from scipy.linalg import expm, null_space

from jpmhc_jax.manifolds import Grassmann, Iso, Orthogonal, Sphere, Stiefel
from jpmhc_jax.manifolds.retractions import carry_along, cayley, polar, qr, settled


def test_truncated_cayley_leaves_the_manifold_by_the_stated_order():
  with jax.enable_x64(True):
    point, tangent, _ = draw(Stiefel(), (6, 2), dtype=jnp.float64)
    for sweeps in (1, 2, 3):
      geometry = Stiefel(retraction="cayley_iterative", sweeps=sweeps)
      off = jax.jit(lambda t, g=geometry: jnp.max(g.distance(g.retract(point, t * tangent))))
      far, near = off(0.2), off(0.1)
      # the residual of an even truncation cancels one order more
      assert 2 ** (sweeps + 2) * 0.8 < far / near < 2 ** (sweeps + 3) * 1.2
    exact, many = (
      jax.jit(geometry.retract)(point, tangent)
      for geometry in (Stiefel(), Stiefel(retraction="cayley_iterative", sweeps=60))
    )
    assert_allclose(many, exact, rtol=0, atol=1e-13)


def canonical_geodesic(x, z):
  complement = null_space(x.T)
  a, b = x.T @ z, complement.T @ z
  p, q = a.shape[0], b.shape[0]
  return np.hstack([x, complement]) @ expm(np.block([[a, -b.T], [b, np.zeros((q, q))]]))[:, :p]


def euclidean_geodesic(x, z):
  a, s, p = x.T @ z, z.T @ z, x.shape[1]
  return np.hstack([x, z]) @ expm(np.block([[a, -s], [np.eye(p), a]]))[:, :p] @ expm(-a)


def sphere_geodesic(x, z):
  angle = np.linalg.norm(z)
  return np.cos(angle) * x + np.sin(angle) / angle * z


def same(y):
  return y


def span(y):
  return y @ y.T


SLOPES = [
  (Stiefel(metric="canonical"), (6, 2), "cayley", canonical_geodesic, same, 3),
  (Stiefel(metric="canonical"), (6, 2), "cayley_iterative", canonical_geodesic, same, 3),
  (Stiefel(), (6, 2), "polar", euclidean_geodesic, same, 3),
  (Stiefel(), (6, 2), "qr", euclidean_geodesic, same, 2),
  (Stiefel(), (6, 3), "cayley", euclidean_geodesic, same, 2),
  (Orthogonal(), (4, 4), "cayley", euclidean_geodesic, same, 3),
  (Iso(), (5, 5), "cayley", euclidean_geodesic, same, 3),
  (Grassmann(), (6, 2), "cayley", euclidean_geodesic, span, 3),
  (Grassmann(), (6, 2), "qr", euclidean_geodesic, span, 3),
  (Grassmann(), (6, 2), "polar", euclidean_geodesic, span, 3),
  (Grassmann(), (6, 2), "cayley_qr", euclidean_geodesic, span, 3),
  (Iso(), (5, 5), "polar", euclidean_geodesic, same, 3),
  (Sphere(), (4, 2), "normalise", sphere_geodesic, same, 3),
]


@pytest.mark.parametrize("geometry, shape, method, geodesic, view, order", SLOPES)
def test_slope_of_the_error_against_the_geodesic(geometry, shape, method, geodesic, view, order):
  """|R(tZ) - Exp(tZ)| ~ t^order: 3 for a second-order retraction, 2 for a first-order one."""
  with jax.enable_x64(True):
    point, tangent, _ = draw(geometry, shape, (), jnp.float64)
    retract = jax.jit(lambda t: geometry.retract(point, t * tangent, method))
    errors = []
    for t in (0.08, 0.04, 0.02):
      got = np.asarray(retract(t))
      errors.append(np.linalg.norm(view(got) - view(geodesic(np.asarray(point), t * np.asarray(tangent)))))
    if method != "cayley_iterative":  # which is truncated: see above
      assert geometry.distance(retract(1.0)) < 1e-12
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert abs(slopes[-1] - order) < 0.15, slopes


def test_sphere_exponential_is_the_geodesic():
  with jax.enable_x64(True):
    point, tangent, _ = draw(Sphere(), (4, 2), (), jnp.float64)
    assert_allclose(Sphere().retract(point, tangent), sphere_geodesic(point, tangent), rtol=0, atol=1e-14)
    assert_allclose(Sphere().retract(point, jnp.zeros((4, 2))), point, rtol=0, atol=0)  # no 0/0


@pytest.mark.parametrize("n, p", [(7, 2), (5, 3), (4, 4)])  # Woodbury form, full form, square
def test_cayley_is_its_formula(n, p):
  with jax.enable_x64(True):
    x, z, _ = draw(Stiefel(), (n, p), (), jnp.float64)
    half = (np.eye(n) - 0.5 * x @ x.T) @ z @ x.T
    w = half - half.T
    assert_allclose(w @ x, z, rtol=0, atol=1e-13)
    assert_allclose(
      jax.jit(cayley)(x, z), np.linalg.solve(np.eye(n) - w / 2, (np.eye(n) + w / 2) @ x), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("n, p", [(8, 3), (4, 3), (6, 1)])
def test_the_rotation_that_carries_along_carries_the_point(n, p):
  with jax.enable_x64(True):
    x, y = (np.linalg.qr(np.random.default_rng(seed).normal(size=(n, p)))[0] for seed in range(2))
    assert_allclose(jax.jit(carry_along)(jnp.asarray(x), jnp.asarray(y), jnp.asarray(x)), y, rtol=0, atol=1e-11)


def test_the_polar_factor_by_newton_schulz_is_that_of_the_decomposition_near_the_manifold_and_far():
  with jax.enable_x64(True):
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4)))
    point = jnp.linalg.qr(noise)[0]
    for off in (0.0, 1e-3, 0.03, 3.0):  # the last one is beyond what the steps converge from
      matrix = point + off * noise
      assert_allclose(jax.jit(settled)(matrix), polar(matrix), rtol=0, atol=1e-13)


def test_the_q_factor_is_orthonormal_after_steps_of_any_size_and_keeps_its_span_without():
  points = Grassmann().random(jax.random.key(0), (20, 8, 3))
  steps = Grassmann().tangent(points, jax.random.normal(jax.random.key(1), points.shape))
  off = jax.jit(lambda scale: jnp.max(Grassmann().distance(qr(points + scale * steps))))
  for scale in (1.0, 1e3, 1e6):
    assert off(scale) < 2e-6
  stayed = jax.lax.fori_loop(0, 1000, lambda _, x: qr(x), points)
  spans = (np.asarray(x, np.float64) @ np.swapaxes(np.asarray(x, np.float64), -1, -2) for x in (points, stayed))
  assert_allclose(*spans, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_iso_keeps_the_mean_and_cayley_steps_keep_the_determinant():
  point, tangent, _ = draw(Iso(), (5, 5))
  for method in Iso.RETRACTIONS:
    new_point = jax.jit(Iso().retract, static_argnums=2)(point, tangent, method)
    assert_allclose(jnp.sum(new_point, axis=-1), 1.0, rtol=0, atol=2e-6)
    assert_allclose(jnp.linalg.det(new_point), 1.0, rtol=0, atol=2e-2 if method == "cayley_iterative" else 1e-5)


@by_retraction
def test_steps_of_any_length_end_on_the_manifold(geometry, shape, method):
  point, tangent, _ = draw(geometry, shape)
  ones = geometry.tangent(point, jnp.broadcast_to(1.0 + jnp.arange(shape[-1]), point.shape))
  sizes = jnp.asarray([0.0, 1e-30, 1.0, 10.0, 100.0, 1e4, 1e8, 1e30])[:, None, None, None]

  @jax.jit
  def moved(vector):
    unit = vector / jnp.maximum(jnp.linalg.norm(vector, axis=(-2, -1), keepdims=True), 1e-3)
    new_points = geometry.retract(jnp.stack([point] * len(sizes)), sizes * unit[None], method)
    return new_points, jnp.max(geometry.distance(new_points))

  for vector in (tangent, ones):
    new_points, off = moved(vector)
    if method == "cayley_iterative":  # which is truncated, and shortened to where its error is bounded
      assert off < 0.5
      continue
    assert off < 2e-6
    if vector is tangent:  # beyond the longest step nothing changes; `ones` is singular, so that rounding turns its Q
      assert_allclose(new_points[-1], new_points[-2], rtol=0, atol=1e-4)


@by_retraction
@pytest.mark.slow
def test_no_matrix_depends_on_another(geometry, shape, method):
  points, steps, _ = draw(geometry, shape, batch=(4,))

  @jax.jit
  def results(points, steps):
    def total(steps):
      new_points = geometry.retract(points, steps, method)
      return jnp.sum(jnp.where(jnp.isfinite(new_points), new_points, 0.0) ** 2), new_points

    gradient, new_points = jax.grad(total, has_aux=True)(steps)
    return new_points, gradient, geometry.project(points + steps), geometry.transport(points, new_points, steps)

  clean = results(points, steps)
  for bad in (jnp.nan, jnp.inf):
    for one, other in zip(clean, results(points, steps.at[2].set(bad)), strict=True):
      np.testing.assert_array_equal(np.delete(one, 2, 0), np.delete(other, 2, 0))
