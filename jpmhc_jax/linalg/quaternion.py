"""Quaternions and the rotations of R⁴ that pairs of them are.

Every rotation of R⁴ is x ↦ p x q with unit quaternions p, q: as matrices H = L(p) R(q), left and right multiplication,
which commute. Normalising p and q makes H orthogonal to rounding, whatever the logits.
"""

import functools
import operator

from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

__all__ = ["Components", "rotation", "squared_norm"]

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
