"""Rotations of four streams by two unit quaternions.

Every rotation of R⁴ is x ↦ p x q with unit quaternions p, q: as matrices H = L(p) R(q), left and right multiplication,
which commute. Normalising p and q makes H orthogonal to rounding, whatever the logits.
"""

import dataclasses
import functools
import operator

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jpmhc_jax.manifolds import linear
from jpmhc_jax.manifolds.contract import Manifold, refuse_streams, Traits

# (w, x, y, z) at row i, column k of L(p) is component _COMPONENT[i][k] of p with sign _LEFT[i][k]; likewise R(q).
_COMPONENT = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))
_LEFT = ((1, -1, -1, -1), (1, 1, -1, 1), (1, 1, 1, -1), (1, -1, 1, 1))
_RIGHT = ((1, -1, -1, -1), (1, 1, 1, -1), (1, -1, 1, 1), (1, 1, -1, 1))

Components = list[Array]


def rotation(p: Components, q: Components) -> Float[Array, "4 4 *tokens"]:
  """L(p) R(q) / (|p| |q|): the rotation x ↦ p x q / (|p| |q|), from the four components of each quaternion."""
  # The 16 entries are written out and stacked once: one fused loop over tokens, no intermediate matrices.
  # Two roots: the product of the squares leaves float32 where the lengths themselves do not.
  length, other = (jnp.sqrt(jnp.maximum(squared_norm(r), np.finfo(np.float32).tiny)) for r in (p, q))
  scale = 1 / (length * other)
  p = [scale * component for component in p]
  entries = [
    functools.reduce(
      operator.add,
      (_LEFT[i][k] * _RIGHT[k][j] * p[_COMPONENT[i][k]] * q[_COMPONENT[k][j]] for k in range(4)),
    )
    for i in range(4)
    for j in range(4)
  ]
  return jnp.stack(entries).reshape(4, 4, *scale.shape)


def squared_norm(q: Components) -> Array:
  """|q|²."""
  return functools.reduce(operator.add, (component * component for component in q))


@dataclasses.dataclass(frozen=True)
class Quaternion(Manifold):
  """SO(4) by quaternion pairs: every rotation is reached, −I and half-turns included, and zero logits give I exactly.

  project: logits (8, *tokens) -> H (4, 4, *tokens), p = (1 + l₀, l₁, l₂, l₃), q = conj(1 + l₄, l₅, l₆, l₇), H =
  L(p)R(q)/(|p||q|). Two of the eight logits are redundant (the lengths of p and q); the map is undefined only where p
  or q is zero. Only for n = 4. Source: oHC, 2609.02672.
  """

  @property
  def traits(self) -> Traits:
    return Traits(
      "SO(4)", orthogonal=True, contractive=True, determinant="+1", eigenvalues="all of SO(4), −1 included", norm="kept"
    )

  def logit_shape(self, n: int) -> tuple[int, ...]:
    if n != 4:
      raise refuse_streams("quaternion", n, "exactly 4 streams", "use streams=4 or manifold='cayley'")
    return (8,)

  def dimension(self, n: int) -> int:
    return 6

  def identity_logits(self, n: int, strength: float) -> Float[Array, "8"]:
    return jnp.zeros(self.logit_shape(n))

  def random(self, key: Array, n: int) -> Float[Array, "{n} {n}"]:
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
