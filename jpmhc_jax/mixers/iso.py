"""Mean-preserving rotations of the streams: orthogonal, and the stream mean passes through untouched.

{H : HᵀH = I, H1 = 1} is a copy of O(n−1) acting on stream differences. It is the control that separates "orthogonal"
from "moves the mean": Cayley turns copied streams into differences that a mean read-out no longer sees, Iso does not.
"""

import dataclasses

from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from jpmhc_jax.core.derivatives import custom_derivative
from jpmhc_jax.core.errors import check_choice
from jpmhc_jax.linalg import differences, linear, quaternion
from jpmhc_jax.mixers.base import Mixer, Traits
from jpmhc_jax.mixers.cayley import cayley, cayley_pullback
from jpmhc_jax.mixers.polar import check_polar, polar

__all__ = ["Iso"]


@dataclasses.dataclass(frozen=True)
class Iso(Mixer):
  """SO(n−1) or O(n−1) on stream differences.

  project: logits (n, n, *tokens) -> H (n, n, *tokens) = 11ᵀ/n + U R Uᵀ, U any orthonormal basis of 1^⊥, Π = U Uᵀ:
    method "cayley": R = Cayley(Uᵀ S U), S = −α/2 (logits − logitsᵀ), which is H = Cayley(Π S Π);
    method "newton", "express", "newton_schulz": R = polar(Uᵀ logits U), as `Polar`, with its bound on the gradient.
  Zero logits (Cayley) or I (polar) give I. Source: IsoHC (M. Yang, 2026), by Newton–Schulz there.

  Raises ConfigError for an unknown method or adjoint.

  >>> h = jp.Iso().random(jax.random.key(0), 4)
  >>> bool(jnp.allclose(h @ jnp.ones(4), 1, atol=1e-6)) and bool(jnp.allclose(h @ h.T, jnp.eye(4), atol=1e-6))
  True
  """

  method: str = "cayley"
  alpha: float = 0.1  # of cayley
  steps: int = 5  # of newton_schulz
  adjoint: str = "implicit"  # of the polar methods; Cayley's is exact and implicit

  def __post_init__(self) -> None:
    check_choice("method", self.method, ("cayley", "newton", "express", "newton_schulz"))
    if self.method != "cayley":
      check_polar(self.method, self.steps, self.adjoint)

  @property
  def traits(self) -> Traits:
    """Orthogonal and mean-preserving; to rounding, and of determinant +1, by Cayley."""
    by_cayley = self.method == "cayley"
    return Traits(
      "SO(n−1) fixing 1" if by_cayley else "O(n−1) fixing 1",
      row_sums_one=True, column_sums_one=True, orthogonal=True, contractive=True, exact=by_cayley,
      determinant="+1" if by_cayley else "±1",
      eigenvalues="1 and the unit circle" + (" except −1" if by_cayley else ""), norm="kept, mean kept",
    )  # fmt: skip

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """(n, n)."""
    return (n, n)

  def dimension(self, n: int) -> int:
    """That of SO(n − 1)."""
    return (n - 1) * (n - 2) // 2

  def identity_logits(self, n: int, strength: float) -> Float[Array, "{n} {n}"]:
    """0 for the Cayley chart, I for the polar ones."""
    return jnp.zeros((n, n)) if self.method == "cayley" else jnp.eye(n)

  def _project(self, logits: Array, n: int) -> Array:
    if self.method == "cayley":
      return _rotation(-0.5 * self.alpha * logits)
    if n == 1:
      return jnp.ones_like(logits)
    # Logits without differences (a·11ᵀ, say) leave a core of rounding, whose factor has no derivative by the logits.
    rounding = 16 * float(jnp.finfo(logits.dtype).eps) * jnp.max(jnp.abs(logits), axis=(0, 1))
    core = linear.constant_below(differences.restricted(logits), rounding)
    return differences.extended(polar(core, self.method, self.steps, self.adjoint))


@custom_derivative
def _rotation(matrix: Float[Array, "n n *tokens"]) -> Float[Array, "n n *tokens"]:
  """Cayley(Π (A − Aᵀ) Π), with rows that sum to one to rounding at any size of A. Saves only the result.

  In floating point Π S Π maps 1 to rounding of S, not to zero: the forms below cannot see 1 at all.
  """
  n, skew = matrix.shape[0], linear.minus_transpose(matrix)
  if n <= 2:
    return jnp.broadcast_to(linear.identity_like(matrix), matrix.shape)
  if n > 4:
    return differences.extended(cayley(differences.restricted(skew)))
  # The quaternions p, q of `cayley` with ΠSΠ for S: p e q = e for the unit quaternion e along 1, which conjugates the
  # imaginary units in turn. So q holds the negatives of p, one place on, and the Pfaffian is zero. For n = 3 all
  # entries of ΠSΠ are ± one number, and the fourth axis stays.
  one = jnp.ones_like(matrix[0, 0])
  if n == 3:
    s = (skew[0, 1] - skew[0, 2] + skew[1, 2]) / 3
    return quaternion.rotation([one, s, -s, s], [one, s, -s, -s])[:3, :3]
  a, b, c, d, e, f = (skew[i, j] for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)))
  x, y, z = 0.5 * (a - c + d + f), 0.5 * (b - e - a + f), 0.5 * (c + d - b - e)
  return quaternion.rotation([one, x, y, z], [one, -y, -z, -x])


def _rotation_forward(matrix: Array) -> tuple[Array, Array]:
  rotation = _rotation(matrix)
  return rotation, rotation


_rotation.defvjp(_rotation_forward, lambda rotation, bar: (linear.centred_skew(cayley_pullback(rotation, bar)),))
