"""Orthogonal mixers by the polar factor: the orthogonal matrix nearest to the logits."""

import dataclasses
import functools

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jpmhc_jax.core.errors import check_choice, ConfigError
from jpmhc_jax.manifolds import linear
from jpmhc_jax.manifolds.contract import Manifold, Traits

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

Coefficients = tuple[float, float, float]


def polar(matrix: Float[Array, "n n *tokens"], method: str, steps: int, adjoint: str) -> Float[Array, "n n *tokens"]:
  """R of A = R P (R orthogonal, P symmetric positive), by odd polynomials of A; see `Polar` for the arguments."""
  forward = functools.partial(_iterate, method=method, steps=steps)
  return forward(matrix) if adjoint == "unrolled" else _polar_implicit(matrix, forward)


def odd_iteration(
  matrix: Float[Array, "n n *tokens"], schedule: tuple[Coefficients, ...]
) -> Float[Array, "n n *tokens"]:
  """X ← aX + bX(XᵀX) + cX(XᵀX)², once for each (a, b, c): applies odd polynomials to the singular values."""
  quintic = any(c for _, _, c in schedule)

  def step(x: Array, coefficients: Array) -> tuple[Array, None]:
    a, b, c = coefficients
    gram = linear.matmul(linear.transpose(x), x)
    inner = b * gram + c * linear.matmul(gram, gram) if quintic else b * gram
    return a * x + linear.matmul(x, inner), None

  return jax.lax.scan(step, matrix, jnp.asarray(schedule, matrix.dtype))[0]


def _iterate(matrix: Array, method: str, steps: int) -> Array:
  tiny = jnp.finfo(matrix.dtype).tiny
  x = matrix / jnp.maximum(jnp.max(jnp.abs(matrix), axis=(0, 1), keepdims=True), tiny)
  # σ_max <= ‖(XᵀX)²‖_F^(1/4) <= n^(1/8) σ_max: the source's γ = 1.2 σ_max without knowing σ_max (n^(1/8) = 1.19 at n =
  # 4).
  gram = linear.matmul(linear.transpose(x), x)
  fourth = linear.matmul(gram, gram)
  gamma = jnp.sqrt(jnp.sqrt(jnp.sqrt(jnp.sum(fourth * fourth, axis=(0, 1), keepdims=True) + tiny)))
  if method == "express":
    return odd_iteration(odd_iteration(x / gamma, _EXPRESS), (_CUBIC,))
  return odd_iteration(x / gamma, (_CUBIC,) * steps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _polar_implicit(matrix, forward):  # type: ignore[no-untyped-def]
  return forward(matrix)


def _polar_forward(matrix, forward):  # type: ignore[no-untyped-def]
  factor = _polar_implicit(matrix, forward)  # the rule itself, so that a second derivative uses it again
  return factor, (matrix, factor)


def _polar_backward(forward, saved, cotangent):  # type: ignore[no-untyped-def]
  # A = RP, dR = RΩ with Ω skew: RᵀdA − dAᵀR = ΩP + PΩ. The operator is self-adjoint, so Ā = R Y with Y skew and
  # PY + YP = RᵀḠ − ḠᵀR: a Sylvester equation in n(n−1)/2 unknowns, positive definite, solved by elimination.
  matrix, factor = saved
  r_t = linear.transpose(factor)
  right = linear.skew(linear.matmul(r_t, cotangent))
  stretch = linear.matmul(r_t, matrix)
  y = skew_sylvester(0.5 * (stretch + linear.transpose(stretch)), right)
  return (linear.matmul(factor, y),)


_polar_implicit.defvjp(_polar_forward, _polar_backward)


def skew_sylvester(p: Float[Array, "n n *tokens"], right: Float[Array, "n n *tokens"]) -> Float[Array, "n n *tokens"]:
  """The skew Y with PY + YP = K for symmetric positive P and skew K."""
  n = p.shape[0]
  if n == 1:
    return jnp.zeros_like(p)
  upper = np.triu_indices(n, 1)
  (i, j), (k, m) = (index[:, None] for index in upper), (index[None, :] for index in upper)

  def where(mask: np.ndarray, entries: Array) -> Array:
    return linear.over_tokens(mask, entries) * entries

  # d(PY + YP)_ij / dY_km over the pairs i < j, k < m with Y_mk = −Y_km.
  system = where(j == m, p[i, k]) + where(i == k, p[m, j]) - where(j == k, p[i, m]) - where(i == m, p[k, j])
  half = linear.solve(system, right[upper][:, None])[:, 0]
  position, sign = np.zeros((n, n), int), np.zeros((n, n))
  position[upper] = position.T[upper] = np.arange(len(upper[0]))
  sign[upper], sign.T[upper] = 1, -1
  return linear.over_tokens(sign, right) * half[position]


@dataclasses.dataclass(frozen=True)
class Polar(Manifold):
  """O(n) by the polar factor of the logits, both determinants reached.

  project: logits A (n, n, *tokens) -> R (n, n, *tokens), A = R P. method "express": eight quintic steps and a cubic
  one, on the set to rounding while σ_min/σ_max of the logits is above 1e-3; "newton_schulz": X₀ = A/γ, `steps` times X
  ← 1.5X − 0.5XXᵀX, as IsoHC, on the set only for well-conditioned logits. `distance` reports how far.
  adjoint: "implicit" (Sylvester equation, saves A and R) or "unrolled". Singular logits have no polar factor: the
  value stays finite and off the set.
  """

  method: str = "express"
  steps: int = 5  # of newton_schulz
  adjoint: str = "implicit"

  def __post_init__(self) -> None:
    check_polar(self.method, self.steps, self.adjoint)

  @property
  def traits(self) -> Traits:
    return Traits(
      "O(n)", orthogonal=True, contractive=True, exact=False, determinant="±1", eigenvalues="unit circle", norm="kept"
    )

  def logit_shape(self, n: int) -> tuple[int, ...]:
    return (n, n)

  def dimension(self, n: int) -> int:
    return n * (n - 1) // 2

  def identity_logits(self, n: int, strength: float) -> Float[Array, "{n} {n}"]:
    return jnp.eye(n)

  def random(self, key: Array, n: int) -> Float[Array, "{n} {n}"]:
    return linear.haar(key, n)

  def _project(self, logits: Array, n: int) -> Array:
    return polar(logits, self.method, self.steps, self.adjoint)


def check_polar(method: str, steps: int, adjoint: str) -> None:
  """Raises ConfigError for options that `polar` does not know."""
  check_choice("connection.options: method", method, ("express", "newton_schulz"))
  check_choice("connection.options: adjoint", adjoint, ("implicit", "unrolled"))
  if steps < 1:
    raise ConfigError(f"connection.options: steps={steps}: expected a positive number of Newton–Schulz steps.")
