"""Mixers stored on their manifold instead of as logits: which manifold a family's matrix lives on, and where it starts.

A stored mixer is one matrix for all tokens, trained by the Riemannian transforms of `optim` under the role
`manifold:<name>`.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax import mixers
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.manifolds import parameters as manifolds

MANIFOLDS: dict[str, manifolds.Manifold] = {
  "orthogonal": manifolds.Orthogonal(),
  "grassmann": manifolds.Grassmann(),
  "iso": manifolds.Iso(),
  "birkhoff": manifolds.Birkhoff(),
}


@dataclasses.dataclass(frozen=True)
class StoredMixer:
  """A matrix on a manifold. `role` names the manifold for the optimiser."""

  name: str
  family: mixers.Mixer

  @property
  def role(self) -> str:
    return f"manifold:{self.name}"

  def initial(self, n: int, strength: float) -> Float[Array, "n p"]:
    """The identity where the set contains it in its interior; else as near to it as `strength` says."""
    return MANIFOLDS[self.name].project(jnp.asarray(self.family.initial_point(n, strength)))

  def mixer(self, point: Float[Array, "n p"]) -> Float[Array, "n n"]:
    """H of a point."""
    return self.family.of_point(point)


def stored_mixer(mixer: mixers.Mixer, family: str) -> StoredMixer:
  """The stored form of a family; raises ConfigError where there is none."""
  if mixer.manifold is None:
    raise ConfigError(
      f"connection.parameterisation='manifold': the mixers of connection.mixer={family!r} are no manifold of their "
      "own to step on; use parameterisation='logits', or cayley, polar, iso, sinkhorn or grassmann"
    )
  return StoredMixer(mixer.manifold, mixer)
