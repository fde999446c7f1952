"""Maps between latent spaces, R^m -> R^k: rules with parameters as plain dicts, and one NNX module around any of them.

rule = jp.transport.OrthogonalMap(64, 96)
parameters = rule.fit(x, y)                       # or rule.init(key)
z = rule(parameters, x)                           # (…, 64) -> (…, 96)
module = jp.transport.TransportMap(rule, rngs=nnx.Rngs(0))
"""

import abc
from collections.abc import Mapping
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped
import numpy as np

from jpmhc_jax.core.errors import DataError, require
from jpmhc_jax.core.fields import check_number, check_whole
from jpmhc_jax.manifolds import Stiefel
from jpmhc_jax.transport.points import check_cloud, Rows, wide

__all__ = [
  "Chain", "Fixed", "LinearMap", "MapRule", "OrthogonalMap", "Parameters", "SpectralMap", "TransportMap",
  "check_pairs",
]  # fmt: skip

Parameters = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class MapRule(abc.ABC):
  """A map R^source -> R^target; its parameters are a flat dict of float32 arrays.

  roles names what moves each parameter: "trunk" any optimiser, "manifold:stiefel" Riemannian steps
  (`jp.optim.cayley_adam`), "fixed" nothing. Raises ConfigError for sizes below 1.

  >>> rule = jp.transport.LinearMap(3, 2)
  >>> rule(rule.init(jax.random.key(0)), jnp.ones((5, 3))).shape
  (5, 2)
  """

  source: int
  target: int

  def __post_init__(self) -> None:
    check_whole("source", self.source, ge=1)
    check_whole("target", self.target, ge=1)

  @property
  def rank(self) -> int:
    """min(source, target): how many singular values a Jacobian has."""
    return min(self.source, self.target)

  @property
  @abc.abstractmethod
  def roles(self) -> dict[str, str]:
    """What moves each parameter."""

  @abc.abstractmethod
  def init(self, key: Key[Array, ""]) -> dict[str, Array]:
    """Parameters before training."""

  @abc.abstractmethod
  def apply(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, "n k"]:
    """The map of rows, in float32 or wider."""

  def log_volumes(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, " n"] | None:
    """log Π σ_i of the Jacobian at each row where it is exact in closed form; None where it is not."""
    return None

  def scale(self, parameters: Parameters) -> Float[Array, ""] | None:
    """s of a scaled isometry, whose singular values are all s; None for every other map."""
    return None

  def singular_values(self, parameters: Parameters) -> Float[Array, " r"] | None:
    """Singular values of a linear map, largest first; None for a map whose Jacobian depends on the point."""
    return None

  def affine(self, parameters: Parameters) -> tuple[Float[Array, "m k"], Float[Array, " k"]] | None:
    """W and c of a map y = x W + c; None for a nonlinear one."""
    return None

  def check_fit(self, x: Rows, y: Rows) -> None:
    """Raises DataError unless x and y are pairs of rows of source and target features."""
    check_pairs(x, y)
    for name, rows, side in (("x", x, "source"), ("y", y, "target")):
      if rows.shape[1] != getattr(self, side):
        raise DataError(f"{name} has {rows.shape[1]} features: expected {side}={getattr(self, side)}")

  def __call__(self, parameters: Parameters, x: Shaped[Array | np.ndarray, "*batch m"]) -> Shaped[Array, "*batch k"]:
    """The image of x (…, source), (…, target) in the dtype of x. Raises DataError for another width."""
    if x.shape[-1] != self.source:
      raise DataError(f"x has {x.shape[-1]} features: expected source={self.source}")
    rows = jnp.asarray(x)
    image = self.apply(parameters, wide(rows).reshape(-1, self.source))
    return image.reshape(*x.shape[:-1], self.target).astype(rows.dtype)


def check_pairs(x: Rows, y: Rows, names: tuple[str, str] = ("x", "y")) -> None:
  """Raises DataError unless x and y, by their `names` for the caller, are finite and have the same number of rows, two
  at least."""
  for name, rows in zip(names, (x, y), strict=True):
    check_cloud(name, rows, 2)
  if len(x) != len(y):
    raise DataError(f"{names[0]} has {len(x)} rows and {names[1]} {len(y)}: expected pairs, row by row")


