"""The contract of every mixer set: logits in, matrix on the set out, and how far off any matrix is."""

import abc
import dataclasses
import functools

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Shaped
import numpy as np

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.linalg import linear
from jpmhc_jax.mixers import flops as counting

__all__ = ["Mixer", "Traits", "refuse_streams"]


@dataclasses.dataclass(frozen=True)
class Traits:
  """What is true of every member of a set: drives `distance`, the contract test and the comparison table.

  >>> traits = jp.Sinkhorn().traits
  >>> traits.row_sums_one, traits.nonnegative, traits.orthogonal
  (True, True, False)
  """

  set: str
  row_sums_one: bool = False
  column_sums_one: bool = False
  nonnegative: bool = False
  orthogonal: bool = False
  contractive: bool = False  # ‖H‖₂ <= 1
  contains_identity: bool = True
  exact: bool = True  # project lands on the set to rounding, at any logits; otherwise `distance` reports how far off
  per_token: bool = True
  determinant: str = "any"
  eigenvalues: str = "any"
  norm: str = "free"


class Mixer(abc.ABC):
  """A set of n x n mixers, out[i] = Σ_j H[i, j] x[j]. Subclasses are frozen dataclasses, hence static under jit.

  Sizes are static Python ints; logits may have any token axes behind `logit_shape(n)`, tokens last.

  >>> mixer = jp.Cayley()
  >>> mixer.logit_shape(4), mixer.dimension(4), mixer.traits.set
  ((4, 4), 6, 'SO(n) without eigenvalue −1')
  >>> h = mixer.project(jnp.zeros((4, 4, 3)), 4)  # three tokens
  >>> h.shape, mixer.distance(h).tolist()
  ((4, 4, 3), [0.0, 0.0, 0.0])
  """

  @property
  @abc.abstractmethod
  def traits(self) -> Traits:
    """Properties of the members."""

  @abc.abstractmethod
  def logit_shape(self, n: int) -> tuple[int, ...]:
    """Leading axes of the logits for n streams. Raises ConfigError when the set does not exist for n."""

  @abc.abstractmethod
  def dimension(self, n: int) -> int:
    """Intrinsic dimension of the set."""

  @abc.abstractmethod
  def identity_logits(self, n: int, strength: float) -> Float[Array, "..."]:
    """Logits whose projection is the identity, or as near to it as `strength` (connection.identity_bias) says."""

  @abc.abstractmethod
  def _project(self, logits: Array, n: int) -> Array:
    """The projection for logits that are float32 or float64 and have the right shape."""

  def project(self, logits: Shaped[Array, "..."], n: int) -> Float[Array, "{n} {n} ..."]:
    """Maps logits (*logit_shape(n), *tokens) to H (n, n, *tokens). Computes in float32 (float64 stays), keeps the
    dtype.

    Raises TypeError for logits that are not real floating-point numbers, ValueError when the leading axes are not
    `logit_shape(n)`.
    """
    shape = self.logit_shape(n)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
      raise TypeError(
        f"{type(self).__name__}.project: logits are {logits.dtype}, and the mixer would be rounded to it; "
        "expected floating-point logits, e.g. logits.astype(jnp.float32)."
      )
    if logits.shape[: len(shape)] != shape:
      raise ValueError(
        f"{type(self).__name__}.project: logits have shape {logits.shape}; {n} streams need leading axes {shape}, "
        "then the token axes."
      )
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return self._project(wide, n).astype(logits.dtype)

  def distance(self, matrix: Float[Array, "n n *tokens"]) -> Float[Array, "*tokens"]:
    """Largest absolute violation of the equations (and signs) that define the set."""
    traits, wide = self.traits, matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    checks = (
      (traits.row_sums_one, linear.row_sum_error),
      (traits.column_sums_one, linear.column_sum_error),
      (traits.nonnegative, linear.negativity),
      (traits.orthogonal, linear.orthogonality_error),
      # Doubly stochastic and orthogonal sets are contractive by their other equations.
      (traits.contractive and not traits.orthogonal and not traits.nonnegative, linear.expansion),
    )
    worst = jnp.zeros(wide.shape[2:], wide.dtype)
    for holds, violation in checks:
      if holds:
        worst = jnp.maximum(worst, violation(wide))
    return worst

  @property
  def is_identity(self) -> bool:
    """Whether H = I at any logits, so that nobody needs to multiply by it."""
    return False

  @property
  def manifold(self) -> str | None:
    """Name of the manifold whose points are the members (`connections.MANIFOLDS`), for a mixer that is stored as a
    matrix instead of as logits; None where the members are no manifold of their own."""
    if not self.traits.orthogonal:
      return None
    return "iso" if self.traits.row_sums_one else "orthogonal"

  def initial_point(self, n: int, strength: float) -> Float[Array, "n p"]:
    """Where a stored mixer starts, up to the manifold's own projection: H of `identity_logits`."""
    return self.project(jnp.asarray(self.identity_logits(n, strength), jnp.float32), n)

  def of_point(self, point: Float[Array, "n p"]) -> Float[Array, "n n"]:
    """H of a point of the manifold: the point itself."""
    return point

  def random(self, key: Array, n: int) -> Float[Array, "{n} {n}"]:
    """A random member: the projection of standard normal logits unless the set has a natural measure."""
    return self.project(jax.random.normal(key, self.logit_shape(n)), n)

  def identity_error(self, n: int, strength: float) -> float:
    """max |project(identity_logits(n, strength)) − I|; 0.0 for sets that reach the identity exactly."""

    with jax.ensure_compile_time_eval():
      return float(_distance_to_identity(self, n, self.identity_logits(n, strength)))

  def flops(self, n: int) -> tuple[int, int]:
    """Exact floating-point operations a token, (forward, backward), counted in the traced program (see `flops`)."""
    return counting.forward_and_backward(lambda logits: self.project(logits, n), self.logit_shape(n))

  def published_flops(self, n: int) -> tuple[int, int] | None:
    """The JPmHC paper's own count for this family, where it gives one; its conventions are coarser than ours."""
    del n
    return None


@functools.partial(jax.jit, static_argnums=(0, 1))
def _distance_to_identity(mixer: Mixer, n: int, logits: Array) -> Array:
  return jnp.max(jnp.abs(mixer.project(logits, n) - np.eye(n, dtype=np.float32)))


def refuse_streams(family: str, n: int, expected: str, remedy: str) -> ConfigError:
  """The error of a family that does not exist for n streams."""
  return ConfigError(f"streams={n}: {family!r} needs {expected}; {remedy}.")
