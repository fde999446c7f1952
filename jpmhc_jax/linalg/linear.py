"""Algebra on tiny matrices with the tokens last: (n, m, *tokens), written out so that every step is elementwise over
tokens.

A batched GEMM or LU of 4x4 matrices calls a library kernel per token; these forms vectorise over tokens instead
(measured on two CPU cores, 4,096 tokens: 0.1 ms against 3.6 ms). Loops run over the matrix size in Python, because n is
small and static.
"""

import functools
import operator

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jpmhc_jax.core.derivatives import custom_derivative

__all__ = [
  "centred_skew", "cofactors_3", "cofactors_4", "column_sum_error", "constant_below", "embed", "expansion", "haar",
  "identity_like", "inverse_norm", "inverse_positive", "laplacian_solve", "matmul", "matvec", "minus_transpose",
  "negativity", "orthogonality_error", "over_tokens", "row_sum_error", "scaled", "solve", "total", "transpose",
  "unfused_matmul", "vecmat",
]  # fmt: skip


def over_tokens(constant: np.ndarray | Array, like: Array, axes: int = 2) -> Array:
  """A constant with one singleton axis for each token axis of `like`, whose first `axes` axes are not tokens."""
  return jnp.asarray(constant, like.dtype).reshape(np.shape(constant) + (1,) * (like.ndim - axes))


def identity_like(matrix: Array) -> Array:
  """The identity, shape (n, n, 1, ..., 1), to add to a matrix (n, n, *tokens)."""
  return over_tokens(np.eye(matrix.shape[0]), matrix)


def transpose(matrix: Float[Array, "n m *tokens"]) -> Float[Array, "m n *tokens"]:
  """Swaps the two matrix axes."""
  return jnp.swapaxes(matrix, 0, 1)


def matmul(a: Float[Array, "n k *#tokens"], b: Float[Array, "k m *#tokens"]) -> Float[Array, "n m *#tokens"]:
  """The product a b, as a sum of k outer products; token axes broadcast.

  Beyond four rows it is an `unfused_matmul`.

  >>> a = jnp.stack([jnp.eye(2), 2 * jnp.eye(2)], axis=-1)  # (2, 2, 2): two tokens
  >>> jp.linalg.matmul(a, a)[..., 1].tolist()
  [[4.0, 0.0], [0.0, 4.0]]
  """
  return _matmul(a, b) if a.shape[0] <= 4 else unfused_matmul(a, b)


def unfused_matmul(a: Float[Array, "n k *#tokens"], b: Float[Array, "k m *#tokens"]) -> Float[Array, "n m *#tokens"]:
  """The product a b, in a loop over two halves of its rows, so that it is a program of its own.

  A compiler that fuses a chain of products recomputes each factor for every row of the next (four products of 4,096
  8x8 tokens: 7.6 ms fused, 1.1 ms unfused; 2 CPU cores).
  """
  rows, half = a.shape[0], (a.shape[0] + 1) // 2
  padded = jnp.pad(a, ((0, 2 * half - rows),) + ((0, 0),) * (a.ndim - 1))
  # Both factors pass the barrier together: of b alone JAX would slice the rows before the loop, when it differentiates.
  parts = jax.lax.map(
    lambda part: _matmul(*jax.lax.optimization_barrier((part, b))), padded.reshape(2, half, *a.shape[1:])
  )
  result: Array = parts.reshape(2 * half, *parts.shape[2:])[:rows]
  return result


def _matmul(a: Array, b: Array) -> Array:
  return functools.reduce(operator.add, (a[:, k : k + 1] * b[k : k + 1] for k in range(a.shape[1])))


def matvec(a: Float[Array, "n m *tokens"], x: Float[Array, "m *tokens"]) -> Float[Array, "n *tokens"]:
  """The product a x."""
  return functools.reduce(operator.add, (a[:, j] * x[j][None] for j in range(a.shape[1])))


def vecmat(x: Float[Array, "n *tokens"], a: Float[Array, "n m *tokens"]) -> Float[Array, "m *tokens"]:
  """The product xᵀ a."""
  return functools.reduce(operator.add, (x[i][None] * a[i] for i in range(a.shape[0])))