def _moments(given_x: Rows, given_y: Rows, weights: Array | None) -> tuple[Array, Array, Array, Array, Array]:
  """Normalised weights, both means, both centred clouds."""
  x, y = wide(given_x), wide(given_y)
  w = jnp.full((len(x),), 1 / len(x), x.dtype) if weights is None else weights / jnp.sum(weights)
  mean_x, mean_y = w @ x, w @ y
  return w, mean_x, mean_y, x - mean_x[None], y - mean_y[None]


@dataclasses.dataclass(frozen=True)
class OrthogonalMap(MapRule):
  """y = s Q x + c with orthonormal columns (source <= target) or rows of Q: all singular values are s.

  Q is held as a point of the Stiefel manifold, `frame` (max, min). scaled: s is learned, else 1. `fit` is the
  orthogonal Procrustes solution with the least-squares scale, exact for source <= target.
  Raises ConfigError as `MapRule` does, `fit` DataError as `check_pairs` does. Source: Schönemann 1966.

  >>> rule = jp.transport.OrthogonalMap(2, 2)
  >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
  >>> turned = 2 * x @ jnp.array([[0.0, 1.0], [-1.0, 0.0]]) + 3
  >>> bool(jnp.allclose(rule(rule.fit(x, turned), x), turned, atol=1e-5))
  True
  """

  scaled: bool = True

  @property
  def roles(self) -> dict[str, str]:
    trained = {"frame": "manifold:stiefel", "shift": "trunk"}
    return trained | ({"log_scale": "trunk"} if self.scaled else {})

  def init(self, key: Key[Array, ""]) -> dict[str, Array]:
    frame = Stiefel().random(key, (max(self.source, self.target), self.rank))
    return self._parameters(frame, jnp.zeros(self.target, jnp.float32), jnp.ones((), jnp.float32))

  def _parameters(self, frame: Array, shift: Array, scale: Array) -> dict[str, Array]:
    return {"frame": frame, "shift": shift} | ({"log_scale": jnp.log(scale)} if self.scaled else {})

  def matrix(self, parameters: Parameters) -> Float[Array, "m k"]:
    """s Qᵀ, which acts on rows."""
    frame = parameters["frame"]
    q = frame.T if self.target >= self.source else frame
    return q * self.scale(parameters)

  def apply(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, "n k"]:
    return x @ self.matrix(parameters) + parameters["shift"][None]

  def affine(self, parameters: Parameters) -> tuple[Float[Array, "m k"], Float[Array, " k"]]:
    return self.matrix(parameters), parameters["shift"]

  def scale(self, parameters: Parameters) -> Float[Array, ""]:
    return jnp.exp(parameters["log_scale"]) if self.scaled else jnp.ones((), parameters["frame"].dtype)

  def singular_values(self, parameters: Parameters) -> Float[Array, " r"]:
    return jnp.broadcast_to(self.scale(parameters), (self.rank,))

  def log_volumes(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, " n"]:
    return jnp.broadcast_to(self.rank * jnp.log(self.scale(parameters)), (len(x),))

  def fit(self, x: Rows, y: Rows, weights: Array | None = None) -> dict[str, Array]:
    """Parameters that minimise Σ w |s Q x + c − y|²; pairs by rows. For a plan, y is `plan.barycentres(y)`."""
    self.check_fit(x, y)
    w, mean_x, mean_y, x, y = _moments(x, y, weights)
    cross = y.T @ (w[:, None] * x)  # (k, m)
    frame = Stiefel().project(cross if self.target >= self.source else cross.T)
    q = frame if self.target >= self.source else frame.T
    moved = x @ q.T
    energy = jnp.sum(w[:, None] * moved * moved)
    tiny = jnp.finfo(x.dtype).tiny
    scale = jnp.maximum(jnp.sum(w[:, None] * moved * y) / jnp.maximum(energy, tiny), tiny)
    scale = scale if self.scaled else jnp.ones_like(scale)
    return self._parameters(frame, mean_y - scale * (q @ mean_x), scale)


