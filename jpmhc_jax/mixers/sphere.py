"""Mean-preserving mixers of spectral norm one: rotate, shrink, rotate the stream differences."""

import dataclasses

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jpmhc_jax.core.derivatives import custom_derivative
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.linalg import differences, linear
from jpmhc_jax.linalg.blocks import by_blocks
from jpmhc_jax.mixers.base import Mixer, Traits
from jpmhc_jax.mixers.cayley import cayley

__all__ = ["SpectralSphere"]


@dataclasses.dataclass(frozen=True)
class SpectralSphere(Mixer):
  """{H : H1 = 1, Hᵀ1 = 1, ‖H‖₂ = 1}: signs allowed, the mean kept, differences never lengthened.

  project: logits ((n−1)², *tokens) = [z_U, z_V, z_S] -> H = 11ᵀ/n + B U diag(tanh z_S) Vᵀ Bᵀ, B the Helmert basis, U
  and V Cayley rotations of the skew matrices with upper triangle γ tanh z (row-major), so rotations stay below 2·arctan
  of γ times the triangle. Identity in the limit z_S -> ∞. learned: γ of U and of V are logits, too, the last two of
  (n−1)² + 2, and gamma is where they start. Source: s²HC (2603.20896), which learns both, through a declared port.

  Raises ConfigError for a gamma that is not positive.

  >>> h = jp.SpectralSphere().random(jax.random.key(0), 4)
  >>> round(float(jnp.linalg.norm(h, 2)), 4), bool(jnp.allclose(h.sum(0), 1, atol=1e-6))
  (1.0, True)
  """

  gamma: float = 1.0
  learned: bool = False

  def __post_init__(self) -> None:
    if self.gamma <= 0:
      raise ConfigError(f"gamma={self.gamma}: expected a positive bound on the rotations.")

  @property
  def traits(self) -> Traits:
    """Keeps the mean and lengthens nothing; entries may be negative."""
    return Traits(
      "mean-preserving, ‖H‖₂ = 1", row_sums_one=True, column_sums_one=True, contractive=True, contains_identity=False,
      determinant="(−1, 1)", eigenvalues="1 and the open unit disc", norm="mean kept, differences shrink",
    )  # fmt: skip

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """Two rotations of the n − 1 differences, and their n − 1 singular values; γ of each rotation where learned."""
    return ((n - 1) ** 2 + 2 * self.learned,)

  def dimension(self, n: int) -> int:
    """(n − 1)²."""
    return (n - 1) ** 2

  def identity_logits(self, n: int, strength: float) -> Float[Array, "k"]:
    """No rotation, and singular values near 1."""
    plain = jnp.zeros((n - 1) ** 2).at[(n - 1) * (n - 2) :].set(strength)
    return jnp.concatenate([plain, jnp.full(2 * self.learned, self.gamma)])

  def _project(self, logits: Array, n: int) -> Array:
    if n == 1:
      return jnp.ones((1, 1, *logits.shape[1:]), logits.dtype)
    angles, size = (n - 1) * (n - 2) // 2, n - 1
    # One split: the gradient of several slices pads each of them.
    *sides, shrink, bounds = jnp.split(logits, [angles, 2 * angles, 2 * angles + size], axis=0)
    gammas = bounds[:, None] if self.learned else (self.gamma, self.gamma)
    left, right = (self._rotation(gamma * jnp.tanh(side), size) for gamma, side in zip(gammas, sides, strict=True))
    return differences.extended(_composed(left, jnp.tanh(shrink), right))

  def _rotation(self, triangle: Array, size: int) -> Array:
    # Which entry of the skew matrix each angle is, as a product: it and its gradient are one pass each.
    upper = np.zeros((size, size, triangle.shape[0]))
    upper[(*np.triu_indices(size, 1), range(triangle.shape[0]))] = 1
    entries = jnp.asarray(upper - upper.swapaxes(0, 1), triangle.dtype)
    return cayley(jnp.tensordot(entries, triangle, axes=1, precision=jax.lax.Precision.HIGHEST))


@custom_derivative
def _composed(
  left: Float[Array, "m m *tokens"], sizes: Float[Array, "m *tokens"], right: Float[Array, "m m *tokens"]
) -> Float[Array, "m m *tokens"]:
  """U diag(s) Vᵀ."""
  return by_blocks(lambda u, v, s: linear.matmul(u * s[None], linear.transpose(v)), left, right, sizes)


def _composed_forward(left: Array, sizes: Array, right: Array) -> tuple[Array, tuple[Array, ...]]:
  return _composed(left, sizes, right), (left, sizes, right)


def _composed_backward(saved: tuple[Array, ...], bar: Array) -> tuple[Array, Array, Array]:
  # Ū = H̄ V diag(s),  V̄ = H̄ᵀ U diag(s),  s̄ = the diagonal of Uᵀ H̄ V.
  def pull(bar: Array, left: Array, right: Array, sizes: Array) -> tuple[Array, Array, Array]:
    turned = linear.matmul(bar, right)
    to_right = linear.matmul(linear.transpose(bar), left) * sizes[None]
    return turned * sizes[None], linear.total(left * turned, 0)[0], to_right

  left, sizes, right = saved
  return by_blocks(pull, bar, left, right, sizes)


_composed.defvjp(_composed_forward, _composed_backward)
