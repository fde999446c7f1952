"""GMRES for many small systems at once: one system a grid point, unknowns first, points last."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

__all__ = ["Pair", "Vector", "gmres", "gmres_of_pairs"]

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
    weights = _least_squares(hessenberg, size)
    return x + jnp.sum(weights.T[:, None, :] * basis[:dimension], axis=0)

  result: Vector = jax.lax.fori_loop(0, restarts, cycle, jnp.zeros_like(rhs))
  return result


def _least_squares(hessenberg: Array, size: Float[Array, " points"]) -> Complex[Array, "points k"]:
  """Minimises |hessenberg · weights − size · e₁| for every point; columns that are zero get no weight."""
  q, r = jnp.linalg.qr(hessenberg)
  diagonal = jnp.diagonal(r, axis1=1, axis2=2)
  rounding = 50 * jnp.finfo(r.dtype).eps
  dead = jnp.abs(diagonal) <= rounding * jnp.max(jnp.abs(diagonal), axis=1, keepdims=True) + jnp.finfo(r.dtype).tiny
  r = r + jnp.eye(r.shape[-1], dtype=r.dtype)[None, :, :] * dead[:, None, :]
  target = jnp.where(dead, 0.0, jnp.conj(q[:, 0, :]) * size[:, None])
  return jax.scipy.linalg.solve_triangular(r, target[..., None])[..., 0]


Pair = Float[Array, "2 unknowns"]  # real and imaginary part


def _turned(vector: Array) -> Array:
  """i v of a pair."""
  return jnp.stack([-vector[1], vector[0]])


def gmres_of_pairs(matvec: Callable[[Pair], Pair], rhs: Pair, dimension: int, tolerance: Float[Array, ""]) -> Pair:
  """`gmres` for one large system, in the precision of the right-hand side, until the relative residual is `tolerance`.

  matvec is linear over the complex numbers. Complex vectors are pairs of real ones, since XLA's complex products on a
  CPU take five times as long as its real ones.
  """
  shape, dtype = rhs.shape, rhs.dtype
  dimension = min(dimension, shape[1])
  size = jnp.linalg.norm(rhs)
  basis = jnp.zeros((dimension + 1, rhs.size), dtype).at[0].set(jnp.ravel(rhs / jnp.maximum(size, 1e-30)))
  first = jnp.zeros((dimension + 1,), jax.lax.complex(size, size).dtype).at[0].set(1.0)

  State = tuple[Any, Array, Array, Array]  # noqa: N806, (steps, basis, Hessenberg matrix, its null vector)

  def unfinished(state: State) -> Array:
    k, _, _, null = state
    result: Array = (k < dimension) & (tolerance * jnp.linalg.norm(null) < 1)
    return result

  def grow(state: State) -> State:
    k, basis, hessenberg, null = state
    vector, column = matvec(basis[k].reshape(shape)), jnp.zeros_like(null)
    for _ in range(2):  # classical Gram-Schmidt, twice
      real, imaginary = basis @ jnp.ravel(vector), -(basis @ jnp.ravel(_turned(vector)))
      vector = vector - (real @ basis).reshape(shape) - _turned((imaginary @ basis).reshape(shape))
      column = column + jax.lax.complex(real, imaginary)
    length = jnp.linalg.norm(vector)
    alive = length > 10 * jnp.finfo(dtype).eps * jnp.linalg.norm(column)
    basis = basis.at[k + 1].set(jnp.where(alive, jnp.ravel(vector) / jnp.where(alive, length, 1.0), 0.0))
    column = column.at[k + 1].set(jnp.where(alive, length, 0.0))
    # The left null vector of the Hessenberg matrix grows by an entry a step; the residual is 1/|null|.
    entry = -jnp.sum(null * column) / jnp.where(alive, length, 1e-30)
    return k + 1, basis, hessenberg.at[:, k].set(column), null.at[k + 1].set(entry)

  start = 0, basis, jnp.zeros((dimension + 1, dimension), first.dtype), first
  _, basis, hessenberg, _ = jax.lax.while_loop(unfinished, grow, start)
  weights = _least_squares(hessenberg[None], size[None])[0]
  solution = (weights.real @ basis[:dimension]).reshape(shape)
  return solution + _turned((weights.imag @ basis[:dimension]).reshape(shape))