@dataclasses.dataclass(frozen=True)
class LinearMap(MapRule):
  """y = x W + c without a constraint, the baseline. `fit` is ridge regression with λ = ridge · mean eigenvalue of XᵀX.

  Raises ConfigError for a negative ridge, and as `MapRule` does.

  >>> rule = jp.transport.LinearMap(2, 1)
  >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
  >>> rule(rule.fit(x, x[:, :1] - 2 * x[:, 1:] + 1), x).round(3).ravel().tolist()
  [1.0, 2.0, -1.0]
  """

  ridge: float = 1e-6

  def __post_init__(self) -> None:
    super().__post_init__()
    check_number("ridge", self.ridge, ge=0)

  @property
  def roles(self) -> dict[str, str]:
    return {"kernel": "trunk", "shift": "trunk"}

  def init(self, key: Key[Array, ""]) -> dict[str, Array]:
    frame = Stiefel().random(key, (max(self.source, self.target), self.rank))
    kernel = frame.T if self.target >= self.source else frame
    return {"kernel": kernel, "shift": jnp.zeros(self.target, jnp.float32)}

  def apply(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, "n k"]:
    return x @ parameters["kernel"] + parameters["shift"][None]

  def affine(self, parameters: Parameters) -> tuple[Float[Array, "m k"], Float[Array, " k"]]:
    return parameters["kernel"], parameters["shift"]

  def singular_values(self, parameters: Parameters) -> Float[Array, " r"]:
    return jnp.linalg.svd(parameters["kernel"], compute_uv=False)

  def log_volumes(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, " n"]:
    return jnp.broadcast_to(jnp.sum(jnp.log(self.singular_values(parameters))), (len(x),))

  def fit(self, x: Rows, y: Rows, weights: Array | None = None) -> dict[str, Array]:
    """Parameters that minimise Σ w |x W + c − y|² + λ |W|²."""
    self.check_fit(x, y)
    w, mean_x, mean_y, x, y = _moments(x, y, weights)
    covariance = x.T @ (w[:, None] * x)
    eigenvalues, basis = jnp.linalg.eigh(covariance)
    # Directions without variance beyond rounding get no weight.
    floor = 10 * jnp.finfo(x.dtype).eps * eigenvalues[-1]
    inverse = jnp.where(eigenvalues > floor, 1 / (jnp.maximum(eigenvalues, floor) + self._penalty(eigenvalues)), 0.0)
    kernel = basis @ (inverse[:, None] * (basis.T @ (x.T @ (w[:, None] * y))))
    return {"kernel": kernel, "shift": mean_y - mean_x @ kernel}

  def _penalty(self, eigenvalues: Array) -> Array:
    return self.ridge * jnp.mean(eigenvalues)


@dataclasses.dataclass(frozen=True)
class SpectralMap(LinearMap):
  """A linear map whose singular values stay in [low, high]: `project` clips them, after a fit and after each step.

  `jp.optim.clip_singular_values(low, high)` does so behind any optax optimiser. Raises ConfigError unless
  0 < low <= high.

  >>> rule = jp.transport.SpectralMap(2, 2, low=0.5, high=1.5)
  >>> projected = rule.project({"kernel": jnp.diag(jnp.array([3.0, 0.1])), "shift": jnp.zeros(2)})
  >>> print(np.asarray(projected["kernel"]).round(3))
  [[1.5 0. ]
   [0.  0.5]]
  """

  low: float = 0.5
  high: float = 2.0

  def __post_init__(self) -> None:
    super().__post_init__()
    check_number("low", self.low, gt=0)
    require(self.high >= self.low, "high", self.high, f"at least low={self.low}")

  def init(self, key: Key[Array, ""]) -> dict[str, Array]:
    return self.project(super().init(key))

  def project(self, parameters: Parameters) -> dict[str, Array]:
    """The nearest parameters (Frobenius norm) with all singular values in the band."""
    u, s, vt = jnp.linalg.svd(parameters["kernel"], full_matrices=False)
    return {**parameters, "kernel": (u * jnp.clip(s, self.low, self.high)[None]) @ vt}

  def fit(self, x: Rows, y: Rows, weights: Array | None = None) -> dict[str, Array]:
    """The ridge solution with clipped singular values; the means still meet."""
    fitted = self.project(super().fit(x, y, weights))
    _, mean_x, mean_y, _, _ = _moments(x, y, weights)
    return {**fitted, "shift": mean_y - mean_x @ fitted["kernel"]}


