"""Kronecker products of 2 x 2 doubly stochastic matrices: log2 n degrees of freedom, exact by construction."""

import dataclasses
import functools

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from jpmhc_jax.mixers.base import refuse_streams, Traits
from jpmhc_jax.mixers.birkhoff import DoublyStochastic

__all__ = ["Kronecker"]


@dataclasses.dataclass(frozen=True)
class Kronecker(DoublyStochastic):
  """H = U_1 ⊗ U_2 ⊗ …, U_k = [[p_k, 1 − p_k], [1 − p_k, p_k]], p_k = first of softmax of the k-th pair of logits.

  project: logits (2 log2 n, *tokens) -> H (n, n, *tokens); the first pair acts on the most significant bit of the
  stream index. Members are symmetric and commute. n must be a power of two. Source: KromHC (2601.21579).

  Raises ConfigError unless n is a power of two.

  >>> jp.Kronecker().project(jnp.array([jnp.log(3.0), 0.0]), 2).round(2).tolist()
  [[0.75, 0.25], [0.25, 0.75]]
  """

  @property
  def traits(self) -> Traits:
    """Doubly stochastic with real eigenvalues; the identity is only approached."""
    return dataclasses.replace(
      super().traits, set="⊗ of 2 x 2 Birkhoff", contains_identity=False, eigenvalues="real, products of 2p_k − 1"
    )

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """Two per factor. Raises ConfigError unless n is a power of two."""
    if n < 2 or n & (n - 1):
      below = 1 << max(n.bit_length() - 1, 1)
      raise refuse_streams(
        "kronecker", n, "a power of two (2, 4, 8, …)", f"use {below} or {2 * below}, or mixer='permutation'"
      )
    return (2 * (n.bit_length() - 1),)

  def dimension(self, n: int) -> int:
    """One per factor."""
    return self.logit_shape(n)[0] // 2

  def identity_logits(self, n: int, strength: float) -> Float[Array, "k"]:
    """`strength` for the identity of each factor."""
    return jnp.tile(jnp.asarray([strength, 0.0]), self.dimension(n))

  def distance(self, matrix: Float[Array, "n n *tokens"]) -> Float[Array, "*tokens"]:
    """Largest violation of doubly stochastic and of H = ⊗ U_k with p_k the marginals of the first row."""
    n, tokens = matrix.shape[0], matrix.shape[2:]
    bits = matrix[0].reshape((2,) * (n.bit_length() - 1) + tokens)
    axes = range(n.bit_length() - 1)
    stay = [jnp.sum(bits, axis=tuple(a for a in axes if a != k))[0] for k in axes]
    return jnp.maximum(super().distance(matrix), jnp.max(jnp.abs(matrix - _product(stay)), axis=(0, 1)))

  def _project(self, logits: Array, n: int) -> Array:
    return _product([jax.nn.sigmoid(logits[k] - logits[k + 1]) for k in range(0, logits.shape[0], 2)])


def _product(stay: list[Array]) -> Array:
  factors = [jnp.stack([jnp.stack([p, 1 - p]), jnp.stack([1 - p, p])]) for p in stay]
  return functools.reduce(_kron, factors)


def _kron(a: Array, b: Array) -> Array:
  size = a.shape[0] * b.shape[0]
  return (a[:, None, :, None] * b[None, :, None, :]).reshape(size, size, *a.shape[2:])
