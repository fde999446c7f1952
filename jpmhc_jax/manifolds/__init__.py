"""Sets of mixing matrices: projections from logits, exact derivatives, and the distance of any matrix to the set."""

from jpmhc_jax.manifolds.birkhoff import DoublyStochastic, Sinkhorn
from jpmhc_jax.manifolds.cayley import Cayley, CayleyIterative
from jpmhc_jax.manifolds.contract import Manifold, Traits
from jpmhc_jax.manifolds.families import FAMILIES, make, parse
from jpmhc_jax.manifolds.grassmann import Grassmann
from jpmhc_jax.manifolds.iso import Iso
from jpmhc_jax.manifolds.polar import Polar
from jpmhc_jax.manifolds.quaternion import Quaternion
from jpmhc_jax.manifolds.trivial import Identity, Unconstrained

__all__ = [
  "Cayley", "CayleyIterative", "DoublyStochastic", "FAMILIES", "Grassmann", "Identity", "Iso", "Manifold", "Polar", "Quaternion",
  "Sinkhorn", "Traits", "Unconstrained", "make", "parse",
]  # fmt: skip
