"""Manifolds with a shape for each, their retractions, and points, tangents and ambient matrices on them."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jpmhc_jax.manifolds import Birkhoff, Grassmann, Iso, Oblique, Orthogonal, Sphere, Stiefel

CASES = [
  (Stiefel(), (5, 3)), (Stiefel(metric="canonical"), (7, 2)), (Orthogonal(), (4, 4)), (Iso(), (4, 4)),
  (Grassmann(retraction="cayley_qr"), (5, 2)), (Birkhoff(), (4, 4)), (Sphere(), (3, 2)), (Oblique(), (4, 3)),
]  # fmt: skip
_IDS = [f"{type(g).__name__}-{g.retraction}-{'x'.join(map(str, s))}" for g, s in CASES]
every_geometry = pytest.mark.parametrize("index", range(len(CASES)), ids=_IDS)
RETRACTIONS = [
  *((Stiefel(), (5, 3), method) for method in Stiefel.RETRACTIONS), (Stiefel(metric="canonical"), (7, 2), "cayley"),
  (Orthogonal(), (4, 4), "cayley"), (Iso(), (4, 4), "cayley"), (Iso(), (4, 4), "polar"),
  (Birkhoff(), (4, 4), "sinkhorn"), (Sphere(), (3, 2), "exp"), (Sphere(), (3, 2), "normalise"),
  (Oblique(), (4, 3), "exp"),
]  # fmt: skip
_RETRACTION_IDS = [f"{type(g).__name__}-{s[0]}x{s[1]}-{method}" for g, s, method in RETRACTIONS]
by_retraction = pytest.mark.parametrize("geometry, shape, method", RETRACTIONS, ids=_RETRACTION_IDS)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def draw(geometry, shape, batch=(3,), dtype=jnp.float32):
  """A point, a tangent vector of moderate size, and an ambient matrix."""
  point = geometry.project(geometry.random(jax.random.key(0), batch + shape).astype(dtype))
  ambient = jax.random.normal(jax.random.key(1), batch + shape, dtype)
  tangent = geometry.gradient(point, ambient)
  return point, 0.3 * tangent / jnp.max(jnp.abs(tangent)), ambient
