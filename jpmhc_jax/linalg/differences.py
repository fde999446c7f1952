"""Matrices that act on stream differences alone: coordinates in an orthonormal basis of 1^⊥."""

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

__all__ = ["extended", "helmert", "restricted"]


def helmert(n: int) -> np.ndarray:
  """The Helmert basis (n, n−1) of 1^⊥: column k is (1, …, 1, −k, 0, …, 0)/√(k(k+1)) with k ones, k = 1 … n−1.

  >>> jp.linalg.helmert(3).round(3).tolist()
  [[0.707, 0.408], [-0.707, 0.408], [0.0, -0.816]]
  """
  basis = np.zeros((n, n - 1))
  for k in range(1, n):
    basis[:k, k - 1] = 1 / np.sqrt(k * (k + 1))
    basis[k, k - 1] = -k / np.sqrt(k * (k + 1))
  return basis


def restricted(matrix: Float[Array, "n n *tokens"]) -> Float[Array, "m m *tokens"]:
  """Uᵀ A U, m = n − 1, U the Helmert basis."""
  return _both_sides(helmert(matrix.shape[0]).T, matrix)


def extended(core: Float[Array, "m m *tokens"]) -> Float[Array, "n n *tokens"]:
  """11ᵀ/n + U R Uᵀ: R on the differences, and the stream mean kept."""
  n = core.shape[0] + 1
  return _both_sides(helmert(n), core) + 1 / n


def _both_sides(basis: np.ndarray, matrix: Array) -> Array:
  # L A Lᵀ as one matrix product with the tokens for columns.
  kron, rows = jnp.asarray(np.kron(basis, basis), matrix.dtype), basis.shape[0]
  flat = matrix.reshape(matrix.shape[0] ** 2, *matrix.shape[2:])
  return jnp.tensordot(kron, flat, axes=1, precision=jax.lax.Precision.HIGHEST).reshape(rows, rows, *matrix.shape[2:])
