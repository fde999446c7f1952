"""Orthogonal mixers by the polar factor: the orthogonal matrix nearest to the logits."""

import dataclasses
import functools
import math

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from jpmhc_jax.core.derivatives import custom_derivative
from jpmhc_jax.core.errors import check_choice, ConfigError
from jpmhc_jax.linalg import linear
from jpmhc_jax.linalg.blocks import by_blocks
from jpmhc_jax.linalg.sylvester import skew_sylvester
from jpmhc_jax.mixers.base import Mixer, Traits

__all__ = ["Coefficients", "Polar", "check_polar", "odd_iteration", "polar"]

# Odd quintics a·x + b·x³ + c·x⁵ that, composed, map [1e-3, 1] to 1 fastest (Polar Express, Amsel et al. 2025,
# 2505.16932). The published values carry a safety factor 1.01 on x in all but the last step.
_EXPRESS = (
  (8.28721201814563, -23.595886519098837, 17.300387312530933),
  (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
  (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
  (3.3184196573706015, -2.488488024314874, 0.51004894012372),
  (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
  (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
  (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
  (1.875, -1.25, 0.375),
)
_CUBIC = (1.5, -0.5, 0.0)
_NEWTON_STEPS = 6  # orthogonal to rounding for every spectrum, one more in float64: see the tests

Coefficients = tuple[float, float, float]


def polar(matrix: Float[Array, "n n *tokens"], method: str, steps: int, adjoint: str) -> Float[Array, "n n *tokens"]:
  """R of A = R P (R orthogonal, P symmetric positive); see `Polar` for the arguments."""
  forward = functools.partial(_factor, method=method, steps=steps)
  if adjoint == "unrolled":
    # The gradient grows like 1/length: that of the steps ends where `skew_sylvester` ends.
    return forward(linear.constant_below(matrix, 16 * float(jnp.finfo(matrix.dtype).eps) ** 2))
  result: Array = _polar_implicit(matrix, forward)
  return result


def _factor(matrix: Array, method: str, steps: int) -> Array:
  x = linear.scaled(matrix, (0, 1))
  if method == "newton":
    return by_blocks(_newton if x.shape[0] <= 4 else _halley, x)
  schedule = (*_EXPRESS, _CUBIC) if method == "express" else (_CUBIC,) * steps
  return odd_iteration(x / _gamma(x), schedule)


def _newton(matrix: Array) -> Array:
  # X ← X/‖X‖ + X⁻ᵀ/‖X⁻ᵀ‖ (Frobenius norms; Higham 1986) up to scale, and the scale is right at the limit. With the
  # cofactors C = det(X) X⁻ᵀ nothing is divided by the determinant, so a matrix of rank n − 1 has its limit too.
  n = matrix.shape[0]
  start = linear.embed(matrix, 3, jnp.ones((), matrix.dtype))

  def step(_: Array | int, x: Array) -> Array:
    dual, sign = _dual(x)
    # Both factors stacked: they are computed once, not once for every entry.
    factors = jnp.stack([linear.inverse_norm(x), sign * linear.inverse_norm(dual)])
    return x * factors[:1, None] + dual * factors[1:, None]

  # The limit has ‖X‖ = 2, an orthogonal matrix √n.
  steps = _NEWTON_STEPS + (matrix.dtype == jnp.float64)
  result: Array = 0.5 * math.sqrt(max(n, 3)) * jax.lax.fori_loop(0, steps, step, start)[:n, :n]
  return result


def _halley(matrix: Array) -> Array:
  # Dynamically weighted Halley steps (Nakatsukasa, Bai and Gygi 2010), X ← X(aI + bXᵀX)(I + cXᵀX)⁻¹: the inverse is
  # that of a positive matrix, so it needs no pivots. What is singular to rounding is done again by Newton's steps.
  def step(x: Array, weights: Array) -> tuple[Array, None]:
    a, b, c = weights
    gram = linear.unfused_matmul(linear.transpose(x), x)
    inverse = linear.inverse_positive(linear.identity_like(x) + c * gram)
    return b / c * x + (a - b / c) * linear.unfused_matmul(x, inverse), None

  eps = float(jnp.finfo(matrix.dtype).eps)
  weights = jnp.asarray(_halley_weights(eps), matrix.dtype)
  factor, _ = jax.lax.scan(step, matrix * linear.inverse_norm(matrix)[None, None], weights)
  error = linear.unfused_matmul(factor, linear.transpose(factor)) - linear.identity_like(factor)
  lost = ~(jnp.sum(error * error, axis=(0, 1)) <= eps)  # NaN is lost too
  result: Array = jax.lax.cond(
    jnp.any(lost), lambda x: jnp.where(lost[None, None], _newton(x), factor), lambda _: factor, matrix
  )
  return result


def _halley_weights(eps: float) -> list[Coefficients]:
  """(a, b, c) of the steps that take [eps, 1] to 1 fastest, with c below eps^−½ so that I + cXᵀX keeps digits."""
  low, weights = eps, []
  while 1 - low > eps:
    start = min(max(low, eps**0.25), 1 - eps)
    d = (4 * (1 - start**2) / start**4) ** (1 / 3)
    a = math.sqrt(1 + d) + 0.5 * math.sqrt(8 - 4 * d + 8 * (2 - start**2) / (start**2 * math.sqrt(1 + d)))
    b = (a - 1) ** 2 / 4
    c = a + b - 1
    weights.append((a, b, c))
    low *= (a + b * low**2) / (1 + c * low**2)
  return weights


def _dual(x: Array) -> tuple[Array, Array]:
  """A multiple of X⁻ᵀ and the sign that makes it a positive one."""
  if x.shape[0] > 4:
    identity = jnp.broadcast_to(linear.identity_like(x), x.shape)
    inverse = linear.solve(x, identity, float(jnp.finfo(x.dtype).eps))
    return linear.transpose(inverse / jnp.max(jnp.abs(inverse), axis=(0, 1), keepdims=True)), jnp.ones((), x.dtype)
  cofactors = linear.cofactors_3(x) if x.shape[0] == 3 else linear.cofactors_4(x)
  determinant = linear.total(x[0] * cofactors[0], 0)[0]
  return cofactors, jnp.where(determinant < 0, -1.0, 1.0).astype(x.dtype)


def _gamma(x: Array) -> Array:
  # σ_max <= ‖(XᵀX)²‖_F^(1/4) <= n^(1/8) σ_max: the source's γ = 1.2 σ_max without knowing σ_max (n^(1/8) = 1.19 at n =
  # 4).
  gram = linear.matmul(linear.transpose(x), x)
  fourth = linear.matmul(gram, gram)
  total = jnp.sum(fourth * fourth, axis=(0, 1), keepdims=True) + jnp.finfo(x.dtype).tiny
  return jnp.sqrt(jnp.sqrt(jnp.sqrt(total)))


@functools.partial(custom_derivative, nondiff_argnums=(1,))
def odd_iteration(
  matrix: Float[Array, "n n *tokens"], schedule: tuple[Coefficients, ...]
) -> Float[Array, "n n *tokens"]:
  """X ← aX + bX(XᵀX) + cX(XᵀX)², once for each (a, b, c): applies odd polynomials to the singular values.

  The gradient is that of the steps as computed; saved for it: X before every step.
  """
  return by_blocks(lambda x: _odd_steps(x, schedule)[0], matrix)


def _odd_steps(matrix: Array, schedule: tuple[Coefficients, ...]) -> tuple[Array, Array]:
  """The last X, and X before every step."""

  def step(x: Array, coefficients: Array) -> tuple[Array, Array]:
    a, b, c = coefficients
    gram = linear.unfused_matmul(linear.transpose(x), x)
    inner = b * gram + c * linear.unfused_matmul(gram, gram) if any(c for _, _, c in schedule) else b * gram
    return a * x + linear.unfused_matmul(x, inner), x

  return jax.lax.scan(step, matrix, jnp.asarray(schedule, matrix.dtype))


def _odd_forward(matrix, schedule):  # type: ignore[no-untyped-def]
  return by_blocks(lambda x: _odd_steps(x, schedule), matrix)


def _odd_backward(schedule, history, cotangent):  # type: ignore[no-untyped-def]
  # Y = aX + XM, M = bG + cG², G = XᵀX. With K = XᵀȲ + ȲᵀX: X̄ = aȲ + ȲM + X(bK + c(KG + GK)), and GK = (KG)ᵀ.
  quintic = any(c for _, _, c in schedule)

  def step(bar: Array, saved: tuple[Array, Array]) -> tuple[Array, None]:
    x, (a, b, c) = saved
    gram = linear.unfused_matmul(linear.transpose(x), x)
    pulled = linear.unfused_matmul(linear.transpose(x), bar)
    pulled = pulled + linear.transpose(pulled)
    inner, outer = b * gram, b * pulled
    if quintic:
      both = linear.unfused_matmul(pulled, gram)
      inner, outer = inner + c * linear.unfused_matmul(gram, gram), outer + c * (both + linear.transpose(both))
    return a * bar + linear.unfused_matmul(bar, inner) + linear.unfused_matmul(x, outer), None

  def backward(bar: Array, history: Array) -> Array:
    coefficients = jnp.asarray(schedule, bar.dtype)
    return jax.lax.scan(step, bar, (history, coefficients), reverse=True)[0]

  return (by_blocks(backward, cotangent, history),)


odd_iteration.defvjp(_odd_forward, _odd_backward)


@functools.partial(custom_derivative, nondiff_argnums=(1,))
def _polar_implicit(matrix, forward):  # type: ignore[no-untyped-def]
  return forward(matrix)


def _polar_forward(matrix, forward):  # type: ignore[no-untyped-def]
  factor = _polar_implicit(matrix, forward)  # the rule itself, so that a second derivative uses it again
  return factor, (matrix, factor)


def _polar_backward(forward, saved, cotangent):  # type: ignore[no-untyped-def]
  # A = RP, dR = RΩ with Ω skew: RᵀdA − dAᵀR = ΩP + PΩ. The operator is self-adjoint, so Ā = R Y with Y skew and
  # PY + YP = RᵀḠ − ḠᵀR: a Sylvester equation in n(n−1)/2 unknowns, positive definite.
  def pull(matrix: Array, factor: Array, bar: Array) -> Array:
    r_t = linear.transpose(factor)
    stretch = linear.unfused_matmul(r_t, matrix)
    right = linear.minus_transpose(linear.unfused_matmul(r_t, bar))
    y = skew_sylvester(0.5 * (stretch + linear.transpose(stretch)), right)
    return linear.unfused_matmul(factor, y)

  return (by_blocks(pull, *saved, cotangent),)


_polar_implicit.defvjp(_polar_forward, _polar_backward)


@dataclasses.dataclass(frozen=True)
class Polar(Mixer):
  """O(n) by the polar factor of the logits, both determinants reached.

  project: logits A (n, n, *tokens) -> R (n, n, *tokens), A = R P. method "newton": X ← X/‖X‖ + X⁻ᵀ/‖X⁻ᵀ‖ six times
  (n > 4: seven weighted Halley steps), on the set to rounding for any logits of rank n or n − 1; "express": eight
  quintic steps and a cubic one, products only, on the set to rounding while σ_min/σ_max of the logits is above 1e-3;
  "newton_schulz": X₀ = A/γ, `steps` times X ← 1.5X − 0.5XXᵀX, as IsoHC, on the set only for well-conditioned logits.
  `distance` reports how far.
  adjoint: "implicit" (Sylvester equation, saves A and R) or "unrolled" (the gradient of the steps). The derivative in a
  plane of two singular directions is 1/(σ_i + σ_j), without a limit at rank below n − 1. The implicit gradient is
  at most about ‖R̄‖ / (16 ε max(‖A‖, ε)), ε the rounding of the dtype (float32: 5e5 ‖R̄‖ at ‖A‖ = 1); a token that
  exceeds it is singular to rounding and gets the subgradient 0, as zero logits do with either adjoint.

  Raises ConfigError for an unknown method or adjoint, and steps below 1.

  >>> bool(jnp.allclose(jp.Polar().project(jnp.diag(jnp.array([3.0, -2.0])), 2), jnp.diag(jnp.array([1.0, -1.0]))))
  True
  """

  method: str = "newton"
  steps: int = 5  # of newton_schulz
  adjoint: str = "implicit"

  def __post_init__(self) -> None:
    check_polar(self.method, self.steps, self.adjoint)

  @property
  def traits(self) -> Traits:
    """Orthogonal of either determinant, as far as the steps come."""
    return Traits(
      "O(n)", orthogonal=True, contractive=True, exact=False, determinant="±1", eigenvalues="unit circle", norm="kept"
    )

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """(n, n)."""
    return (n, n)

  def dimension(self, n: int) -> int:
    """That of O(n), n (n − 1)/2."""
    return n * (n - 1) // 2

  def identity_logits(self, n: int, strength: float) -> Float[Array, "{n} {n}"]:
    """I."""
    return jnp.eye(n)

  def random(self, key: Array, n: int) -> Float[Array, "{n} {n}"]:
    """Haar-distributed."""
    return linear.haar(key, n)

  def _project(self, logits: Array, n: int) -> Array:
    return polar(logits, self.method, self.steps, self.adjoint)


def check_polar(method: str, steps: int, adjoint: str) -> None:
  """Raises ConfigError for options that `polar` does not know."""
  check_choice("method", method, ("newton", "express", "newton_schulz"))
  check_choice("adjoint", adjoint, ("implicit", "unrolled"))
  if steps < 1:
    raise ConfigError(f"steps={steps}: expected a positive number of Newton–Schulz steps.")
