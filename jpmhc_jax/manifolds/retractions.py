"""Retractions and rotations of matrices with orthonormal columns, X in R^{n x p}, X^T X = I.

Parameters are few, so the layout is the usual one, `(*batch, n, p)`, and small linear solves are fine here (per-token
matrices are another matter: see `linear`). Every product runs at full precision: TF32 or bfloat16 would leave the
manifold at once.

A step longer than LONGEST (Frobenius norm) is shortened to it. There Cayley's turns are within 2.3° of the half turn
that they tend to, and rounding, which grows like the square of the length, is still small enough to be removed.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = [
  "LONGEST", "carry_along", "cayley", "cayley_iterative", "gram", "identity_like", "matmul", "normalised", "polar",
  "polar_near", "qr", "rotate", "settled", "shortened", "skew_part", "symmetric", "tidied", "transpose", "with_care",
]  # fmt: skip

LONGEST = 100.0

matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def transpose(x: Float[Array, "*batch n p"]) -> Float[Array, "*batch p n"]:
  """Swaps the last two axes."""
  return jnp.swapaxes(x, -1, -2)


def gram(x: Float[Array, "*batch n p"], y: Float[Array, "*batch n q"]) -> Float[Array, "*batch p q"]:
  """x^T y."""
  return matmul(transpose(x), y)


def symmetric(x: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
  """(x + x^T) / 2."""
  return 0.5 * (x + transpose(x))


def skew_part(x: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
  """(x - x^T) / 2."""
  return 0.5 * (x - transpose(x))


def identity_like(x: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
  """One identity for each matrix of a batch."""
  return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)


def normalised(x: Float[Array, "*batch n p"], axes: tuple[int, ...], zero: float = 0.0) -> Float[Array, "*batch n p"]:
  """x over its norm along `axes`, for finite x of any size; entries `zero`, without a gradient, where x is zero."""
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axes, keepdims=True))
  is_zero = largest == 0
  scaled = jnp.where(is_zero, 1.0, x) / jnp.where(is_zero, 1.0, largest)
  unit = scaled * jax.lax.rsqrt(jnp.sum(scaled * scaled, axis=axes, keepdims=True))
  return jnp.where(is_zero, zero, unit)


def shortened(
  step: Float[Array, "*batch n p"], longest: float = LONGEST, axes: tuple[int, ...] = (-2, -1)
) -> Float[Array, "*batch n p"]:
  """The step, or where its norm along `axes` is above `longest` the part of it of that norm; any finite step."""
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(step), axis=axes, keepdims=True))
  size = jnp.maximum(largest, longest)
  share = longest / size
  square = jnp.sum(jnp.square(step / size), axis=axes, keepdims=True)
  # share / sqrt(square) = longest / norm, and no square leaves the range of the dtype.
  factor = share * jax.lax.rsqrt(jnp.maximum(square, share * share))
  return step * jnp.where(square > share * share, factor, 1.0)


def tidied(x: Float[Array, "*batch n p"]) -> Float[Array, "*batch n p"]:
  """One Newton–Schulz step, X − X (XᵀX − I)/2: |XᵀX − I| below 1 is squared (times 3/4)."""
  product = gram(x, x)
  return x - 0.5 * matmul(x, product - identity_like(product))


def settled(x: Float[Array, "*batch n p"]) -> Float[Array, "*batch n p"]:
  """The polar factor to rounding, by a product a step: Newton–Schulz from |XᵀX − I|_F below 1/2, else by `polar`."""

  def excess(x: Array) -> Array:
    product = gram(x, x)
    return jnp.sqrt(jnp.max(jnp.sum((product - identity_like(product)) ** 2, axis=(-2, -1))))

  rounding = 4 * float(jnp.finfo(x.dtype).eps) * (x.shape[-1] * x.shape[-2]) ** 0.5

  def going(state: tuple[Array, Array, Array]) -> Array:
    result: Array = (state[1] > rounding) & (state[2] < 6)
    return result

  def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    new = tidied(state[0])
    return new, excess(new), state[2] + 1

  first = excess(x)
  near = lambda x: jax.lax.while_loop(going, step, (x, first, jnp.zeros((), jnp.int32)))[0]  # noqa: E731
  result: Array = jax.lax.cond(first < 0.5, near, polar, x)
  return result


def with_care(
  step: Float[Array, "*batch n p"],
  retract: Callable[[Array], Array],
  restore: Callable[[Array], Array] = tidied,
) -> Float[Array, "*batch n p"]:
  """retract(step), and restore(retract(step shortened to LONGEST)) for the steps that are longer than 1."""
  short = jnp.sum(step * step, axis=(-2, -1), keepdims=True) <= 1.0  # false for what is no number
  result: Array = jax.lax.cond(
    jnp.all(short),
    retract,
    lambda step: jnp.where(short, retract(step), restore(retract(shortened(step)))),
    step,
  )
  return result


def rotate(
  left: Float[Array, "*batch n p"], right: Float[Array, "*batch n p"], x: Float[Array, "*batch n q"]
) -> Float[Array, "*batch n q"]:
  """Applies the rotation (I - W/2)^-1 (I + W/2), W = left right^T - right left^T, to the columns of x.

  Up to 2p < n the Woodbury form solves a 2p x 2p system: with U = [left, right] and V = [right, -left], W = U V^T and
  (I - W/2)^-1 (I + W/2) x = x + U (I - V^T U / 2)^-1 V^T x. A wider U has no advantage over W itself.
  """
  n, p = left.shape[-2:]
  if 2 * p < n:
    wide = jnp.concatenate([left, right], axis=-1)
    dual = jnp.concatenate([right, -left], axis=-1)
    inner = gram(dual, wide)
    return x + matmul(wide, jnp.linalg.solve(identity_like(inner) - 0.5 * inner, gram(dual, x)))
  half = skew_part(matmul(left, transpose(right)))  # W / 2
  eye = identity_like(half)
  result: Array = jnp.linalg.solve(eye - half, x + matmul(half, x))
  return result


def _generator(point: Float[Array, "*batch n p"], step: Float[Array, "*batch n p"]) -> Float[Array, "*batch n p"]:
  """P Z with P = I - X X^T / 2, so that W = (P Z) X^T - X (P Z)^T is skew and W X = Z for tangent Z."""
  return step - 0.5 * matmul(point, gram(point, step))


def cayley(point: Float[Array, "*batch n p"], step: Float[Array, "*batch n p"]) -> Float[Array, "*batch n p"]:
  """Y = (I - W/2)^-1 (I + W/2) X with W X = Z: stays orthonormal to rounding; order 2 for the canonical metric.

  Steps longer than LONGEST are shortened to it. Source: Wen & Yin 2013, "A feasible method for optimization with
  orthogonality constraints".
  """
  return with_care(step, lambda step: rotate(_generator(point, step), point, point))


def cayley_iterative(
  point: Float[Array, "*batch n p"], step: Float[Array, "*batch n p"], sweeps: int
) -> Float[Array, "*batch n p"]:
  """Y_0 = X + Z, then `sweeps` times Y <- X + W (X + Y) / 2: the fixed point of which is `cayley`.

  Truncated, it leaves the manifold by O(|Z|^(sweeps + 2)). Source: Li et al. 2020 (arXiv 2002.01113), s = 2 there.
  """
  factor = _generator(point, step)

  def sweep(_: Any, y: Array) -> Array:
    middle = 0.5 * (point + y)
    return point + matmul(factor, gram(point, middle)) - matmul(point, gram(factor, middle))

  result: Array = jax.lax.fori_loop(0, sweeps, sweep, point + step)
  return result


def qr(matrix: Float[Array, "*batch n p"]) -> Float[Array, "*batch n p"]:
  """The Q factor whose R has a positive diagonal: continuous, and the identity on orthonormal columns.

  Near those it is M + M (R^-1 - I), which rounds no more than it adds. Householder's Q rounds all of M, much alike in
  every step of a descent: its span turned by a third of a bit a step in float32, more than a late step makes good. It
  is the result where the other is not orthonormal to rounding, far from orthonormal columns.
  """
  q, r = jnp.linalg.qr(matrix)
  signs = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1, 1).astype(q.dtype)
  eye = identity_like(r)
  near = matrix + matmul(matrix, jax.scipy.linalg.solve_triangular(r * signs[..., None], eye) - eye)
  error = jnp.max(jnp.abs(gram(near, near) - eye), axis=(-2, -1), keepdims=True)
  far = q * jnp.broadcast_to(signs[..., None, :], q.shape)
  return jnp.where(error <= 8 * jnp.finfo(q.dtype).eps, near, far)


def polar(matrix: Float[Array, "*batch n p"]) -> Float[Array, "*batch n p"]:
  """The nearest matrix with orthonormal columns, U V^T of the singular value decomposition.

  At rank below p there are several nearest ones, of which this is one. The derivative is that of the polar factor; in
  directions that are singular to rounding, where it has none, it is 0.
  """
  return _polar(matrix, False)


def polar_near(matrix: Float[Array, "*batch n p"]) -> Float[Array, "*batch n p"]:
  """The same as M (M^T M)^(-1/2) through the p x p Gram matrix, for singular values that are not small.

  X + Z has them >= 1. Rounding leaves an error of their square.
  """
  return _polar(matrix, True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _polar(matrix: Array, near: bool) -> Array:
  if not near:
    u, _, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return matmul(u, vt)
  values, vectors = jnp.linalg.eigh(gram(matrix, matrix))
  scaled = vectors * jnp.broadcast_to(jax.lax.rsqrt(values)[..., None, :], vectors.shape)
  return matmul(matrix, matmul(scaled, transpose(vectors)))


@_polar.defjvp
def _polar_jvp(near: bool, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  # A = RP: dR = RΩ + (I − RRᵀ) dA P⁻¹ with PΩ + ΩP = RᵀdA − dAᵀR. Both equations are solved in the eigenbasis of P, and
  # are self-adjoint. They are differentiated as equations: P may have equal eigenvalues, whose vectors have no
  # derivative.
  (matrix,), (tangent,) = primals, tangents
  factor = _polar(matrix, near)
  stretch = symmetric(gram(factor, matrix))
  values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(stretch))
  eps = float(jnp.finfo(matrix.dtype).eps)
  least = 16 * eps * jnp.maximum(jnp.max(jnp.abs(values), axis=-1), eps)[..., None, None]

  def inverse(sums: Array) -> Array:
    return jnp.where(sums > least, 1 / jnp.where(sums > least, sums, 1.0), 0.0)

  def turn(_: Any, k: Array) -> Array:
    inside = matmul(gram(vectors, k), vectors) * inverse(values[..., :, None] + values[..., None, :])
    return matmul(vectors, matmul(inside, transpose(vectors)))

  def divide(_: Any, x: Array) -> Array:
    return matmul(matmul(x, vectors) * inverse(values[..., None, :]), transpose(vectors))

  def both_sides(y: Array) -> Array:
    return matmul(stretch, y) + matmul(y, stretch)

  along = gram(factor, tangent)
  omega = jax.lax.custom_linear_solve(both_sides, along - transpose(along), turn, symmetric=True)
  across = tangent - matmul(factor, along)
  across = jax.lax.custom_linear_solve(lambda x: matmul(x, stretch), across, divide, symmetric=True)
  return factor, matmul(factor, omega) + across


def carry_along(
  point: Float[Array, "*batch n p"], new_point: Float[Array, "*batch n p"], vector: Float[Array, "*batch n p"]
) -> Float[Array, "*batch n p"]:
  """Turns `vector` by a rotation Q with Q X = Y, the Cayley transform of the least generator that carries X to Y.

  Q X = Y asks W (X + Y) = 2 (Y - X) of the skew W. With S = X + Y, D = 2 (Y - X), N = (S^T S)^-1 the system is
  consistent because S^T D = 2 (X^T Y - Y^T X) is skew, and its solution of least norm is
  W = E F^T - F E^T,  F = S N,  E = D - F (S^T D) / 2. Being orthogonal, Q keeps lengths and maps tangent vectors
  to tangent vectors (horizontal ones to horizontal ones). Where S^T S is near singular (an entry of F is above 16: Y
  nearly reverses a direction of X, and many rotations carry it there) Q = I.
  """
  total, difference = point + new_point, 2.0 * (new_point - point)
  spread = gram(total, total)
  room = 4 * float(jnp.finfo(spread.dtype).eps)  # keeps the solution finite; far below the 1/16² that is asked for
  f = transpose(jnp.linalg.solve(spread + room * identity_like(spread), transpose(total)))
  near_antipode = ~(jnp.max(jnp.abs(f), axis=(-2, -1), keepdims=True) <= 16)
  f = jnp.where(near_antipode, 0.0, f)
  e = difference - 0.5 * matmul(f, gram(total, difference))
  return rotate(e, f, vector)
