"""The two ends of every comparison: a mixer that does nothing and a mixer that may do anything."""

import dataclasses

from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jpmhc_jax.linalg import linear
from jpmhc_jax.mixers.base import Mixer, Traits

__all__ = ["Identity", "Unconstrained"]


@dataclasses.dataclass(frozen=True)
class Identity(Mixer):
  """H = I, no logits: streams exchange information through the read and write alone (iHC).

  project: logits (0, *tokens) -> I (n, n, *tokens). The baseline that beat mHC at 3.9B scale in oHC (2609.02672).

  >>> jp.Identity().project(jnp.zeros(0), 2).tolist()
  [[1.0, 0.0], [0.0, 1.0]]
  """

  @property
  def traits(self) -> Traits:
    """All equations hold."""
    return Traits(
      "{I}", row_sums_one=True, column_sums_one=True, nonnegative=True, orthogonal=True, contractive=True,
      determinant="1", eigenvalues="1", norm="kept",
    )  # fmt: skip

  @property
  def is_identity(self) -> bool:
    """Always."""
    return True

  @property
  def manifold(self) -> None:
    """None: I is a single point."""
    return None

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """(0,): none."""
    return (0,)

  def dimension(self, n: int) -> int:
    """0."""
    return 0

  def identity_logits(self, n: int, strength: float) -> Float[Array, "0"]:
    """None."""
    return jnp.zeros((0,))

  def _project(self, logits: Array, n: int) -> Array:
    return jnp.broadcast_to(linear.over_tokens(np.eye(n), logits, axes=1), (n, n, *logits.shape[1:]))


@dataclasses.dataclass(frozen=True)
class Unconstrained(Mixer):
  """H = logits: hyper-connections without a constraint (2409.19606), or H = I + scale·tanh(logits) with tanh=True.

  project: logits (n, n, *tokens) -> H (n, n, *tokens).

  >>> jp.Unconstrained(tanh=True).project(jnp.zeros((2, 2)), 2).tolist()
  [[1.0, 0.0], [0.0, 1.0]]
  """

  tanh: bool = False
  scale: float = 1.0  # factor on the tanh; with tanh=False it must stay 1

  @property
  def traits(self) -> Traits:
    """No equation holds."""
    return Traits("R^{n x n}", norm="free: products grow or fade without bound")

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """(n, n)."""
    return (n, n)

  def dimension(self, n: int) -> int:
    """n²."""
    return n * n

  def identity_logits(self, n: int, strength: float) -> Float[Array, "{n} {n}"]:
    """I, or 0 with the tanh."""
    return jnp.zeros((n, n)) if self.tanh else jnp.eye(n)

  def _project(self, logits: Array, n: int) -> Array:
    return linear.identity_like(logits) + self.scale * jnp.tanh(logits) if self.tanh else logits
