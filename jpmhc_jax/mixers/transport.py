"""Doubly stochastic mixers filled in entry by entry, each within the bounds that the rest leaves it."""

import dataclasses

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers.base import Traits
from jpmhc_jax.mixers.birkhoff import DoublyStochastic

__all__ = ["Transport"]

_NARROWEST = 1e-7  # of TBP-mHC: keeps a gradient in entries whose bounds have met, each off the set by as much
_LEAST_MIXED = -8.0  # of TBP-mHC: the logit at which it starts to learn δ
_OFF_THE_SET = 8e-7  # by all entries of a row together, so that many streams stay on the set


@dataclasses.dataclass(frozen=True)
class Transport(DoublyStochastic):
  """Transportation-polytope chart: (n−1)² logits cover the whole interior of the Birkhoff polytope.

  project: logits t (n−1, n−1, *tokens) -> H (n, n, *tokens). Row by row, x_ij = L + (U − L) σ(t_ij) with the bounds of
  what is left of row i and column j: U = min(r_i, c_j), L = max(0, r_i − Σ_{j'>j} c_j', c_j − Σ_{i'>i} r_i'); the last
  column and row are the remainders. Then H = (1 − δ)X + δ/n. Zero logits give a singular matrix: a bad place to start.
  learned: δ = σ(one more logit), the last of (n−1)² + 1; delta is not used then.
  Source: TBP-mHC (2605.21724), which learns δ from σ(−8) = 3.3535e-4 on.

  Raises ConfigError for a delta outside of 0 to below 1, and for one that is not used.

  >>> jp.Transport().project(jnp.array([[jnp.log(3.0)]]), 2).round(2).tolist()
  [[0.75, 0.25], [0.25, 0.75]]
  """

  delta: float = 0.0
  learned: bool = False

  def __post_init__(self) -> None:
    if not 0 <= self.delta < 1:
      raise ConfigError(f"delta={self.delta}: expected a fraction from 0 to below 1.")
    if self.delta and self.learned:
      raise ConfigError(f"delta={self.delta}: expected 0 with learned=True, where a logit says what δ is")

  @property
  def traits(self) -> Traits:
    """Doubly stochastic to rounding; the identity is only approached."""
    return dataclasses.replace(super().traits, contains_identity=False)

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """(n − 1, n − 1); ((n − 1)² + 1,) where δ is learned."""
    return ((n - 1) ** 2 + 1,) if self.learned else (n - 1, n - 1)

  def identity_logits(self, n: int, strength: float) -> Float[Array, "..."]:
    """`strength` on the diagonal, its negative beside it; a learned δ starts at σ(−8) or below."""
    chart = strength * (2 * jnp.eye(n - 1) - 1)
    if not self.learned:
      return chart
    return jnp.concatenate([chart.ravel(), jnp.minimum(_LEAST_MIXED, -strength)[None]])

  def _project(self, logits: Array, n: int) -> Array:
    delta: float | Array = self.delta
    if self.learned:
      delta = jax.nn.sigmoid(logits[-1])[None, None]
      logits = logits[:-1].reshape(n - 1, n - 1, *logits.shape[1:])
    rows_below = jnp.arange(n - 1, 0, -1, dtype=logits.dtype)
    columns = jnp.ones((n, *logits.shape[2:]), logits.dtype)
    columns, rows = jax.lax.scan(_fill_row, columns, (jax.nn.sigmoid(logits), rows_below))
    # The last row collects the rounding of all entries: what its sum lacks is spread over it.
    lacking = 1 - jnp.sum(jax.lax.stop_gradient(columns), axis=0)
    filled = jnp.concatenate([rows, (columns + lacking[None] / n)[None]])
    return filled if isinstance(delta, float) and delta == 0 else (1 - delta) * filled + delta / n


# Loops, not written-out entries: each entry depends on all earlier ones, and a compiler that fuses such a chain
# recomputes it at every use, in time and memory exponential in n.
def _fill_row(columns: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
  shares, rows_below = inputs
  to_the_right = jnp.cumsum(columns[:0:-1], axis=0)[::-1]
  narrowest = min(_NARROWEST, _OFF_THE_SET / len(columns))

  def fill(remaining: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
    share, column, right = inputs
    lower = jnp.maximum(remaining - right, column - rows_below)
    lower = jnp.where(lower >= 0, lower, 0.0)
    width = jnp.maximum(jnp.minimum(remaining, column) - lower, narrowest)
    x = lower + width * share
    return remaining - x, (x, column - x)

  remaining, (row, rest) = jax.lax.scan(fill, jnp.ones_like(columns[0]), (shares, columns[:-1], to_the_right))
  return jnp.concatenate([rest, columns[-1:] - remaining[None]]), jnp.concatenate([row, remaining[None]])
