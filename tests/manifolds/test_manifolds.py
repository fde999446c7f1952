"""Geometries of parameters: tangents, projections, transport, distance, random points, errors."""

import functools

import jax
import jax.numpy as jnp
from manifold_cases import CASES, draw, every_geometry
import numpy as np
from numpy.testing import assert_allclose
import pytest

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.manifolds import Birkhoff, Iso, MANIFOLDS, Orthogonal, Sphere, Stiefel


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
  distances = jax.jit(lambda key: geometry.distance(geometry.random(key, (2, 3, *shape))))(jax.random.key(0))
  assert distances.shape == (2, 3) and np.max(distances) < 2e-6
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


def test_uniform_points_have_the_moments_of_the_uniform_measure():
  point, iso = (
    np.asarray(jax.jit(g.random, static_argnums=1)(jax.random.key(0), (4000, 3, 3))) for g in (Orthogonal(), Iso())
  )
  assert_allclose(np.mean(point, axis=0), 0.0, atol=0.04)
  assert_allclose(np.mean(point**2, axis=0), 1 / 3, atol=0.02)
  assert abs(np.mean(np.linalg.det(point))) < 0.06  # both components
  assert_allclose(np.linalg.det(iso), 1.0, rtol=0, atol=1e-5)
  assert_allclose(np.mean(iso, axis=0), 1 / 3, atol=0.04)


def test_birkhoff_survives_huge_steps_and_the_boundary():
  geometry = Birkhoff()
  point, _, ambient = draw(geometry, (4, 4), ())
  step = jax.jit(lambda scale: geometry.retract(point, scale * geometry.gradient(point, ambient)))
  for scale in (1.0, 1e3, 1e6):
    new_point = step(scale)
    assert geometry.distance(new_point) < 1e-5
    assert jnp.min(new_point) >= 0.0
  gradient = jax.jit(lambda x: geometry.gradient(geometry.project(x), ambient))
  assert np.isfinite(gradient(jnp.eye(4))).all()


def test_what_has_no_nearest_point_is_projected_to_one_of_them_without_a_gradient():
  for geometry, shape in CASES:

    def projected(x, geometry=geometry):
      point = geometry.project(x)
      return jnp.sum(point[..., 0]), (point, geometry.distance(point))

    projected = jax.jit(jax.value_and_grad(projected, has_aux=True))
    (value, (_, distance)), gradient = projected(jnp.zeros(shape))
    assert distance < 2e-6
    assert np.isfinite(value) and np.isfinite(gradient).all()
    if not isinstance(geometry, Birkhoff | Iso):  # to which zero is a matrix like any other
      assert not np.any(gradient)
    if isinstance(geometry, Sphere):
      moderate = jax.random.normal(jax.random.key(0), shape)
      points = [projected(size * moderate)[0][1][0] for size in (1.0, 1e-30, 1e30)]
      assert_allclose(points[1:], points[:1] * 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("geometry, shape", [case for case in CASES if not isinstance(case[0], Birkhoff | Iso)])
def test_transport_to_the_antipode_is_the_projection(geometry, shape):
  point, tangent, _ = draw(geometry, shape)

  @jax.jit
  def moved(target):
    vector = geometry.transport(point, target, tangent)
    return vector, geometry.tangent(target, vector)

  @jax.jit
  def near(steps):
    return geometry.retract(jnp.stack([-point] * 2), steps[:, None, None, None] * tangent[None])

  assert_allclose(moved(-point)[0], sign(geometry) * tangent, rtol=0, atol=1e-6)
  for target in (-point, *near(jnp.array([1e-3, 0.1]))):
    vector, projected = moved(target)
    assert_allclose(projected, vector, rtol=0, atol=1e-6)
    lengths = [np.linalg.norm(v, axis=(-2, -1)) for v in (vector, tangent)]
    assert np.all(lengths[0] <= 1.001 * lengths[1])


def sign(geometry):
  return -1 if isinstance(geometry, Orthogonal) else 1  # the group's translation, X A -> −X A, has no such point


def test_balancing_many_rows_and_a_near_permutation():
  for n in (4, 12):
    geometry, corner = Birkhoff(), jnp.eye(n) + 1e-6 * jax.random.uniform(jax.random.key(0), (n, n))
    step = jax.jit(lambda x, z, g=geometry: g.distance(g.retract(g.project(x), z)))
    assert step(corner, 1e8 * jax.random.normal(jax.random.key(1), (n, n))) < 2e-6


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
    assert jax.jit(lambda key, g=geometry: g.distance(g.random(key, (4, 4))))(jax.random.key(0)) < 2e-6, name
