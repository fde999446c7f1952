"""Mixers stored on their manifold instead of as logits: which geometry a family's matrix lives on, and where it starts.

A stored mixer is one matrix for all tokens, trained by the Riemannian transforms of `optim` under the role
`manifold:<name>`.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax import manifolds
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.manifolds import parameters as geometry
from jpmhc_jax.manifolds.retractions import matmul

GEOMETRIES: dict[str, geometry.Geometry] = {
  "orthogonal": geometry.Orthogonal(),
  "grassmann": geometry.Grassmann(),
  "iso": geometry.Iso(),
  "birkhoff": geometry.Birkhoff(),
}


def _name(manifold: manifolds.Manifold) -> str | None:
  """The geometry whose points (or their projectors) are the members of a mixer family."""
  if isinstance(manifold, manifolds.Grassmann):
    return "grassmann"
  if isinstance(manifold, manifolds.Identity | manifolds.Unconstrained):
    return None
  traits = manifold.traits
  if traits.orthogonal:
    return "iso" if traits.row_sums_one else "orthogonal"
  if isinstance(manifold, manifolds.Sinkhorn | manifolds.DoublyStochastic):
    return "birkhoff"
  return None


@dataclasses.dataclass(frozen=True)
class StoredMixer:
  """A matrix on a manifold. `role` names the geometry for the optimiser."""

  name: str
  manifold: manifolds.Manifold

  @property
  def role(self) -> str:
    return f"manifold:{self.name}"

  def initial(self, n: int, strength: float) -> Float[Array, "n p"]:
    """The identity where the set contains it in its interior; else as near to it as `strength` says."""
    logits = self.manifold.identity_logits(n, strength)
    if self.name == "grassmann":
      return GEOMETRIES["grassmann"].project(jnp.asarray(logits))
    return GEOMETRIES[self.name].project(self.manifold.project(jnp.asarray(logits, jnp.float32), n))

  def mixer(self, point: Float[Array, "n p"]) -> Float[Array, "n n"]:
    """H of a point: the point itself, or the projector U Uᵀ on the Grassmann manifold."""
    return matmul(point, point.T) if self.name == "grassmann" else point


def stored_mixer(manifold: manifolds.Manifold, family: str) -> StoredMixer:
  """The stored form of a family; raises ConfigError where there is none."""
  name = _name(manifold)
  if name is None:
    raise ConfigError(
      f"connection.parameterisation='manifold': the mixers of connection.manifold={family!r} are no manifold of their "
      "own to step on; use parameterisation='logits', or cayley, polar, iso, sinkhorn or grassmann"
    )
  return StoredMixer(name, manifold)
