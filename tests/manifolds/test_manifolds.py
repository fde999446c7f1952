"""Geometries of parameters: tangents, retractions and their order, transport, distance. Geodesics are the yardstick."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest
from scipy.linalg import expm, null_space

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.manifolds import Birkhoff, Grassmann, Iso, MANIFOLDS, Oblique, Orthogonal, Sphere, Stiefel
from jpmhc_jax.manifolds.retractions import carry_along, cayley, qr

CASES = [
  (Stiefel(), (5, 3)), (Stiefel(metric="canonical"), (7, 2)), (Orthogonal(), (4, 4)), (Iso(), (4, 4)),
  (Grassmann(retraction="cayley_qr"), (5, 2)), (Birkhoff(), (4, 4)), (Sphere(), (3, 2)), (Oblique(), (4, 3)),
]  # fmt: skip
IDS = [f"{type(g).__name__}-{g.retraction}-{'x'.join(map(str, s))}" for g, s in CASES]
every_geometry = pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)


def draw(geometry, shape, batch=(3,), dtype=jnp.float32):
  """A point, a tangent vector of moderate size, and an ambient matrix."""
  point = geometry.project(geometry.random(jax.random.key(0), batch + shape).astype(dtype))
  ambient = jax.random.normal(jax.random.key(1), batch + shape, dtype)
  tangent = geometry.gradient(point, ambient)
  return point, 0.3 * tangent / jnp.max(jnp.abs(tangent)), ambient


@functools.lru_cache
def survey(index):
  """Everything the contract speaks of, computed once for a geometry in one float64 program."""
  geometry, shape = CASES[index]

  @jax.jit
  def compute():
    point, tangent, ambient = draw(geometry, shape, dtype=jnp.float64)
    other = jax.random.normal(jax.random.key(2), ambient.shape, jnp.float64)
    perturbed = point + 1e-2 * other
    z, w = geometry.tangent(point, ambient), geometry.tangent(point, other)
    new_point = geometry.retract(point, tangent)
    moved = geometry.transport(point, new_point, z)
    sizes = jnp.array([0.0, 1e-5, -1e-5, 1.0])[:, None, None, None]
    steps = geometry.retract(jnp.stack([point] * 4), sizes * tangent[None])
    return {
      "tangent": tangent, "z": z, "z twice": geometry.tangent(point, z), "point": point,
      "distances": jnp.stack([geometry.distance(x) for x in (point, perturbed, geometry.project(perturbed))]),
      "projected": geometry.project(point),
      "slope": jnp.sum(ambient * w, axis=(-2, -1)),
      "gradient slope": geometry.inner(point, geometry.gradient(point, ambient), w),
      "removed": geometry.inner(point, ambient - z, w),
      "steps": steps, "step distances": geometry.distance(steps[-1]),
      "moved": moved, "moved twice": geometry.tangent(new_point, moved), "stayed": geometry.transport(point, point, z),
      "lengths": jnp.stack([geometry.inner(point, z, z), geometry.inner(new_point, moved, moved)]),
    }  # fmt: skip

  with jax.enable_x64(True):
    return jax.tree.map(np.asarray, compute())


@every_geometry
def test_random_points_and_projections_lie_on_the_manifold(index):
  geometry, shape = CASES[index]
  points = geometry.random(jax.random.key(0), (2, 3, *shape))
  assert geometry.distance(points).shape == (2, 3)
  assert jnp.max(geometry.distance(points)) < 2e-6
  on, off, projected = survey(index)["distances"]
  assert np.max(on) < 1e-12 and np.min(off) > 1e-4 and np.max(projected) < 1e-12
  assert_allclose(survey(index)["projected"], survey(index)["point"], rtol=0, atol=1e-12)


@every_geometry
def test_tangent_is_an_orthogonal_projection_and_gradient_represents_the_differential(index):
  got = survey(index)
  assert_allclose(got["z twice"], got["z"], rtol=0, atol=1e-11)
  # <grad f, w> = df(w): the definition of a gradient, in the geometry's own metric.
  assert_allclose(got["gradient slope"], got["slope"], rtol=0, atol=1e-10)
  assert_allclose(got["removed"], 0.0, atol=1e-10)  # what is projected away is orthogonal to the tangent space


@every_geometry
def test_the_default_retraction_stays_on_the_manifold_and_has_the_right_derivative(index):
  got = survey(index)
  still, ahead, behind, _ = got["steps"]
  assert_allclose(still, got["point"], rtol=0, atol=1e-12)
  assert_allclose((ahead - behind) / 2e-5, got["tangent"], rtol=0, atol=1e-7)
  assert np.max(got["step distances"]) < 1e-12


@every_geometry
def test_transport_lands_in_the_tangent_space_and_keeps_lengths_where_it_is_isometric(index):
  got = survey(index)
  assert_allclose(got["moved twice"], got["moved"], rtol=0, atol=1e-10)
  assert_allclose(got["stayed"], got["z"], rtol=0, atol=1e-10)
  if not isinstance(CASES[index][0], Birkhoff):
    assert_allclose(*got["lengths"], rtol=1e-10)


def test_truncated_cayley_leaves_the_manifold_by_the_stated_order():
  with jax.enable_x64(True):
    for sweeps in (1, 2, 3):
      geometry = Stiefel(retraction="cayley_iterative", sweeps=sweeps)
      point, tangent, _ = draw(geometry, (6, 2), dtype=jnp.float64)
      far, near = (jnp.max(geometry.distance(geometry.retract(point, t * tangent))) for t in (0.2, 0.1))
      # the residual of an even truncation cancels one order more
      assert 2 ** (sweeps + 2) * 0.8 < far / near < 2 ** (sweeps + 3) * 1.2
    exact = Stiefel().retract(point, tangent)
    many = Stiefel(retraction="cayley_iterative", sweeps=60).retract(point, tangent)
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
    assert_allclose(cayley(x, z), np.linalg.solve(np.eye(n) - w / 2, (np.eye(n) + w / 2) @ x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("n, p", [(8, 3), (4, 3), (6, 1)])
def test_the_rotation_that_carries_along_carries_the_point(n, p):
  with jax.enable_x64(True):
    x = Stiefel().random(jax.random.key(0), (n, p)).astype(jnp.float64)
    y = Stiefel().random(jax.random.key(1), (n, p)).astype(jnp.float64)
    x, y = qr(x), qr(y)
    assert_allclose(carry_along(x, y, x), y, rtol=0, atol=1e-11)


def test_the_q_factor_is_orthonormal_after_steps_of_any_size_and_keeps_its_span_without():
  points = Grassmann().random(jax.random.key(0), (20, 8, 3))
  steps = Grassmann().tangent(points, jax.random.normal(jax.random.key(1), points.shape))
  for scale in (1.0, 1e3, 1e6):
    assert jnp.max(Grassmann().distance(qr(points + scale * steps))) < 2e-6
  stayed = jax.lax.fori_loop(0, 1000, lambda _, x: qr(x), points)
  spans = (np.asarray(x, np.float64) @ np.swapaxes(np.asarray(x, np.float64), -1, -2) for x in (points, stayed))
  assert_allclose(*spans, rtol=0, atol=1e-6)


def test_iso_keeps_the_mean_and_cayley_steps_keep_the_determinant():
  point, tangent, _ = draw(Iso(), (5, 5))
  for method in Iso.RETRACTIONS:
    new_point = Iso().retract(point, tangent, method)
    assert_allclose(jnp.sum(new_point, axis=-1), 1.0, rtol=0, atol=2e-6)
    assert_allclose(jnp.linalg.det(new_point), 1.0, rtol=0, atol=2e-2 if method == "cayley_iterative" else 1e-5)


def test_uniform_points_have_the_moments_of_the_uniform_measure():
  point = Orthogonal().random(jax.random.key(0), (4000, 3, 3))
  assert_allclose(jnp.mean(point, axis=0), 0.0, atol=0.04)
  assert_allclose(jnp.mean(point**2, axis=0), 1 / 3, atol=0.02)
  assert abs(float(jnp.mean(jnp.linalg.det(point)))) < 0.06  # both components
  iso = Iso().random(jax.random.key(0), (4000, 3, 3))
  assert_allclose(jnp.linalg.det(iso), 1.0, rtol=0, atol=1e-5)
  assert_allclose(jnp.mean(iso, axis=0), 1 / 3, atol=0.04)


def test_birkhoff_survives_huge_steps_and_the_boundary():
  geometry = Birkhoff()
  point = geometry.random(jax.random.key(0), (4, 4))
  for scale in (1.0, 1e3, 1e6):
    new_point = geometry.retract(point, scale * geometry.gradient(point, jax.random.normal(jax.random.key(1), (4, 4))))
    assert geometry.distance(new_point) < 1e-5
    assert jnp.min(new_point) >= 0.0
  corner = geometry.project(jnp.eye(4))
  assert jnp.all(jnp.isfinite(geometry.gradient(corner, jax.random.normal(jax.random.key(2), (4, 4)))))


RETRACTIONS = [
  *((Stiefel(), (5, 3), method) for method in Stiefel.RETRACTIONS), (Stiefel(metric="canonical"), (7, 2), "cayley"),
  (Orthogonal(), (4, 4), "cayley"), (Iso(), (4, 4), "cayley"), (Iso(), (4, 4), "polar"),
  (Birkhoff(), (4, 4), "sinkhorn"), (Sphere(), (3, 2), "exp"), (Sphere(), (3, 2), "normalise"),
  (Oblique(), (4, 3), "exp"),
]  # fmt: skip
RETRACTION_IDS = [f"{type(g).__name__}-{s[0]}x{s[1]}-{method}" for g, s, method in RETRACTIONS]
by_retraction = pytest.mark.parametrize("geometry, shape, method", RETRACTIONS, ids=RETRACTION_IDS)


@by_retraction
def test_steps_of_any_length_end_on_the_manifold(geometry, shape, method):
  point, tangent, _ = draw(geometry, shape)
  ones = geometry.tangent(point, jnp.broadcast_to(1.0 + jnp.arange(shape[-1]), point.shape))
  sizes = jnp.asarray([0.0, 1e-30, 1.0, 10.0, 100.0, 1e4, 1e8, 1e30])[:, None, None, None]
  norms = [jnp.linalg.norm(v, axis=(-2, -1), keepdims=True) for v in (tangent, ones)]
  for vector, norm in zip((tangent, ones), norms, strict=True):
    unit = vector / jnp.maximum(norm, 1e-3)
    new_points = jax.jit(lambda z: geometry.retract(jnp.broadcast_to(point, z.shape), z, method))(sizes * unit[None])
    if method == "cayley_iterative":  # which is truncated, and shortened to where its error is bounded
      assert jnp.max(geometry.distance(new_points)) < 0.5
      continue
    assert jnp.max(geometry.distance(new_points)) < 2e-6
    if vector is tangent:  # beyond the longest step nothing changes; `ones` is singular, so that rounding turns its Q
      assert_allclose(new_points[-1], new_points[-2], rtol=0, atol=1e-4)


@by_retraction
def test_no_matrix_depends_on_another(geometry, shape, method):
  points = jax.vmap(lambda key: geometry.random(key, shape))(jax.random.split(jax.random.key(0), 4))
  steps = 0.3 * geometry.tangent(points, jax.random.normal(jax.random.key(1), points.shape))

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


def second_derivatives(function, x, direction):
  """(d/dt)² of Σ function² at x along the direction: forward over reverse, reverse over reverse, differences."""

  def slope(x):
    return jnp.sum(jax.grad(lambda y: jnp.sum(function(y)))(x) * direction)

  def quotient(step):
    return (slope(x + step * direction) - slope(x - step * direction)) / (2 * step)

  return (
    jax.jvp(slope, (x,), (direction,))[1], jnp.sum(jax.grad(slope)(x) * direction),
    (4 * quotient(1e-4) - quotient(2e-4)) / 3,
  )  # fmt: skip


def first_derivatives(function, x, direction):
  """d/dt of the function along the direction: forward, reverse, differences."""
  step = 1e-5
  quotient = (jnp.sum(function(x + step * direction)) - jnp.sum(function(x - step * direction))) / (2 * step)
  slope = jnp.sum(jax.grad(lambda y: jnp.sum(function(y)))(x) * direction)
  return jax.jvp(lambda y: jnp.sum(function(y)), (x,), (direction,))[1], slope, quotient


def check_derivatives(function, x, direction):
  """Both modes, first and second order, agree with differences in float64."""

  def compute(x, direction):
    return first_derivatives(function, x, direction), second_derivatives(function, x, direction)

  first, second = jax.jit(compute)(x, direction)
  for forward, reverse, quotient, bound in ((*first, 1e-8), (*second, 1e-5)):
    assert_allclose([forward, reverse], [quotient] * 2, rtol=bound, atol=bound)


@pytest.mark.slow
@by_retraction
def test_both_modes_of_differentiation_go_through_every_retraction(geometry, shape, method):
  """At the zero step, at one of size 0.3 and at a shortened one, by the step and the point together."""
  with jax.enable_x64(True):
    point, tangent, _ = draw(geometry, shape, (), jnp.float64)
    weights = jax.random.normal(jax.random.key(3), (2, *shape), jnp.float64)
    directions = geometry.tangent(
      jnp.stack([point] * 2), jax.random.normal(jax.random.key(4), (2, *shape), jnp.float64)
    )
    sizes = jnp.asarray([0.0, 1.0, 1.0 if isinstance(geometry, Birkhoff) else 1e3])[:, None, None]

    def function(both):
      moved = geometry.retract(jnp.stack([both[0]] * 3), both[1:] + sizes * tangent[None], method)
      return jnp.sum(weights[:1] * moved + weights[1:] * moved**2)

    check_derivatives(function, jnp.stack([point, jnp.zeros_like(point)]), 0.3 * directions)


@pytest.mark.slow
@every_geometry
def test_both_modes_go_through_projection_tangent_and_transport(index):
  geometry, shape = CASES[index]
  with jax.enable_x64(True):
    point, tangent, ambient = draw(geometry, shape, (), jnp.float64)
    new_point = geometry.retract(point, tangent)
    weights = jax.random.normal(jax.random.key(3), (2, *shape), jnp.float64)
    direction = 0.1 * jax.random.normal(jax.random.key(4), (3, *shape), jnp.float64)

    def function(x):
      results = (
        geometry.project(x[0]), geometry.project(2.0 * x[0] + 0.1 * x[2]), geometry.tangent(x[0], x[2]),
        geometry.gradient(x[0], x[2]), geometry.transport(x[0], x[1], x[2]),
      )  # fmt: skip
      return sum(jnp.sum(weights[0] * y + weights[1] * y**2) for y in results)

    check_derivatives(function, jnp.stack([point, new_point, ambient]), 0.1 * direction * point[None])


def test_what_has_no_nearest_point_is_projected_to_one_of_them_without_a_gradient():
  for geometry, shape in CASES:
    value, gradient = jax.value_and_grad(lambda x, g=geometry: jnp.sum(g.project(x)[..., 0]))(jnp.zeros(shape))
    assert geometry.distance(geometry.project(jnp.zeros(shape))) < 2e-6
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(gradient))
    if not isinstance(geometry, Birkhoff | Iso):  # to which zero is a matrix like any other
      assert not jnp.any(gradient)
    for size in (1e-30, 1e30):
      moderate = jax.random.normal(jax.random.key(0), shape)
      if isinstance(geometry, Sphere):
        assert_allclose(geometry.project(size * moderate), geometry.project(moderate), rtol=0, atol=1e-6)


@pytest.mark.parametrize("geometry, shape", [case for case in CASES if not isinstance(case[0], Birkhoff | Iso)])
def test_transport_to_the_antipode_is_the_projection(geometry, shape):
  point, tangent, _ = draw(geometry, shape)
  assert_allclose(geometry.transport(point, -point, tangent), sign(geometry) * tangent, rtol=0, atol=1e-6)
  near = geometry.retract(-point, 1e-3 * tangent)
  for target in (-point, near, geometry.retract(-point, 0.1 * tangent)):
    moved = geometry.transport(point, target, tangent)
    assert_allclose(geometry.tangent(target, moved), moved, rtol=0, atol=1e-6)
    assert jnp.all(jnp.linalg.norm(moved, axis=(-2, -1)) <= 1.001 * jnp.linalg.norm(tangent, axis=(-2, -1)))


def sign(geometry):
  return -1 if isinstance(geometry, Orthogonal) else 1  # the group's translation, X A -> −X A, has no such point


def test_balancing_many_rows_and_a_near_permutation():
  for n in (4, 12):
    geometry, corner = Birkhoff(), jnp.eye(n) + 1e-6 * jax.random.uniform(jax.random.key(0), (n, n))
    step = geometry.retract(geometry.project(corner), 1e8 * jax.random.normal(jax.random.key(1), (n, n)))
    assert geometry.distance(step) < 2e-6


def test_bad_names_and_shapes_are_refused():
  with pytest.raises(ConfigError, match="Did you mean 'cayley'"):
    Stiefel(retraction="caley")
  with pytest.raises(ConfigError, match="euclidean, canonical"):
    Stiefel(metric="hyperbolic")
  with pytest.raises(ConfigError, match="cayley, cayley_iterative, polar"):
    Iso().retract(jnp.eye(3), jnp.zeros((3, 3)), "qr")
  for geometry, shape in ((Stiefel(), (2, 4)), (Orthogonal(), (4, 3)), (Birkhoff(), (4,)), (Sphere(), (4,))):
    with pytest.raises(ValueError, match="needs"):
      geometry.check_shape(shape)


def test_the_table_of_names_holds_geometries():
  for name, geometry in MANIFOLDS.items():
    point = geometry.random(jax.random.key(0), (4, 4))
    assert geometry.distance(point) < 2e-6, name
