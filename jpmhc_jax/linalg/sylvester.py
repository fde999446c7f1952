"""The equation behind the gradient of a polar factor: PY + YP = K for symmetric positive P and skew K and Y."""

import functools
import math
import operator

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from jpmhc_jax.linalg import linear

__all__ = ["skew_sylvester"]


def skew_sylvester(p: Float[Array, "n n *tokens"], right: Float[Array, "n n *tokens"]) -> Float[Array, "n n *tokens"]:
  """The skew Y with PY + YP = K for symmetric positive P and skew K: closed form for n <= 4, iteration beyond.

  Always Σ|Y| <= Σ|K| / (16 ε max(max |P|, ε)), ε the rounding of the dtype: a longer Y is rounding and becomes 0. So it
  is where two eigenvalues of P vanish and the equation has no one solution.

  >>> p, k = jnp.diag(jnp.array([1.0, 3.0])), jnp.array([[0.0, 8.0], [-8.0, 0.0]])
  >>> jp.linalg.skew_sylvester(p, k).round(3).tolist()
  [[0.0, 2.0], [-2.0, 0.0]]
  """
  y, eps = jax.lax.optimization_barrier(_solution(p, right)), float(jnp.finfo(p.dtype).eps)
  least = 16 * eps * jnp.maximum(jnp.max(jnp.abs(p), axis=(0, 1)), eps)
  bounded = _length(y) * least <= _length(right)  # sums, because XLA's maximum on the CPU may pass over NaN
  return jnp.where(bounded[None, None], y, 0.0)


def _length(matrix: Array) -> Array:
  return jnp.sum(jnp.abs(matrix), axis=(0, 1))


def _solution(p: Array, right: Array) -> Array:
  n = p.shape[0]
  if n <= 3:
    zero = jnp.zeros((), p.dtype)
    return _skew_sylvester_3(linear.embed(p, 3, _trace(p) / n), linear.embed(right, 3, zero))[:n, :n]
  return _skew_sylvester_4(p, right) if n == 4 else _by_newton(p, right)


def _by_newton(p: Array, k: Array) -> Array:
  # For any odd f, f(P) and the derivative of f at P along K share eigenvectors with P and K: a component (i, j) of K is
  # multiplied by (f(λ_i) + f(λ_j))/(λ_i + λ_j). Over steps f that take P to s·I these factors telescope to
  # 2s/(λ_i + λ_j), which is 2s times the solution. Here f(x) = αx + β/x with factors α + β/(λ_i λ_j), as in `polar`
  # (Roberts 1980 on the sign function).
  n, eps = p.shape[0], float(jnp.finfo(p.dtype).eps)
  # The steps multiply K by 1/ε² at most in between: where P vanishes, the root leaves them room for it.
  size = 1 / jnp.maximum(_trace(p), float(jnp.finfo(p.dtype).tiny) ** 0.5)[None, None]
  # Rounding may leave a vanishing eigenvalue negative, and then f would drive it to −s.
  p, k = p * size + eps * linear.identity_like(p), k * size

  def step(_: Array | int, state: tuple[Array, Array]) -> tuple[Array, Array]:
    p, k = state
    inverse = linear.inverse_positive(p)
    a, b = linear.inverse_norm(p)[None, None], linear.inverse_norm(inverse)[None, None]
    return a * p + b * inverse, a * k + b * linear.unfused_matmul(linear.unfused_matmul(inverse, k), inverse)

  _, k = jax.lax.fori_loop(0, 6 + (p.dtype == jnp.float64), step, (p, k))
  return 0.25 * math.sqrt(n) * k  # the limit has ‖P‖ = 2: s = 2/√n


def _trace(p: Array) -> Array:
  return functools.reduce(operator.add, (p[i, i] for i in range(p.shape[0])))


def _dot(x: list[Array], y: list[Array]) -> Array:
  return x[0] * y[0] + x[1] * y[1] + x[2] * y[2]


def _skew_sylvester_3(p: Array, k: Array) -> Array:
  # With axes y, k of Y and K the equation reads (tr(P) I − P) y = k: positive, solved by its cofactors.
  size = 1 / jnp.maximum(_trace(p), jnp.finfo(p.dtype).tiny)
  system = linear.identity_like(p) - p * size[None, None]
  axis = jnp.stack([k[2, 1], k[0, 2], k[1, 0]]) * size[None]
  cofactors = linear.cofactors_3(system)
  determinant = linear.total(system[0] * cofactors[0], 0)
  x, y, z = linear.matvec(cofactors, axis) / jnp.maximum(determinant, jnp.finfo(p.dtype).eps ** 2)
  zero = jnp.zeros_like(x)
  return jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(k.shape)


def _skew_sylvester_4(p: Array, k: Array) -> Array:
  # so(4) = so(3) ⊕ so(3): Y has self-dual coordinates u and anti-self-dual ones v, Y₀₁, Y₂₃ = u₀ ± v₀ and so on. The
  # trace of P acts as τ = tr P / 2 on both, its traceless part only between them: τu + Nv = a, Nᵀu + τv = b. So
  # (I − MᵀM) v = (b − Mᵀa)/τ with M = N/τ, ‖M‖ < 1, and u = a/τ − Mv.
  tiny, eps = jnp.finfo(p.dtype).tiny, jnp.finfo(p.dtype).eps
  tau = 1 / jnp.maximum(0.5 * (p[0, 0] + p[1, 1] + p[2, 2] + p[3, 3]), tiny)
  half = 0.5 * tau
  a = [half * (k[0, 1] + k[2, 3]), half * (k[0, 2] - k[1, 3]), half * (k[0, 3] + k[1, 2])]
  b = [half * (k[0, 1] - k[2, 3]), half * (k[0, 2] + k[1, 3]), half * (k[0, 3] - k[1, 2])]
  first, second = 0.5 * (p[0, 0] - p[3, 3]), 0.5 * (p[1, 1] - p[2, 2])
  m = [
    [tau * (first + second), tau * (p[1, 2] - p[0, 3]), tau * (p[0, 2] + p[1, 3])],
    [tau * (p[0, 3] + p[1, 2]), tau * (first - second), tau * (p[2, 3] - p[0, 1])],
    [tau * (p[1, 3] - p[0, 2]), tau * (p[0, 1] + p[2, 3]), tau * (0.5 * (p[0, 0] + p[3, 3] - p[1, 1] - p[2, 2]))],
  ]
  columns = [[row[j] for row in m] for j in range(3)]
  s = [[(i == j) - _dot(columns[i], columns[j]) for j in range(3)] for i in range(3)]
  rest = [b[j] - _dot(columns[j], a) for j in range(3)]
  # The symmetric 3x3 system by its cofactors.
  turn = ((1, 2), (2, 0), (0, 1))
  c = [[s[i][j] * s[k][m] - s[i][m] * s[k][j] for j, m in turn] for i, k in turn]
  determinant = jnp.maximum(_dot(s[0], c[0]), eps * eps)
  v = [_dot(c[j], rest) / determinant for j in range(3)]
  u = [a[i] - _dot(m[i], v) for i in range(3)]
  upper = {
    (0, 1): u[0] + v[0], (2, 3): u[0] - v[0], (0, 2): u[1] + v[1],
    (1, 3): v[1] - u[1], (0, 3): u[2] + v[2], (1, 2): u[2] - v[2],
  }  # fmt: skip
  zero = jnp.zeros_like(v[0])
  entries = [upper.get((i, j), zero) if i <= j else -upper[j, i] for i in range(4) for j in range(4)]
  return jnp.stack(entries).reshape(k.shape)