def total(array: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
  """The sum over a tiny axis, which stays with length 1, as written-out adds.

  XLA on the CPU gives `jnp.sum` to a library, to which it first writes every operand out (the backward pass of Sinkhorn
  takes 0.33 ms with `jnp.sum` and 0.19 ms with this; 4,096 tokens).
  """
  slices = (jax.lax.slice_in_dim(array, k, k + 1, axis=axis) for k in range(array.shape[axis]))
  return functools.reduce(operator.add, slices)


def scaled(array: Float[Array, "..."], axes: int | tuple[int, ...]) -> Float[Array, "..."]:
  """The array over its largest size along tiny axes, which keeps squares inside float32; zero stays zero.

  For what does not depend on the length: the divisor carries no gradient. A compiler may multiply it by the next one:
  the root in its floor keeps their product a normal number.
  """
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(array), axis=axes, keepdims=True))
  return array / jnp.maximum(largest, float(jnp.finfo(array.dtype).tiny) ** 0.5)


def constant_below(matrix: Float[Array, "n m *tokens"], least: float | Array) -> Float[Array, "n m *tokens"]:
  """The matrix itself; a token whose entries are all below `least` (*tokens, or one for all) carries no gradient."""
  largest = jnp.max(jnp.abs(matrix), axis=(0, 1))
  return jnp.where((largest > least)[None, None], matrix, jax.lax.stop_gradient(matrix))


def inverse_norm(matrix: Float[Array, "n m *tokens"]) -> Float[Array, "*tokens"]:
  """1/‖A‖ (Frobenius); 0 for a matrix without length, where neither it nor its gradient exists."""
  square = jnp.sum(matrix * matrix, axis=(0, 1))
  least = float(jnp.finfo(matrix.dtype).tiny) ** 0.6  # its power −1.5, of the derivative, is finite
  return jnp.where(square > least, jax.lax.rsqrt(jnp.maximum(square, least)), 0.0)


def minus_transpose(matrix: Float[Array, "n n *tokens"]) -> Float[Array, "n n *tokens"]:
  """A − Aᵀ, twice the skew part."""
  return matrix - transpose(matrix)


@custom_derivative
def centred_skew(matrix: Float[Array, "n n *tokens"]) -> Float[Array, "n n *tokens"]:
  """Π (A − Aᵀ) Π with Π = I − 11ᵀ/n: the skew part that neither sees nor produces the stream mean."""
  # With the row means r of a skew S, ΠSΠ = S − r1ᵀ + 1rᵀ.
  means = (total(matrix, 1)[:, 0] - total(matrix, 0)[0]) / matrix.shape[0]
  return minus_transpose(matrix) - (means[:, None] - means[None])


# The map is its own adjoint; differentiated by itself it would pad a slice for every term of the sums.
centred_skew.defvjp(lambda matrix: (centred_skew(matrix), None), lambda _, bar: (centred_skew(bar),))


def solve(
  a: Float[Array, "n n *tokens"], b: Float[Array, "n m *tokens"], floor: float = 0.0
) -> Float[Array, "n m *tokens"]:
  """a⁻¹ b by Gauss–Jordan elimination with a pivot row chosen per token.

  Pivots below `floor` (at least the smallest normal number) are replaced by it, so that a singular matrix gives large
  numbers and not NaN.

  >>> a = jnp.array([[0.0, 2.0], [1.0, 0.0]])[..., None]  # one token; the first pivot is zero
  >>> jp.linalg.solve(a, jnp.array([[2.0], [3.0]])[..., None])[..., 0].tolist()
  [[3.0], [1.0]]
  """
  n = a.shape[0]
  work = jnp.concatenate([a, b], axis=1)
  floor = max(floor, float(jnp.finfo(work.dtype).tiny))
  index = over_tokens(np.arange(n), work[:, 0].astype(jnp.int32), axes=1)

  def eliminate(k: Array | int, work: Array) -> Array:
    size = jnp.where(index < k, -1.0, jnp.abs(jax.lax.dynamic_index_in_dim(work, k, 1, keepdims=False)))
    best = jnp.argmax(size, axis=0)[None, None]
    chosen = jnp.take_along_axis(work, best, axis=0)
    work = jnp.where(index[:, None] == best, jax.lax.dynamic_index_in_dim(work, k, 0), work)
    pivot = jax.lax.dynamic_index_in_dim(chosen, k, 1)
    row = chosen / jnp.where(jnp.abs(pivot) < floor, floor, pivot)
    return jnp.where((index == k)[:, None], row, work - jax.lax.dynamic_index_in_dim(work, k, 1) * row)

  # A loop, not a written-out chain: a compiler that fuses such a chain recomputes earlier steps at every use.
  result: Array = jax.lax.fori_loop(0, n, eliminate, work)[:, n:]
  return result


