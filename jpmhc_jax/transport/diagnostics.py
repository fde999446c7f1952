"""What a map does to a latent space: retrieval, geometry, spectrum and calibration, and an alarm for collapse."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from jpmhc_jax.core.fields import check_number, check_whole
from jpmhc_jax.transport.jacobians import PointMap
from jpmhc_jax.transport.maps import check_pairs
from jpmhc_jax.transport.points import centred, check_cloud, Rows, wide

__all__ = [
  "CollapseAlarm", "calibration_error", "cka", "effective_rank", "local_distortion", "neighbour_overlap",
  "procrustes_distance", "recall",
]  # fmt: skip


def _unit(rows: Rows) -> Array:
  x = wide(rows)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def recall(image: Rows, y: Rows) -> dict[str, Float[Array, ""]]:
  """Retrieval by cosine of the pairs of rows: recall@{1, 5, 10} from image to y and back, median rank, mean cosine.

  A rank counts strictly better candidates and half of the equal ones, so that a collapsed map does not look right.
  Raises DataError as `check_pairs` does.

  >>> float(jp.transport.recall(jnp.eye(4), jnp.eye(4))["recall@1"])
  1.0
  """
  check_pairs(image, y, ("image", "y"))
  cosines = _unit(image) @ _unit(y).T
  right = jnp.diagonal(cosines)
  values: dict[str, Array] = {"cosine": jnp.mean(right)}
  for suffix, matrix in (("", cosines), ("_back", cosines.T)):
    better = jnp.sum(matrix > right[:, None], axis=1)
    equal = jnp.sum(matrix == right[:, None], axis=1) - 1
    rank = better + 0.5 * equal
    values |= {f"recall@{k}{suffix}": jnp.mean(rank < k) for k in (1, 5, 10)}
    values[f"median_rank{suffix}"] = jnp.median(rank) + 1
  return values


def neighbour_overlap(x: Rows, image: Rows, neighbours: int = 10) -> Float[Array, ""]:
  """Mean share of the nearest neighbours of each point that its image has too. Raises ConfigError for too many.

  >>> x = jax.random.normal(jax.random.key(0), (20, 3))
  >>> float(jp.transport.neighbour_overlap(x, 2 * x[:, ::-1], 5))
  1.0
  """
  check_pairs(x, image, ("x", "image"))
  n = len(x)
  check_whole("neighbours", neighbours, ge=1, lt=n)

  def nearest(points: Rows) -> Array:
    p = wide(points)
    square = jnp.sum(p * p, axis=1)
    distance = square[:, None] + square[None] - 2 * p @ p.T + jnp.where(jnp.eye(n, dtype=bool), jnp.inf, 0.0)
    rows = jax.lax.top_k(-distance, neighbours)[1]
    return jnp.zeros((n, n), bool).at[jnp.arange(n)[:, None], rows].set(True)

  return jnp.sum(nearest(x) & nearest(image)) / (n * neighbours)


def cka(x: Rows, y: Rows) -> Float[Array, ""]:
  """Linear centred kernel alignment |YᵀX|²_F / (|XᵀX|_F |YᵀY|_F), 1 for an isometry. Source: Kornblith et al. 2019.

  >>> x = jax.random.normal(jax.random.key(0), (20, 3))
  >>> round(float(jp.transport.cka(x, 3 * x[:, ::-1] + 1)), 4)
  1.0
  """
  check_pairs(x, y)
  x, y = centred(wide(x)), centred(wide(y))
  return jnp.sum((y.T @ x) ** 2) / jnp.maximum(jnp.linalg.norm(x.T @ x) * jnp.linalg.norm(y.T @ y), 1e-30)


def procrustes_distance(x: Rows, y: Rows) -> Float[Array, ""]:
  """2 − 2 |YᵀX|_* of clouds that are centred and of Frobenius norm 1: 0 where a rotation and a scale make them equal.

  >>> x = jax.random.normal(jax.random.key(0), (20, 3))
  >>> bool(jp.transport.procrustes_distance(x, 3 * x[:, ::-1] + 1) < 1e-5)
  True
  """
  check_pairs(x, y)
  x, y = (_of_own_width(p / jnp.maximum(jnp.linalg.norm(p), 1e-30)) for p in (centred(wide(x)), centred(wide(y))))
  return 2 - 2 * jnp.sum(jnp.linalg.svd(y.T @ x, compute_uv=False))


def _of_own_width(rows: Float[Array, "n d"]) -> Float[Array, "n r"]:
  """The rows in coordinates of the min(n, d) directions that they can have: their products stay as they are."""
  return rows if rows.shape[1] <= len(rows) else jnp.linalg.qr(rows.T, mode="r").T


def effective_rank(x: Rows) -> Float[Array, ""]:
  """exp of the entropy of the eigenvalues of the covariance over their sum: from 1 to d. Source: Roy & Vetterli 2007.

  Raises DataError for points that are not finite.

  >>> round(float(jp.transport.effective_rank(jnp.concatenate([jnp.eye(3), -jnp.eye(3)]))), 4)
  3.0
  """
  check_cloud("x", x)
  p = centred(wide(x))
  values = jnp.linalg.eigvalsh(p.T @ p if p.shape[1] <= len(p) else p @ p.T)
  share = jnp.maximum(values, 0) / jnp.maximum(jnp.sum(jnp.maximum(values, 0)), 1e-30)
  return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0)))


def local_distortion(
  f: PointMap, x: Float[Array, "n m"], basis: Float[Array, "n m r"], key: Key[Array, ""], size: float = 1e-2
) -> Float[Array, " n"]:
  """|f(x + δ) − f(x)| / |δ| of a random tangent step of length `size` at each point; 1 for an isometry.

  >>> x, basis = jnp.ones((4, 2)), jnp.broadcast_to(jnp.eye(2), (4, 2, 2))
  >>> jp.transport.local_distortion(lambda x: 3 * x, x, basis, jax.random.key(0)).round(2).tolist()
  [3.0, 3.0, 3.0, 3.0]
  """
  step = jnp.einsum("nmr,nr->nm", basis, jax.random.normal(key, (len(x), basis.shape[2]), x.dtype))
  step = size * step / jnp.linalg.norm(step, axis=1, keepdims=True)
  moved = jax.vmap(f)(x + step) - jax.vmap(f)(x)
  result: Array = jnp.linalg.norm(moved, axis=1) / size
  return result


def calibration_error(probabilities: Float[Array, "n c"], labels: Int[Array, " n"], bins: int = 10) -> Float[Array, ""]:
  """Expected calibration error: Σ over `bins` bins of confidence of (share of rows) |accuracy − mean confidence|.

  >>> float(jp.transport.calibration_error(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([0, 1])))
  0.5
  """
  confidence, right = jnp.max(probabilities, axis=1), jnp.argmax(probabilities, axis=1) == labels
  member = jax.nn.one_hot(jnp.minimum((confidence * bins).astype(jnp.int32), bins - 1), bins)
  return jnp.sum(jnp.abs((right - confidence) @ member)) / len(labels)


@dataclasses.dataclass
class CollapseAlarm:
  """Fires where a quantity that must not vanish falls below `share` of its largest value so far, for `patience` looks.

  Raises ConfigError for fields out of range.

  >>> alarm = jp.transport.CollapseAlarm(share=0.5, patience=1)
  >>> alarm.look({"effective_rank": 8.0}), alarm.look({"effective_rank": 3.0})
  ((), ('effective_rank=3 fell below 0.5 of 8',))
  """

  share: float = 0.5
  patience: int = 2
  _best: dict[str, float] = dataclasses.field(default_factory=dict)
  _low: dict[str, int] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    check_number("share", self.share, gt=0, lt=1)
    check_whole("patience", self.patience, ge=1)

  def look(self, values: Mapping[str, float]) -> tuple[str, ...]:
    """What has collapsed, in words; () while nothing has. A value that is no number counts as collapsed."""
    alarms = []
    for name, value in values.items():
      best = self._best[name] = np.nanmax([self._best.get(name, -np.inf), value])
      self._low[name] = 0 if value >= self.share * best else self._low.get(name, 0) + 1
      if self._low[name] >= self.patience:
        alarms.append(f"{name}={value:.3g} fell below {self.share:g} of {best:.3g}")
    return tuple(alarms)
