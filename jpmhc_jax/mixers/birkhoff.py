"""Doubly stochastic mixers: nonnegative, every row and every column sums to one.

They keep the stream mean and never lengthen a stream difference, so depth shrinks differences: products drift to 11ᵀ/n.
"""

import dataclasses
import functools
import math

from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from jpmhc_jax.core.errors import check_choice, ConfigError
from jpmhc_jax.linalg import linear, scaling
from jpmhc_jax.mixers.base import Mixer, Traits

__all__ = ["BirkhoffNewton", "DoublyStochastic", "EpsilonSinkhorn", "Sinkhorn", "gauss_seidel_sweeps"]

# Gauss–Seidel sweeps that JPmHC publishes for n streams: ln 0.01 / ln(1 − 1/n), kept in [10, 50]; its n = 8 entry is
# 37.
_PUBLISHED_SWEEPS = {2: 7, 3: 12, 4: 16, 5: 21, 6: 26, 8: 37}
_LARGEST_BOUNDED_CLIP = 20.0


def gauss_seidel_sweeps(n: int) -> int:
  """The published number of backward sweeps for n streams."""
  if n == 1:
    return 10
  return min(max(_PUBLISHED_SWEEPS.get(n, math.ceil(math.log(0.01) / math.log(1 - 1 / n))), 10), 50)


class DoublyStochastic(Mixer):
  """What every chart of the Birkhoff polytope (or of a part of it) shares."""

  @property
  def traits(self) -> Traits:
    """Rows and columns sum to 1, no entry is negative."""
    return Traits(
      "Birkhoff polytope", row_sums_one=True, column_sums_one=True, nonnegative=True, contractive=True,
      determinant="[−1, 1]", eigenvalues="1 and the closed unit disc", norm="mean kept, differences shrink",
    )  # fmt: skip

  @property
  def manifold(self) -> str:
    """The inside of the Birkhoff polytope."""
    return "birkhoff"

  def dimension(self, n: int) -> int:
    """(n − 1)²: the last row and column follow from the sums."""
    return (n - 1) ** 2


class _Scaled(DoublyStochastic):
  """Charts on n x n logits in which I is a limit: k·I gives the diagonal e^k / (e^k + n − 1)."""

  def logit_shape(self, n: int) -> tuple[int, ...]:
    return (n, n)

  def identity_logits(self, n: int, strength: float) -> Float[Array, "{n} {n}"]:
    return strength * jnp.eye(n)


@dataclasses.dataclass(frozen=True)
class Sinkhorn(_Scaled):
  """Birkhoff polytope by Sinkhorn–Knopp sweeps.

  project: logits (n, n, *tokens) -> P (n, n, *tokens): X = clip(logits/τ, ±clip), then `sweeps` times rows, columns (or
  the other order) of exp(X) are normalised. The last sums normalised are one to rounding, the others to `distance`.
  adjoint: "unrolled" = exact gradient of the sweeps as they run, by sweeps backward over vectors of n numbers;
  "implicit" = gradient of the fixed point, by a direct solve at the P of the last sweep: right only where the sweeps
  have converged (off by 6 % at a diagonal bias of 4 and 53 % at 6); "gauss_seidel" = the published approximation of it.
  The clip has no gradient outside. Saved for the backward pass: one matrix (exp(X), or P) and the mask of the clip.
  Source: mHC (2512.24880), JPmHC (2602.18308): 20 sweeps, clip 10, rows first; mhc-lite, lucidrains: columns first and
  no clip.

  Raises ConfigError for an unknown adjoint or order, and for a negative clip or temperature.

  >>> p = jp.Sinkhorn(sweeps=20).random(jax.random.key(0), 4)
  >>> bool(jnp.allclose(p.sum(0), 1, atol=1e-5)) and bool(p.min() > 0)
  True
  """

  sweeps: int = 20
  adjoint: str = "unrolled"
  clip: float = 10.0  # 0 = none; then the sweeps run in the log domain
  temperature: float = 1.0
  order: str = "rows_first"

  def __post_init__(self) -> None:
    check_choice("adjoint", self.adjoint, ("implicit", "gauss_seidel", "unrolled"))
    check_choice("order", self.order, ("rows_first", "columns_first"))
    _check_positive(sweeps=self.sweeps, temperature=self.temperature)
    if self.clip < 0:
      raise ConfigError(f"clip={self.clip}: expected 0 (none) or a positive bound, e.g. clip=10.")

  @property
  def traits(self) -> Traits:
    """The polytope's as far as the sweeps come; the identity, of infinite logits, is only approached."""
    return dataclasses.replace(super().traits, exact=False, contains_identity=False)

  def published_flops(self, n: int) -> tuple[int, int]:
    """n² per sweep, forward; backward the published Gauss–Seidel sweeps."""
    return self.sweeps * n * n, gauss_seidel_sweeps(n) * n * n

  def _project(self, logits: Array, n: int) -> Array:
    scaled = logits / self.temperature
    if self.clip:
      scaled = jnp.clip(scaled, -self.clip, self.clip)
    if self.order == "columns_first":
      return linear.transpose(self._rows_first(linear.transpose(scaled), n))
    return self._rows_first(scaled, n)

  def _rows_first(self, logits: Array, n: int) -> Array:
    bounded = 0 < self.clip <= _LARGEST_BOUNDED_CLIP
    forward = functools.partial(scaling.sinkhorn_bounded if bounded else scaling.sinkhorn_log, sweeps=self.sweeps)
    if self.adjoint == "unrolled":
      return forward(logits)
    if self.adjoint == "implicit":
      backward = scaling.implicit_vjp
    else:
      backward = functools.partial(scaling.gauss_seidel_vjp, sweeps=gauss_seidel_sweeps(n))
    result: Array = scaling.with_adjoint(logits, forward, backward)
    return result