def cofactors_4(m: Float[Array, "4 4 *tokens"]) -> Float[Array, "4 4 *tokens"]:
  """The cofactor matrix, det(m) m⁻ᵀ, written out from the twelve 2 x 2 minors of its upper and lower halves."""
  pairs = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
  upper = {p: m[0, p[0]] * m[1, p[1]] - m[0, p[1]] * m[1, p[0]] for p in pairs}
  lower = {p: m[2, p[0]] * m[3, p[1]] - m[2, p[1]] * m[3, p[0]] for p in pairs}
  entries = []
  for i in range(4):
    minors, partner = (lower, 1 - i) if i < 2 else (upper, 5 - i)
    for j in range(4):
      x, y, z = (k for k in range(4) if k != j)
      minor = m[partner, x] * minors[y, z] - m[partner, y] * minors[x, z] + m[partner, z] * minors[x, y]
      entries.append(minor if (i + j) % 2 == 0 else -minor)
  return jnp.stack(entries).reshape(m.shape)


def cofactors_3(m: Float[Array, "3 3 *tokens"]) -> Float[Array, "3 3 *tokens"]:
  """The cofactor matrix, det(m) m⁻ᵀ: its rows are the cross products of the other two rows of m."""
  turn = ((1, 2), (2, 0), (0, 1))
  entries = [m[i, j] * m[k, p] - m[i, p] * m[k, j] for i, k in turn for j, p in turn]
  return jnp.stack(entries).reshape(m.shape)


def embed(
  matrix: Float[Array, "n n *tokens"], size: int, corner: Float[Array, "*#tokens"]
) -> Float[Array, "m m *tokens"]:
  """diag(matrix, corner, corner, …) of `size` rows at least."""
  n = matrix.shape[0]
  if n >= size:
    return matrix
  padded = jnp.pad(matrix, ((0, size - n), (0, size - n)) + ((0, 0),) * (matrix.ndim - 2))
  corner = jnp.broadcast_to(corner, matrix.shape[2:])[None, None]
  return padded + over_tokens(np.diag(np.arange(size) >= n), matrix) * corner


def inverse_positive(matrix: Float[Array, "n n *tokens"]) -> Float[Array, "n n *tokens"]:
  """The inverse of a matrix whose symmetric part is positive definite, by Gauss–Jordan steps in place without pivots.

  Every leading block and every Schur complement of such a matrix is of the same kind.
  """
  for k in range(matrix.shape[0]):
    row = matrix[k].at[k].set(1.0) / matrix[k, k][None]
    # Written by updates: a compiler that fused one step into the next would compute it again for every entry.
    rest = matrix.at[:, k].set(0.0) - matrix[:, k][:, None] * row[None]
    matrix = jax.lax.optimization_barrier(rest.at[k].set(row))
  return matrix


