"""Doubly stochastic matrices inside the Birkhoff polytope, as a Riemannian manifold."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jpmhc_jax.core.errors import check_choice
from jpmhc_jax.linalg import scaling
from jpmhc_jax.manifolds.base import check_square, Manifold, Matrix, Scalars
from jpmhc_jax.manifolds.retractions import gram, identity_like, matmul, transpose

__all__ = ["Birkhoff"]

_NEWTON_STEPS = 50  # at most; from anywhere a dozen reach rounding


@dataclasses.dataclass(frozen=True)
class Birkhoff(Manifold):
  """Positive doubly stochastic matrices (the inside of the Birkhoff polytope) with the Fisher metric sum A B / P.

  Tangent vectors have zero row and column sums; the gradient is the projection of P * G; the retraction is Sinkhorn
  of P exp(Z / P), order 1. Permutations are limits, never reached: entries are kept above `floor`, and one step
  changes no entry by more than a factor exp(`max_log_step`).

  Leaves (*batch, n, n). Raises ConfigError for another retraction. Source: Douik & Hassibi 2019.

  >>> birkhoff = jp.manifolds.Birkhoff()
  >>> birkhoff.project(jnp.array([[3.0, 1.0], [1.0, 3.0]])).round(4).tolist()
  [[0.75, 0.25], [0.25, 0.75]]
  """

  sweeps: int = 100  # of balancing, at most; what is not balanced by then (near a permutation) Newton's steps finish
  floor: float = 1e-7  # float32 cannot represent smaller entries in p + (new - p)
  max_log_step: float = 5.0

  retraction: ClassVar[str] = "sinkhorn"
  RETRACTIONS: ClassVar[tuple[str, ...]] = ("sinkhorn",)

  def tangent(self, point: Matrix, ambient: Matrix) -> Matrix:
    """Z − (a1ᵀ + 1bᵀ) ∘ P with a and b such that all row and column sums are 0."""
    # Z - (a 1^T + 1 b^T) * P with zero sums:  r a + P b = Z 1,  P^T a + c b = Z^T 1  (r, c the true sums of P).
    # Without a: (diag(c) - P^T diag(1/r) P) b = Z^T 1 - P^T (Z 1 / r), singular along 1, which 1 1^T / n fixes.
    rows, columns = jnp.sum(point, axis=-1, keepdims=True), jnp.sum(point, axis=-2)
    scaled = point / rows
    eye = identity_like(point)
    system = eye * columns[..., None, :] - gram(point, scaled) + 1 / point.shape[-1]
    row_sums = jnp.sum(ambient, axis=-1, keepdims=True)
    right = jnp.sum(ambient, axis=-2)[..., None] - gram(scaled, row_sums)
    b = jnp.linalg.solve(system, right)
    a = (row_sums - matmul(point, b)) / rows
    return ambient - (a + transpose(b)) * point

  def gradient(self, point: Matrix, ambient: Matrix) -> Matrix:
    """The tangent projection of P ∘ G."""
    return self.tangent(point, point * ambient)

  def inner(self, point: Matrix, a: Matrix, b: Matrix) -> Scalars:
    """Σ A B / P, the Fisher metric."""
    return jnp.sum(a * b / jnp.maximum(point, self.floor), axis=(-2, -1))

  def retract(self, point: Matrix, tangent: Matrix, method: str = "") -> Matrix:
    """Sinkhorn of P exp(Z/P). Raises ConfigError for another method."""
    check_choice("method", method or self.retraction, self.RETRACTIONS)
    positive = jnp.maximum(point, self.floor)
    return self._balance(positive * jnp.exp(jnp.clip(tangent / positive, -self.max_log_step, self.max_log_step)))

  def transport(self, point: Matrix, new_point: Matrix, vector: Matrix) -> Matrix:
    """The tangent projection at the new point."""
    return self.tangent(new_point, vector)

  def distance(self, point: Matrix) -> Scalars:
    """The largest of |row sum − 1|, |column sum − 1| and −entry."""
    rows = jnp.max(jnp.abs(jnp.sum(point, axis=-1) - 1), axis=-1)
    columns = jnp.max(jnp.abs(jnp.sum(point, axis=-2) - 1), axis=-1)
    return jnp.maximum(jnp.maximum(rows, columns), jnp.max(-point, axis=(-2, -1)))

  def project(self, matrix: Matrix) -> Matrix:
    """Sinkhorn of the entries, cut off at `floor`."""
    return self._balance(jnp.maximum(matrix, self.floor))

  def random(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Sinkhorn of exponential entries. Raises ValueError as `check_shape` does."""
    self.check_shape(shape)
    return self._balance(jax.random.exponential(key, shape) + self.floor)

  def check_shape(self, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the shape is (…, n, n)."""
    check_square(self, shape, 1)

  def _balance(self, matrix: Matrix) -> Matrix:
    return _balanced(matrix, self)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _balanced(matrix: Matrix, manifold: Birkhoff) -> Matrix:
  """diag(u) M diag(v) with row and column sums 1, to rounding. No matrix of a batch depends on another."""
  tolerance = 4 * jnp.finfo(matrix.dtype).eps

  def missing(matrix: Array) -> Array:
    return jnp.max(jnp.abs(jnp.sum(matrix, axis=-2, keepdims=True) - 1), axis=-1, keepdims=True)

  # A matrix that is done stays as it is while others go on; one with a NaN is never above the tolerance.
  def unfinished(state: tuple[Array, Array, Array]) -> Array:
    _, going, sweep = state
    return jnp.any(going) & (sweep < manifold.sweeps)

  def balance(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    matrix, going, sweep = state
    columns = matrix / jnp.sum(matrix, axis=-2, keepdims=True)
    rows = columns / jnp.sum(columns, axis=-1, keepdims=True)
    return jnp.where(going, rows, matrix), going & (missing(rows) > tolerance), sweep + 1

  def finished(matrix: Matrix) -> Matrix:
    tokens_last = jnp.moveaxis(matrix, (-2, -1), (0, 1))
    return jnp.moveaxis(scaling.finish(tokens_last, _NEWTON_STEPS), (0, 1), (-2, -1))

  start = (matrix, jnp.ones((*matrix.shape[:-2], 1, 1), bool), jnp.zeros([], jnp.int32))
  matrix, going, _ = jax.lax.while_loop(unfinished, balance, start)
  result: Matrix = jax.lax.cond(jnp.any(going), lambda m: jnp.where(going, finished(m), m), lambda m: m, matrix)
  return result


@_balanced.defjvp
def _balanced_jvp(manifold: Birkhoff, primals: tuple[Matrix], tangents: tuple[Matrix]) -> tuple[Matrix, Matrix]:
  # log P = log M + log u + log v, with sums held: dP is P * dM / M less the part that the scaling takes back.
  (matrix,), (tangent,) = primals, tangents
  point = _balanced(matrix, manifold)
  return point, manifold.tangent(point, point * tangent / matrix)
