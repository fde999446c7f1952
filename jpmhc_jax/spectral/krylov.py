"""GMRES for many small systems at once: one system a grid point, unknowns first, points last."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex

Vector = Complex[Array, "unknowns points"]


def _orthogonalised(
  basis: Complex[Array, "k unknowns points"], vector: Vector
) -> tuple[Vector, Complex[Array, "k points"]]:
  """Classical Gram-Schmidt, twice (once loses orthogonality as the square of the condition number)."""
  total = jnp.zeros((basis.shape[0], basis.shape[2]), basis.dtype)
  for _ in range(2):
    weights = jnp.sum(jnp.conj(basis) * vector[None, :, :], axis=1)
    vector = vector - jnp.sum(weights[:, None, :] * basis, axis=0)
    total = total + weights
  return vector, total


def _unit(vector: Vector) -> tuple[Vector, Array]:
  size = jnp.sqrt(jnp.sum(jnp.abs(vector) ** 2, axis=0))
  return vector * jnp.where(size > 1e-300, 1 / jnp.where(size > 1e-300, size, 1.0), 0.0)[None, :], size


def gmres(matvec: Callable[[Vector], Vector], rhs: Vector, dimension: int, restarts: int = 1) -> Vector:
  """Minimises |matvec(x) − rhs| over a Krylov space of the given dimension, for every point on its own.

  matvec: linear, acts on each point separately. A breakdown (space exhausted) leaves zero columns, which are ignored.
  """

  dimension = min(dimension, rhs.shape[0])

  def cycle(_: Array, x: Array) -> Array:
    first, size = _unit(rhs - matvec(x))
    basis = jnp.zeros((dimension + 1, *rhs.shape), rhs.dtype).at[0].set(first)
    hessenberg = jnp.zeros((rhs.shape[1], dimension + 1, dimension), rhs.dtype)

    def grow(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
      basis, hessenberg = state
      vector, weights = _orthogonalised(basis, matvec(basis[k]))
      vector, length = _unit(vector)
      alive = length > 1e-13 * jnp.linalg.norm(weights, axis=0)  # below: rounding noise of an exhausted space
      basis = basis.at[k + 1].set(jnp.where(alive[None, :], vector, 0.0))
      column = weights.at[k + 1].set(jnp.where(alive, length, 0.0).astype(rhs.dtype))
      return basis, hessenberg.at[:, :, k].set(column.T)

    basis, hessenberg = jax.lax.fori_loop(0, dimension, grow, (basis, hessenberg))
    q, r = jnp.linalg.qr(hessenberg)
    diagonal = jnp.diagonal(r, axis1=1, axis2=2)
    dead = jnp.abs(diagonal) <= 1e-14 * jnp.max(jnp.abs(diagonal), axis=1, keepdims=True) + 1e-300
    r = r + jnp.eye(dimension)[None, :, :] * dead[:, None, :]
    target = jnp.where(dead, 0.0, jnp.conj(q[:, 0, :]) * size[:, None])
    weights = jax.scipy.linalg.solve_triangular(r, target[..., None])[..., 0]
    return x + jnp.sum(weights.T[:, None, :] * basis[:dimension], axis=0)

  return jax.lax.fori_loop(0, restarts, cycle, jnp.zeros_like(rhs))
