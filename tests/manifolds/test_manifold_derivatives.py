"""Derivatives of retractions, projections, tangents and transports: both modes, two orders, against differences."""

import jax
import jax.numpy as jnp
from manifold_cases import by_retraction, CASES, draw, every_geometry
from numpy.testing import assert_allclose
import pytest

from jpmhc_jax.manifolds import Birkhoff


def check_derivatives(function, x, direction):
  """d/dt and (d/dt)² of Σ function along the direction: forward (over reverse) and reverse (over reverse) agree
  with differences in float64. One program for each of them, since compiling them together takes longer."""

  @jax.jit
  def total(x):
    return jnp.sum(function(x))

  @jax.jit
  def slope(x):
    return jnp.sum(jax.grad(total)(x) * direction)

  def quotient(f, step):
    return (f(x + step * direction) - f(x - step * direction)) / (2 * step)

  for f, reverse, difference, bound in (
    (total, slope(x), quotient(total, 1e-5), 1e-8),
    (
      slope,
      jnp.sum(jax.jit(jax.grad(slope))(x) * direction),
      (4 * quotient(slope, 1e-4) - quotient(slope, 2e-4)) / 3,
      1e-5,
    ),
  ):
    forward = jax.jit(lambda x, f=f: jax.jvp(f, (x,), (direction,))[1])(x)
    assert_allclose([forward, reverse], [difference] * 2, rtol=bound, atol=bound)


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