@dataclasses.dataclass(frozen=True)
class Chain(MapRule):
  """One map after the other; the parameters of part i are named part<i>_<name>.

  Its log-volume is exact while a factor of the chain does not see only a part of its space: a flow stands before an
  expansion or behind a reduction, where det(A B) = det A · det B. Elsewhere it is left to the Jacobian.
  Raises ConfigError for parts whose sizes do not meet.

  >>> chain = jp.transport.Chain.of(jp.transport.LinearMap(4, 3), jp.transport.OrthogonalMap(3, 5))
  >>> chain.source, chain.target, sorted(chain.roles)[:2]
  (4, 5, ['part0_kernel', 'part0_shift'])
  """

  parts: tuple[MapRule, ...] = ()

  @classmethod
  def of(cls, *parts: MapRule) -> "Chain":
    """The chain of parts, first to last."""
    require(bool(parts), "parts", parts, "at least one map")
    return cls(parts[0].source, parts[-1].target, parts)

  def __post_init__(self) -> None:
    super().__post_init__()
    for before, after in zip(self.parts, self.parts[1:], strict=False):
      require(before.target == after.source, "source", after.source, f"the target={before.target} of the part before")

  @property
  def roles(self) -> dict[str, str]:
    return {f"part{i}_{name}": role for i, part in enumerate(self.parts) for name, role in part.roles.items()}

  def init(self, key: Key[Array, ""]) -> dict[str, Array]:
    keys = jax.random.split(key, len(self.parts))
    each = zip(self.parts, keys, strict=True)
    return {f"part{i}_{name}": value for i, (p, k) in enumerate(each) for name, value in p.init(k).items()}

  def of_part(self, parameters: Parameters, i: int) -> dict[str, Array]:
    """The parameters of part i under their own names."""
    prefix = f"part{i}_"
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}

  def apply(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, "n k"]:
    for i, part in enumerate(self.parts):
      x = part.apply(self.of_part(parameters, i), x)
    return x

  def affine(self, parameters: Parameters) -> tuple[Float[Array, "m k"], Float[Array, " k"]] | None:
    kernel, shift = jnp.eye(self.source), jnp.zeros(self.source)
    for i, part in enumerate(self.parts):
      factor = part.affine(self.of_part(parameters, i))
      if factor is None:
        return None
      kernel, shift = kernel @ factor[0], shift @ factor[0] + factor[1]
    return kernel, shift

  def scale(self, parameters: Parameters) -> Float[Array, ""] | None:
    scales = [part.scale(self.of_part(parameters, i)) for i, part in enumerate(self.parts)]
    if any(s is None for s in scales) or not self._monotone():
      return None
    return jnp.prod(jnp.stack([s for s in scales if s is not None]))

  def _monotone(self) -> bool:
    """Whether the chain only expands or only reduces."""
    sizes = [self.source, *(part.target for part in self.parts)]
    return sizes == sorted(sizes) or sizes == sorted(sizes, reverse=True)

  def log_volumes(self, parameters: Parameters, x: Float[Array, "n m"]) -> Float[Array, " n"] | None:
    total, rank = jnp.zeros(len(x), x.dtype), self.source
    for i, part in enumerate(self.parts):
      own = self.of_part(parameters, i)
      volumes, scale = part.log_volumes(own, x), part.scale(own)
      onto = rank == part.source  # what came before reaches all of this part's space
      grows = part.target >= part.source
      if scale is not None and grows:
        volumes = jnp.broadcast_to(rank * jnp.log(scale), (len(x),))
      elif volumes is None or not onto or (not grows and i > 0) or (part.target > part.source and rank < self.source):
        return None
      total, x, rank = total + volumes, part.apply(own, x), min(rank, part.target)
    return total


class TransportMap(nnx.Module):
  """A map rule as a Flax NNX module that holds its parameters; each carries its logical axes and its optimiser role.

  parameters: those to start from, such as `rule.fit(x, y)`; drawn by default.

  >>> module = jp.transport.TransportMap(jp.transport.OrthogonalMap(4, 6), rngs=nnx.Rngs(0))
  >>> module(jnp.ones((2, 4))).shape
  (2, 6)
  """

  def __init__(self, rule: MapRule, *, rngs: nnx.Rngs, parameters: Parameters | None = None):
    self.rule = rule
    drawn = rule.init(rngs.params()) if parameters is None else parameters
    require(drawn.keys() == rule.roles.keys(), "parameters", sorted(drawn), f"the names {sorted(rule.roles)}")
    for name, role in rule.roles.items():
      value, axes = drawn[name], (None,) * drawn[name].ndim
      setattr(self, name, Fixed(value, axes=axes) if role == "fixed" else nnx.Param(value, axes=axes, role=role))

  def parameters(self) -> dict[str, Array]:
    """The parameters as the rule takes them."""
    return {name: getattr(self, name)[...] for name in self.rule.roles}

  def __call__(self, x: Shaped[Array | np.ndarray, "*batch m"]) -> Shaped[Array, "*batch k"]:
    """The image of x; see `MapRule`."""
    return self.rule(self.parameters(), x)


class Fixed(nnx.Variable[Array]):
  """An array of a map that nothing trains."""
