"""Manifolds that parameters live on: tangent spaces, retractions, projections, transport.

    x = manifolds.Stiefel().random(key, (6, 3))
    x = manifolds.Stiefel().retract(x, -0.1 * manifolds.Stiefel().gradient(x, jax.grad(loss)(x)))

`optim` makes optax transformations of them; MANIFOLDS holds those that a config names.
"""

from jpmhc_jax.manifolds.base import Manifold
from jpmhc_jax.manifolds.birkhoff import Birkhoff
from jpmhc_jax.manifolds.sphere import Oblique, Sphere
from jpmhc_jax.manifolds.stiefel import Grassmann, Iso, Orthogonal, Stiefel

__all__ = ["Birkhoff", "Grassmann", "Iso", "MANIFOLDS", "Manifold", "Oblique", "Orthogonal", "Sphere", "Stiefel"]

MANIFOLDS: dict[str, Manifold] = {
  "stiefel": Stiefel(),
  "stiefel_canonical": Stiefel(metric="canonical"),
  "orthogonal": Orthogonal(),
  "grassmann": Grassmann(retraction="cayley_qr"),
  "iso": Iso(),
  "birkhoff": Birkhoff(),
  "oblique": Oblique(),
  "sphere": Sphere(),
}