@dataclasses.dataclass(frozen=True)
class BirkhoffNewton(_Scaled):
  """Birkhoff polytope by Newton steps on the dual: doubly stochastic to rounding, for any n and any logits.

  project: logits (n, n, *tokens) -> P (n, n, *tokens), the scaling of exp(clip(logits, ±clip)) to row and column sums
  one, which is the Kullback–Leibler projection. `sweeps` Sinkhorn sweeps start it; damped Newton steps finish it, until
  the sums are one to rounding or `steps` are done: four at unit logits, fourteen at the corners of clip=10, forty-eight
  at those of clip=20, which the default leaves 2e-3 from the set. The backward pass is the exact implicit gradient and
  saves P and one bit an entry.
  Source: mHC-proj (2606.07574), there for n = 4 with a line search.

  >>> p = jp.BirkhoffNewton().random(jax.random.key(0), 4)
  >>> bool(jnp.allclose(p.sum(0), 1, atol=1e-6)) and bool(jnp.allclose(p.sum(1), 1, atol=1e-6))
  True
  """

  sweeps: int = 3
  steps: int = 24
  clip: float = 10.0

  def __post_init__(self) -> None:
    _check_positive(sweeps=self.sweeps, steps=self.steps, clip=self.clip)
    if self.clip > _LARGEST_BOUNDED_CLIP:
      raise ConfigError(f"clip={self.clip}: expected at most {_LARGEST_BOUNDED_CLIP:g}, the float32 range.")

  @property
  def traits(self) -> Traits:
    """The polytope's, to rounding where `steps` reach it at any logits; the identity is only approached."""
    needed = 24 if self.clip <= 10 else 48
    return dataclasses.replace(super().traits, contains_identity=False, exact=self.steps >= needed)

  def _project(self, logits: Array, n: int) -> Array:
    forward = functools.partial(scaling.newton, sweeps=self.sweeps, steps=self.steps)
    result: Array = scaling.with_adjoint(jnp.clip(logits, -self.clip, self.clip), forward, scaling.implicit_vjp)
    return result


@dataclasses.dataclass(frozen=True)
class EpsilonSinkhorn(_Scaled):
  """Sinkhorn–Knopp with epsilon in every divisor, to load checkpoints of others; gradient of the sweeps as computed.

  softmax_first=True: DeepSeek's order (TileKernels, Liger, MaxText, vLLM): row softmax + ε, columns, then sweeps − 1
  times rows, columns. False: exp without a shift, then `sweeps` times rows, columns (edelta with ε = 1e-8); logits are
  clipped at ±40 there so that the divisors of twenty sweeps and their gradient stay inside float32.

  Raises ConfigError for a number of sweeps or an epsilon that is not positive.

  >>> mixer = jp.EpsilonSinkhorn(epsilon=1e-2)
  >>> bool(mixer.distance(mixer.random(jax.random.key(0), 4)) < 0.05)  # epsilon takes its share of every sum
  True
  """

  sweeps: int = 20
  epsilon: float = 1e-6
  softmax_first: bool = True

  def __post_init__(self) -> None:
    _check_positive(sweeps=self.sweeps, epsilon=self.epsilon)

  @property
  def traits(self) -> Traits:
    """The polytope's as far as the sweeps and ε let them come; the identity is only approached."""
    return dataclasses.replace(super().traits, exact=False, contains_identity=False)

  def _project(self, logits: Array, n: int) -> Array:
    bounded = logits if self.softmax_first else jnp.clip(logits, -40.0, 40.0)
    return scaling.sinkhorn_epsilon(bounded, self.sweeps, self.epsilon, self.softmax_first)


def _check_positive(**values: float | int) -> None:
  for name, value in values.items():
    if value <= 0:
      raise ConfigError(f"{name}={value}: expected a positive number.")
