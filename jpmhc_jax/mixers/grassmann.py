"""Rank-p projectors: points of the Grassmann manifold, as mixers."""

import dataclasses

from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jpmhc_jax.core.derivatives import custom_derivative
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.linalg import linear
from jpmhc_jax.mixers.base import Mixer, Traits

__all__ = ["Grassmann"]


@dataclasses.dataclass(frozen=True)
class Grassmann(Mixer):
  """H = U Uᵀ, U (n, p) orthonormal: the projector on the column space of the logits.

  project: logits (n, p, *tokens) -> H (n, n, *tokens); U by Gram–Schmidt, done twice (QR and polar give the same H).
  Logits with dependent columns give a projector of lower rank; otherwise H is on the set to rounding.
  Not an isometry: it keeps p directions and deletes n − p, and the identity is a member only for p = n, so stacked
  blocks keep little of their input. Source: JPmHC (2602.18308), which uses it with p = n/2.

  Raises ConfigError for a rank above n.

  >>> h = jp.Grassmann(rank=2).random(jax.random.key(0), 4)
  >>> bool(jnp.allclose(h @ h, h, atol=1e-6)), round(float(jnp.trace(h)), 4)
  (True, 2.0)
  """

  rank: int = 0  # p; 0 = n // 2

  def _rank(self, n: int) -> int:
    rank = self.rank or max(n // 2, 1)
    if not 1 <= rank <= n:
      raise ConfigError(f"options: rank={self.rank}: expected 1 to streams={n}, or 0 for n // 2.")
    return rank

  @property
  def traits(self) -> Traits:
    """A projector of rank p: keeps p directions, deletes the others."""
    return Traits(
      "Gr(n, p) as projectors", contractive=True, contains_identity=False, exact=False, determinant="0",
      eigenvalues="1 (p times), 0 (n − p times)", norm="kept on p directions, deleted on n − p",
    )  # fmt: skip

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """(n, p). Raises ConfigError for a rank that n streams do not have."""
    return (n, self._rank(n))

  def dimension(self, n: int) -> int:
    """p (n − p)."""
    rank = self._rank(n)
    return rank * (n - rank)

  def identity_logits(self, n: int, strength: float) -> Float[Array, "{n} p"]:
    """Columns that average blocks of n/p streams: no projector of rank p < n is near I."""
    # No projector of rank p < n is near I. Blocks of streams averaged together keep the stream mean, as the identity
    # does.
    rank = self._rank(n)
    return jnp.asarray(np.arange(n)[:, None] % rank == np.arange(rank)[None], jnp.float32)

  @property
  def manifold(self) -> str:
    """Subspaces, of which H is the projector."""
    return "grassmann"

  def initial_point(self, n: int, strength: float) -> Float[Array, "n p"]:
    """U of `identity_logits`."""
    return self.identity_logits(n, strength)

  def of_point(self, point: Float[Array, "n p"]) -> Float[Array, "n n"]:
    """The projector U Uᵀ of a point U."""
    return linear.matmul(point, point.T)

  def distance(self, matrix: Float[Array, "n n *tokens"]) -> Float[Array, "*tokens"]:
    """max of |H − Hᵀ|, |H² − H| and |trace H − p|."""
    symmetric = jnp.max(jnp.abs(linear.minus_transpose(matrix)), axis=(0, 1))
    idempotent = jnp.max(jnp.abs(linear.matmul(matrix, matrix) - matrix), axis=(0, 1))
    trace = jnp.abs(sum(matrix[i, i] for i in range(matrix.shape[0])) - self._rank(matrix.shape[0]))
    return jnp.maximum(jnp.maximum(symmetric, idempotent), trace)

  def published_flops(self, n: int) -> tuple[int, int]:
    """n p forward, n³ backward."""
    return n * self._rank(n), n**3

  def _project(self, logits: Array, n: int) -> Array:
    return _projector(linear.scaled(logits, 0))


@custom_derivative
def _projector(columns: Array) -> Array:
  u = _orthonormal(columns)
  return linear.matmul(u, linear.transpose(u))


def _projector_forward(columns: Array) -> tuple[Array, Array]:
  return _projector(columns), columns


def _projector_backward(columns: Array, bar: Array) -> tuple[Array]:
  # H depends on the column space of A = UR alone: dH = (I − H) dA R⁻¹ Uᵀ + its transpose, so that with S = H̄ + H̄ᵀ
  # Ā Rᵀ = (I − H) S U, solved from the last column on. Gram–Schmidt has no gradient of its own to go back through.
  u = _orthonormal(columns)
  u_t = linear.transpose(u)
  across = linear.matmul(bar + linear.transpose(bar), u)
  across = across - linear.matmul(u, linear.matmul(u_t, across))
  upper = linear.matmul(u_t, columns)
  rank = columns.shape[1]
  solved: dict[int, Array] = {}
  for k in reversed(range(rank)):
    later = sum(upper[k, j][None] * solved[j] for j in range(k + 1, rank))
    length = upper[k, k][None]
    solved[k] = (across[:, k] - later) * length / (length * length + _floor(length))
  return (jnp.stack([solved[k] for k in range(rank)], axis=1),)


_projector.defvjp(_projector_forward, _projector_backward)


def _orthonormal(columns: Array) -> Array:
  """U of A = UR by Gram–Schmidt; a column that depends on those before it becomes rounding, at most of length one."""
  basis: list[Array] = []
  for k in range(columns.shape[1]):
    column = columns[:, k]
    for _ in range(2):  # "twice is enough" (Kahan): the second pass removes what rounding left
      for other in basis:
        column = column - other * jnp.sum(other * column, axis=0, keepdims=True)
    square = jnp.sum(column * column, axis=0, keepdims=True)
    basis.append(column / jnp.sqrt(square + _floor(square)))
  return jnp.stack(basis, axis=1)


def _floor(like: Array) -> float:
  # Of a squared length. Columns have size one before orthogonalisation; far below it they depend on the others.
  return float(jnp.finfo(like.dtype).eps) ** 2