def laplacian_solve(weights: Float[Array, "n n *tokens"], b: Float[Array, "n *tokens"]) -> Float[Array, "n *tokens"]:
  """Solves L v = b for a graph Laplacian, with the gauge v[n−1] = 0.

  L = diag(W1) − W for nonnegative symmetric edge weights W; its diagonal is never read. Eliminating a vertex joins its
  neighbours by new nonnegative edges and every pivot is a sum of edges (Grassmann, Taksar and Heyman 1985), so nothing
  is subtracted and small weights keep their relative precision: that is the regime of a mixer near a permutation.
  b must sum to zero. Vertices without edges get v = 0.
  """
  n = weights.shape[0]
  if n > 8:
    return _laplacian_loop(weights, b)
  floor = jnp.finfo(weights.dtype).tiny
  rows, pivots, rest = [], [], b
  for _ in range(n - 1):
    row = weights[0, 1:]
    pivot = jnp.maximum(total(row, 0), floor)
    share = row / pivot
    rows.append(share)
    pivots.append(rest[0] / pivot[0])
    weights = weights[1:, 1:] + row[:, None] * share[None]
    rest = rest[1:] + share * rest[:1]
  v = [jnp.zeros_like(b[0])]
  for share, start in zip(reversed(rows), reversed(pivots), strict=True):
    v.insert(0, functools.reduce(operator.add, (share[j] * v[j] for j in range(len(v))), start))
  return jnp.stack(v)


def _laplacian_loop(weights: Array, b: Array) -> Array:
  """The same as one loop over vertices, which compiles at any n."""
  n, floor = weights.shape[0], jnp.finfo(weights.dtype).tiny
  index = over_tokens(np.arange(n), b.astype(jnp.int32), axes=1)

  def eliminate(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    weights, rest = carry
    row = jnp.where(index > k, weights[k], 0.0)
    pivot = jnp.maximum(jnp.sum(row, axis=0), floor)
    share = row / pivot[None]
    return (weights + row[:, None] * share[None], rest + share * rest[k][None]), (share, rest[k] / pivot)

  def substitute(v: Array, saved: tuple[Array, Array, Array]) -> tuple[Array, None]:
    k, share, start = saved
    return jnp.where(index == k, (start + jnp.sum(share * v, axis=0))[None], v), None

  steps = jnp.arange(n - 1)
  _, (shares, starts) = jax.lax.scan(eliminate, (weights, b), steps)
  return jax.lax.scan(substitute, jnp.zeros_like(b), (steps, shares, starts), reverse=True)[0]


def orthogonality_error(matrix: Float[Array, "n n *tokens"]) -> Float[Array, "*tokens"]:
  """max |H Hᵀ − I|."""
  return jnp.max(jnp.abs(matmul(matrix, transpose(matrix)) - identity_like(matrix)), axis=(0, 1))


def row_sum_error(matrix: Float[Array, "n n *tokens"]) -> Float[Array, "*tokens"]:
  """max |H 1 − 1|."""
  return jnp.max(jnp.abs(jnp.sum(matrix, axis=1) - 1), axis=0)


def column_sum_error(matrix: Float[Array, "n n *tokens"]) -> Float[Array, "*tokens"]:
  """max |Hᵀ 1 − 1|."""
  return row_sum_error(transpose(matrix))


def negativity(matrix: Float[Array, "n n *tokens"]) -> Float[Array, "*tokens"]:
  """max(0, −min H)."""
  return jnp.maximum(-jnp.min(matrix, axis=(0, 1)), 0)


def expansion(matrix: Float[Array, "n n *tokens"]) -> Float[Array, "*tokens"]:
  """max(0, ‖H‖₂ − 1): how far H may lengthen a vector. Uses a batched SVD: for diagnostics and tests, not for a
  step."""
  largest = jnp.max(jnp.linalg.svd(jnp.moveaxis(matrix, (0, 1), (-2, -1)), compute_uv=False), axis=-1)
  return jnp.maximum(largest - 1, 0)


def haar(key: Array, n: int) -> Float[Array, "{n} {n}"]:
  """A uniformly distributed orthogonal matrix (both determinants), by QR of a normal matrix with positive diagonal.

  >>> q = jp.linalg.haar(jax.random.key(0), 4)
  >>> bool(jnp.allclose(q @ q.T, jnp.eye(4), atol=1e-6))
  True
  """
  q, r = jnp.linalg.qr(jax.random.normal(key, (n, n)))
  return q * jnp.sign(jnp.diagonal(r))[None]
