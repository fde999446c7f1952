"""All of O(n): a rotation, times a reflection that a gate switches on."""

import dataclasses

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from jpmhc_jax.core.derivatives import custom_derivative
from jpmhc_jax.core.errors import check_choice
from jpmhc_jax.linalg import linear
from jpmhc_jax.mixers.base import Mixer, Traits
from jpmhc_jax.mixers.cayley import cayley

__all__ = ["Householder"]


@dataclasses.dataclass(frozen=True)
class Householder(Mixer):
  """H = Q (I − 2(1 − g) k kᵀ): both components of O(n), which no continuous chart joins.

  project: logits (n² + n + 1, *tokens) = [generator of Q row-major, direction of k, gate] -> H (n, n, *tokens); Q as
  `Cayley`, g = σ(gate).
  gate="hard": g is rounded to 0 or 1, with the gradient of the soft gate passed straight through: H is orthogonal
  always.
  gate="soft": g as it is; H shortens k by |2g − 1|, so it is contractive and orthogonal only in the limits.
  Source: the gated reflection of EΔ-MHC-Geo (2605.06729), composed with Q instead of averaged so that it stays on O(n).

  Raises ConfigError for another gate.

  >>> h = jp.Householder().project(jnp.zeros(2 * 2 + 2 + 1).at[4].set(1.0).at[6].set(-9.0), 2)
  >>> h.round(3).tolist()  # no rotation, gate shut: the reflection of the first axis
  [[-1.0, 0.0], [0.0, 1.0]]
  """

  alpha: float = 0.1
  gate: str = "hard"

  def __post_init__(self) -> None:
    check_choice("gate", self.gate, ("hard", "soft"))

  @property
  def traits(self) -> Traits:
    """Orthogonal of either determinant by the hard gate, a contraction along k by the soft one."""
    hard = self.gate == "hard"
    return Traits(
      "O(n)" if hard else "Q times a contraction along k",
      orthogonal=hard, contractive=True, contains_identity=hard, determinant="±1" if hard else "(−1, 1)",
      eigenvalues="unit circle, −1 included" if hard else "closed unit disc",
      norm="kept" if hard else "kept but along k",
    )  # fmt: skip

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """A rotation's n² logits, a direction of n, and the gate."""
    return (n * n + n + 1,)

  def dimension(self, n: int) -> int:
    """That of SO(n), and n more for a reflection that is blended in."""
    return n * (n - 1) // 2 + (0 if self.gate == "hard" else n)

  def identity_logits(self, n: int, strength: float) -> Float[Array, "k"]:
    """No rotation, and a gate that is closed to `strength`."""
    # The reflection waits along the difference of the first two streams: switched on, it would exchange them.
    direction = jnp.zeros((n,)).at[0].set(1.0).at[1 % n].add(-1.0 if n > 1 else 0.0)
    return jnp.concatenate([jnp.zeros((n * n,)), direction, jnp.full((1,), strength)])

  def _project(self, logits: Array, n: int) -> Array:
    # One split: the gradient of several slices pads each of them.
    generator, direction, gate = jnp.split(logits, [n * n, n * n + n], axis=0)
    rotation = cayley(-0.5 * self.alpha * linear.minus_transpose(generator.reshape(n, n, *logits.shape[1:])))
    direction, gate = _scaled(direction), jax.nn.sigmoid(gate[0])
    if self.gate == "hard":
      gate = gate + jax.lax.stop_gradient(jnp.round(gate) - gate)
    # Divided by kᵀk, the reflection rounds less than that of a unit vector. A zero direction reflects nothing.
    length = jnp.maximum(jnp.sum(direction * direction, axis=0), 0.5)
    return _reflected(rotation, direction, 2 * (1 - gate) / length)


@custom_derivative
def _reflected(
  rotation: Float[Array, "n n *tokens"], direction: Float[Array, "n *tokens"], strength: Float[Array, "*tokens"]
) -> Float[Array, "n n *tokens"]:
  """Q (I − β k kᵀ)."""
  turned = linear.matvec(rotation, direction)
  return rotation - strength[None, None] * turned[:, None] * direction[None]


def _reflected_forward(rotation: Array, direction: Array, strength: Array) -> tuple[Array, tuple[Array, ...]]:
  return _reflected(rotation, direction, strength), (rotation, direction, strength)


def _reflected_backward(saved: tuple[Array, ...], bar: Array) -> tuple[Array, Array, Array]:
  # With t = Qk and m = H̄k:  Q̄ = H̄ − β m kᵀ,  k̄ = −β (H̄ᵀt + Qᵀm),  β̄ = −tᵀm. The vectors stand behind barriers: fused
  # into what uses them they would be computed again for every entry.
  rotation, direction, strength = saved
  turned, asked = jax.lax.optimization_barrier((linear.matvec(rotation, direction), linear.matvec(bar, direction)))
  to_direction = -strength[None] * (linear.vecmat(turned, bar) + linear.vecmat(asked, rotation))
  to_rotation = jax.lax.optimization_barrier(bar - strength[None, None] * asked[:, None] * direction[None])
  return to_rotation, to_direction, -jnp.sum(turned * asked, axis=0)


_reflected.defvjp(_reflected_forward, _reflected_backward)


def _scaled(vector: Array) -> Array:
  # To a largest entry of 1, so that squares stay inside float32. H does not depend on the length of the vector, so the
  # divisor carries no gradient. What is shorter than rounding has no direction: half a reflection would not be one.
  size = jax.lax.stop_gradient(jnp.max(jnp.abs(vector), axis=0, keepdims=True))
  eps = jnp.finfo(vector.dtype).eps
  return jnp.where(size < eps, 0.0, vector) / jnp.maximum(size, eps)
