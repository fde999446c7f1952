"""Mean-preserving rotations of the streams: orthogonal, and the stream mean passes through untouched.

{H : HᵀH = I, H1 = 1} is a copy of O(n−1) acting on stream differences. It is the control that separates "orthogonal"
from "moves the mean": Cayley turns copied streams into differences that a mean read-out no longer sees, Iso does not.
"""

import dataclasses

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from jpmhc_jax.core.errors import check_choice
from jpmhc_jax.manifolds import differences, linear
from jpmhc_jax.manifolds.cayley import cayley
from jpmhc_jax.manifolds.contract import Manifold, Traits
from jpmhc_jax.manifolds.polar import check_polar, polar


@dataclasses.dataclass(frozen=True)
class Iso(Manifold):
  """SO(n−1) or O(n−1) on stream differences.

  project: logits (n, n, *tokens) -> H (n, n, *tokens) = 11ᵀ/n + U R Uᵀ, U any orthonormal basis of 1^⊥, Π = U Uᵀ:
    method "cayley": R = Cayley(Uᵀ S U), S = −α/2 (logits − logitsᵀ); computed as H = Cayley(Π S Π), without a basis;
    method "newton", "express", "newton_schulz": R = polar(Uᵀ logits U), as `Polar`.
  Zero logits (Cayley) or I (polar) give I. Source: IsoHC (M. Yang, 2026), by Newton–Schulz there.
  """

  method: str = "cayley"
  alpha: float = 0.1  # of cayley
  steps: int = 5  # of newton_schulz
  adjoint: str = "implicit"  # of the polar methods; Cayley's is exact and implicit

  def __post_init__(self) -> None:
    check_choice("connection.options: method", self.method, ("cayley", "newton", "express", "newton_schulz"))
    if self.method != "cayley":
      check_polar(self.method, self.steps, self.adjoint)

  @property
  def traits(self) -> Traits:
    by_cayley = self.method == "cayley"
    return Traits(
      "SO(n−1) fixing 1" if by_cayley else "O(n−1) fixing 1",
      row_sums_one=True, column_sums_one=True, orthogonal=True, contractive=True, exact=by_cayley,
      determinant="+1" if by_cayley else "±1",
      eigenvalues="1 and the unit circle" + (" except −1" if by_cayley else ""), norm="kept, mean kept",
    )  # fmt: skip

  def logit_shape(self, n: int) -> tuple[int, ...]:
    return (n, n)

  def dimension(self, n: int) -> int:
    return (n - 1) * (n - 2) // 2

  def identity_logits(self, n: int, strength: float) -> Float[Array, "{n} {n}"]:
    return jnp.zeros((n, n)) if self.method == "cayley" else jnp.eye(n)

  def _project(self, logits: Array, n: int) -> Array:
    if self.method == "cayley":
      # Each entry of the rotation needs all of S: behind a barrier, S is computed once.
      return cayley(jax.lax.optimization_barrier(linear.centred_skew(-0.5 * self.alpha * logits)))
    if n == 1:
      return jnp.ones_like(logits)
    core = differences.restricted(logits)
    return differences.extended(polar(core, self.method, self.steps, self.adjoint))
