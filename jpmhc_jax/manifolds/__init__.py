"""Manifolds that parameters live on: tangent spaces, retractions, projections, transport."""

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
