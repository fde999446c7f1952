"""Manifolds that parameters live on: tangent spaces, retractions, projections, transport.

    x = manifolds.Stiefel().random(key, (6, 3))
    x = manifolds.Stiefel().retract(x, -0.1 * manifolds.Stiefel().gradient(x, jax.grad(loss)(x)))

`optim` makes optax transformations of them; MANIFOLDS holds those that a config names.
"""

from jpmhc_jax.manifolds.parameters import (
  Birkhoff,
  Grassmann,
  Iso,
  Manifold,
  MANIFOLDS,
  Oblique,
  Orthogonal,
  Sphere,
  Stiefel,
)

__all__ = ["Birkhoff", "Grassmann", "Iso", "MANIFOLDS", "Manifold", "Oblique", "Orthogonal", "Sphere", "Stiefel"]
