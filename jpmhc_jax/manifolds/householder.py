"""All of O(n): a rotation, times a reflection that a gate switches on."""

import dataclasses

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from jpmhc_jax.core.errors import check_choice
from jpmhc_jax.manifolds import linear
from jpmhc_jax.manifolds.cayley import cayley
from jpmhc_jax.manifolds.contract import Manifold, Traits


@dataclasses.dataclass(frozen=True)
class Householder(Manifold):
  """H = Q (I − 2(1 − g) k kᵀ): both components of O(n), which no continuous chart joins.

  project: logits (n² + n + 1, *tokens) = [generator of Q row-major, direction of k, gate] -> H (n, n, *tokens); Q as
  `Cayley`, g = σ(gate).
  gate="hard": g is rounded to 0 or 1, with the gradient of the soft gate passed straight through: H is orthogonal
  always.
  gate="soft": g as it is; H shortens k by |2g − 1|, so it is contractive and orthogonal only in the limits.
  Source: the gated reflection of EΔ-MHC-Geo (2605.06729), composed with Q instead of averaged so that it stays on O(n).
  """

  alpha: float = 0.1
  gate: str = "hard"

  def __post_init__(self) -> None:
    check_choice("connection.options: gate", self.gate, ("hard", "soft"))

  @property
  def traits(self) -> Traits:
    hard = self.gate == "hard"
    return Traits(
      "O(n)" if hard else "Q times a contraction along k",
      orthogonal=hard, contractive=True, contains_identity=hard, determinant="±1" if hard else "(−1, 1)",
      eigenvalues="unit circle, −1 included" if hard else "closed unit disc",
      norm="kept" if hard else "kept but along k",
    )  # fmt: skip

  def logit_shape(self, n: int) -> tuple[int, ...]:
    return (n * n + n + 1,)

  def dimension(self, n: int) -> int:
    return n * (n - 1) // 2 + (0 if self.gate == "hard" else n)

  def identity_logits(self, n: int, strength: float) -> Float[Array, "k"]:
    # The reflection waits along the difference of the first two streams: switched on, it would exchange them.
    direction = jnp.zeros((n,)).at[0].set(1.0).at[1 % n].add(-1.0 if n > 1 else 0.0)
    return jnp.concatenate([jnp.zeros((n * n,)), direction, jnp.full((1,), strength)])

  def _project(self, logits: Array, n: int) -> Array:
    generator = logits[: n * n].reshape(n, n, *logits.shape[1:])
    rotation = cayley(-0.5 * self.alpha * linear.skew(generator))
    direction = _unit(logits[n * n : n * n + n])
    gate = jax.nn.sigmoid(logits[-1])
    if self.gate == "hard":
      gate = gate + jax.lax.stop_gradient(jnp.round(gate) - gate)
    turned = linear.matvec(rotation, direction)
    return rotation - (2 * (1 - gate))[None, None] * turned[:, None] * direction[None]


def _unit(vector: Array) -> Array:
  # The floor gives a zero direction no reflection and no gradient instead of NaN.
  scale = jnp.maximum(jnp.max(jnp.abs(vector), axis=0), jnp.finfo(vector.dtype).eps)
  vector = vector / jax.lax.stop_gradient(scale)[None]
  return vector / jnp.sqrt(jnp.sum(vector * vector, axis=0) + jnp.finfo(vector.dtype).tiny)[None]
