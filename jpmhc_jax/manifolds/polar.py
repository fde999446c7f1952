"""Orthogonal mixers by the polar factor: the orthogonal matrix nearest to the logits."""

import dataclasses
import functools
import itertools

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from jpmhc_jax.core.errors import check_choice, ConfigError
from jpmhc_jax.manifolds import linear
from jpmhc_jax.manifolds.contract import Manifold, Traits

# Odd quintics a·x + b·x³ + c·x⁵ that, composed, map [1e-3, 1] to 1 fastest (Polar Express, Amsel et al. 2025, 2505.16932). The
# published values carry a safety factor 1.01 on x in all but the last step.
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


def polar(matrix: Float[Array, "n n *tokens"], method: str, steps: int, adjoint: str) -> Float[Array, "n n *tokens"]:
  """R of A = R P (R orthogonal, P symmetric positive), by odd polynomials of A; see `Polar` for the arguments."""
  forward = functools.partial(_iterate, method=method, steps=steps)
  return forward(matrix) if adjoint == "unrolled" else _polar_implicit(matrix, forward)


def _iterate(matrix: Array, method: str, steps: int) -> Array:
  schedule = (_EXPRESS + (_CUBIC,) if method == "express" else ()) or (_CUBIC,) * steps
  tiny = jnp.finfo(matrix.dtype).tiny
  x = matrix / jnp.maximum(jnp.max(jnp.abs(matrix), axis=(0, 1), keepdims=True), tiny)
  # σ_max <= ‖(XᵀX)²‖_F^(1/4) <= n^(1/8) σ_max: the source's γ = 1.2 σ_max without knowing σ_max (n^(1/8) = 1.19 at n = 4).
  gram = linear.matmul(linear.transpose(x), x)
  fourth = linear.matmul(gram, gram)
  gamma = jnp.sqrt(jnp.sqrt(jnp.sqrt(jnp.sum(fourth * fourth, axis=(0, 1), keepdims=True) + tiny)))
  x = x / gamma

  def step(x: Array, coefficients: Array) -> tuple[Array, None]:
    a, b, c = coefficients
    gram = linear.matmul(linear.transpose(x), x)
    inner = b * gram + (c * linear.matmul(gram, gram) if method == "express" else 0.0)
    return a * x + linear.matmul(x, inner), None

  return jax.lax.scan(step, x, jnp.asarray(schedule, matrix.dtype))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _polar_implicit(matrix, forward):  # type: ignore[no-untyped-def]
  return forward(matrix)


def _polar_forward(matrix, forward):  # type: ignore[no-untyped-def]
  factor = forward(matrix)
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
  pairs = list(itertools.combinations(range(n), 2))
  if not pairs:
    return jnp.zeros_like(p)
  zero = jnp.zeros_like(p[0, 0])

  def coefficient(i: int, j: int, k: int, m: int) -> Array:
    # d(PY + YP)_ij / dY_km over the pair k < m, Y_mk = −Y_km.
    terms = ((j == m, p[i, k]), (i == k, p[m, j]), (j == k, -p[i, m]), (i == m, -p[k, j]))
    return sum((term for hit, term in terms if hit), zero)

  system = jnp.stack([jnp.stack([coefficient(*row, *column) for column in pairs]) for row in pairs])
  half = linear.solve(system, jnp.stack([right[i, j] for i, j in pairs])[:, None])[:, 0]
  index = {pair: k for k, pair in enumerate(pairs)}
  entry = [[half[index[i, j]] if i < j else -half[index[j, i]] if j < i else zero for j in range(n)] for i in range(n)]
  return jnp.stack([jnp.stack(row) for row in entry])


@dataclasses.dataclass(frozen=True)
class Polar(Manifold):
  """O(n) by the polar factor of the logits, both determinants reached.

  project: logits A (n, n, *tokens) -> R (n, n, *tokens), A = R P. method "express": eight quintic steps and a cubic one, on the
  set to rounding while σ_min/σ_max of the logits is above 1e-3; "newton_schulz": X₀ = A/γ, `steps` times X ← 1.5X − 0.5XXᵀX,
  as IsoHC, on the set only for well-conditioned logits. `distance` reports how far.
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
