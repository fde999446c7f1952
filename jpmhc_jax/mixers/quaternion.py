"""Rotations of four streams by two unit quaternions."""

import dataclasses
import functools

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jpmhc_jax.linalg import linear
from jpmhc_jax.linalg.quaternion import Components, rotation
from jpmhc_jax.mixers.base import Mixer, refuse_streams, Traits

__all__ = ["Quaternion"]


@dataclasses.dataclass(frozen=True)
class Quaternion(Mixer):
  """SO(4) by quaternion pairs: every rotation is reached, −I and half-turns included, and zero logits give I exactly.

  project: logits (8, *tokens) -> H (4, 4, *tokens), p = (1 + l₀, l₁, l₂, l₃), q = conj(1 + l₄, l₅, l₆, l₇), H =
  L(p)R(q)/(|p||q|). Two of the eight logits are redundant (the lengths of p and q); the map is undefined only where p
  or q is zero. Only for n = 4. Source: oHC, 2609.02672.

  Raises ConfigError for another number of streams.

  >>> h = jp.Quaternion().project(jnp.arange(8.0), 4)
  >>> bool(jnp.allclose(h @ h.T, jnp.eye(4), atol=1e-6)), round(float(jnp.linalg.det(h)), 4)
  (True, 1.0)
  """

  @property
  def traits(self) -> Traits:
    """Every rotation of four streams, the half turns included."""
    return Traits(
      "SO(4)", orthogonal=True, contractive=True, determinant="+1", eigenvalues="all of SO(4), −1 included", norm="kept"
    )

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """(8,): two quaternions. Raises ConfigError unless n is 4."""
    if n != 4:
      raise refuse_streams("quaternion", n, "exactly 4 streams", "use streams=4 or mixer='cayley'")
    return (8,)

  def dimension(self, n: int) -> int:
    """6, that of SO(4)."""
    return 6

  def identity_logits(self, n: int, strength: float) -> Float[Array, "8"]:
    """0."""
    return jnp.zeros(self.logit_shape(n))

  def random(self, key: Array, n: int) -> Float[Array, "{n} {n}"]:
    """Haar-distributed. Raises ConfigError unless n is 4."""
    self.logit_shape(n)
    q = linear.haar(key, n)
    # Haar on O(4) restricted to determinant +1: flip the first row where it is −1.
    sign = jnp.sign(jnp.linalg.det(q))
    return q.at[0].multiply(sign)

  def _project(self, logits: Array, n: int) -> Array:
    p = _scaled([1 + logits[0], logits[1], logits[2], logits[3]])
    q = _scaled([1 + logits[4], -logits[5], -logits[6], -logits[7]])
    return rotation(p, q)


def _scaled(q: Components) -> Components:
  # Dividing by the largest component keeps squares of squares inside float32 for logits of any size. H does not depend
  # on the length of q, so the divisor carries no gradient. A zero quaternion has no direction; the floor keeps it
  # finite.
  largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, map(jnp.abs, q)))
  inverse = 1 / jnp.maximum(largest, np.finfo(np.float32).eps)
  return [inverse * component for component in q]
