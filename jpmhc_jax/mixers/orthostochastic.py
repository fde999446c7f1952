"""Doubly stochastic mixers made of squared entries of orthogonal matrices."""

import dataclasses
import functools

from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from jpmhc_jax.core.derivatives import custom_derivative
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.linalg import linear
from jpmhc_jax.mixers.base import Traits
from jpmhc_jax.mixers.birkhoff import DoublyStochastic
from jpmhc_jax.mixers.cayley import cayley
from jpmhc_jax.mixers.polar import odd_iteration

__all__ = ["Orthostochastic", "OrthostochasticNewtonSchulz"]

_NEWTON_SCHULZ = (3.0, -3.2, 1.2)


@dataclasses.dataclass(frozen=True)
class Orthostochastic(DoublyStochastic):
  """B_ij = (1/s) Σ_{k,l<s} Q²_{(i k),(j l)} for Q in SO(ns): doubly stochastic for every s, all of Birkhoff as s grows.

  project: logits (ns, ns, *tokens) -> B (n, n, *tokens); Q = (I − X)⁻¹(I + X), X = logits − logitsᵀ; row (i k) of Q is
  i·s + k. Zero logits give I exactly, where the gradient of B vanishes (entries are squared): start with small random
  logits. s = 1 are the orthostochastic matrices; s = 2 is recommended. Source: go-mHC (2604.02309), with the sign of
  its toy code.

  Raises ConfigError for copies below 1.

  >>> b = jp.Orthostochastic(copies=2).random(jax.random.key(0), 2)
  >>> bool(jnp.allclose(b.sum(0), 1, atol=1e-5)) and bool(b.min() >= 0)
  True
  """

  copies: int = 2  # s

  def __post_init__(self) -> None:
    if self.copies < 1:
      raise ConfigError(f"copies={self.copies}: expected a positive integer.")

  @property
  def traits(self) -> Traits:
    """Doubly stochastic to rounding, for every number of copies."""
    return dataclasses.replace(super().traits, set=f"generalised orthostochastic, s = {self.copies}")

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """(ns, ns) for s copies."""
    return (n * self.copies, n * self.copies)

  def identity_logits(self, n: int, strength: float) -> Float[Array, "k k"]:
    """0."""
    return jnp.zeros(self.logit_shape(n))

  def _project(self, logits: Array, n: int) -> Array:
    return _block_means(cayley(-linear.minus_transpose(logits)), self.copies)


@functools.partial(custom_derivative, nondiff_argnums=(1,))
def _block_means(q: Float[Array, "k k *tokens"], copies: int) -> Float[Array, "n n *tokens"]:
  """(1/s) Σ of the squares in each s x s block."""
  n = q.shape[0] // copies
  squares = (q * q).reshape(n, copies, n, copies, *q.shape[2:])
  return (linear.total(linear.total(squares, 1), 3) / copies).reshape(n, n, *q.shape[2:])


def _block_means_forward(q: Array, copies: int) -> tuple[Array, Array]:
  return _block_means(q, copies), q


def _block_means_backward(copies: int, q: Array, bar: Array) -> tuple[Array]:
  return (2 / copies * q * jnp.repeat(jnp.repeat(bar, copies, 0), copies, 1),)


# Differentiated by itself it would pad a slice for every term of the sums.
_block_means.defvjp(_block_means_forward, _block_means_backward)


@dataclasses.dataclass(frozen=True)
class OrthostochasticNewtonSchulz(DoublyStochastic):
  """H = Y∘Y with Y near the polar factor of the logits, by `steps` quintic Newton–Schulz steps; kept for fidelity.

  project: logits (n, n, *tokens); Y₀ = X/(‖X‖_F + 1e-7), Y ← 3Y − 3.2 YYᵀY + 1.2 (YYᵀ)²Y. Doubly stochastic only as far
  as Y is orthogonal. Its published start, 8I − 8·11ᵀ, gives exactly 11ᵀ/n at n = 4: every stream the same. Source:
  tokenbender.

  Raises ConfigError for steps below 1.

  >>> mixer = jp.OrthostochasticNewtonSchulz()
  >>> bool(mixer.distance(mixer.project(jnp.eye(2), 2)) < 0.3)  # near the set, not on it
  True
  """

  steps: int = 5

  def __post_init__(self) -> None:
    if self.steps < 1:
      raise ConfigError(f"steps={self.steps}: expected a positive integer.")

  @property
  def traits(self) -> Traits:
    """Doubly stochastic as far as Y is orthogonal."""
    return dataclasses.replace(super().traits, set="near orthostochastic", exact=False)

  def logit_shape(self, n: int) -> tuple[int, ...]:
    """(n, n)."""
    return (n, n)

  def identity_logits(self, n: int, strength: float) -> Float[Array, "{n} {n}"]:
    """I."""
    return jnp.eye(n)

  def random(self, key: Array, n: int) -> Float[Array, "{n} {n}"]:
    """The squared entries of a Haar-distributed rotation."""
    return linear.haar(key, n) ** 2

  def _project(self, logits: Array, n: int) -> Array:
    tiny = jnp.finfo(logits.dtype).tiny
    norm = jnp.sqrt(jnp.sum(logits * logits, axis=(0, 1), keepdims=True) + tiny)
    y = odd_iteration(logits / (norm + 1e-7), (_NEWTON_SCHULZ,) * self.steps)
    return y * y
