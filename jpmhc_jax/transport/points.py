"""Clouds of points as transport sees them: checks, weights and costs in the form α_i + β_j − ⟨u_i, v_j⟩."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
import numpy as np

from jpmhc_jax.core.errors import DataError

__all__ = [
  "Features", "Rows", "centred", "check_cloud", "check_finite", "check_image", "check_points", "cosine",
  "squared_euclidean", "unit_of", "weights", "wide",
]  # fmt: skip

Rows = Shaped[Array | np.ndarray, "_ _"]  # a cloud as a caller passes it
Features = tuple[Float[Array, "n e"], Float[Array, "m e"], Float[Array, " n"], Float[Array, " m"]]  # u, v, α, β


def wide(x: Shaped[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
  """The points in float32, or float64 where they are."""
  return jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32))


def check_finite(name: str, x: Any) -> None:
  """Raises DataError for NaN and infinities, where values are at hand."""
  if isinstance(x, jax.core.Tracer):
    return
  bad = ~np.isfinite(np.asarray(x, np.float64))
  if bad.any():
    row = int(np.argwhere(bad)[0][0]) if bad.ndim else 0
    raise DataError(f"{name}: row {row} has {int(bad.sum())} values that are not finite; expected numbers")


def check_cloud(name: str, points: Any, least: int = 1) -> None:
  """Raises DataError unless these are finite points (n, d), with n of at least `least`."""
  if points.ndim != 2 or points.shape[0] < least or points.shape[1] < 1:
    raise DataError(f"{name} has the shape {points.shape}: expected points (n, d) with n of at least {least}")
  check_finite(name, points)


def check_points(x: Any, y: Any) -> None:
  """Raises DataError unless both are clouds (n, d), (m, d) of finite points with n, m >= 1."""
  check_cloud("x", x)
  check_cloud("y", y)
  if x.shape[1] != y.shape[1]:
    raise DataError(
      f"x has {x.shape[1]} features and y {y.shape[1]}: expected the same number; gromov_wasserstein compares others"
    )


def check_image(image: Any, y: Any) -> None:
  """Raises DataError unless an image and its target are points of one space."""
  if image.shape[1] != y.shape[1]:
    raise DataError(f"image has {image.shape[1]} features and y {y.shape[1]}: expected the same number")


def weights(name: str, given: Any, n: int, dtype: Any) -> Float[Array, " n"]:
  """Weights of n points, 1/n by default, without a gradient. Raises DataError for negative ones or a wrong number."""
  if given is None:
    return jnp.full((n,), 1 / n, dtype)
  values = jax.lax.stop_gradient(jnp.asarray(given, dtype))
  if values.shape != (n,):
    raise DataError(f"{name} has the shape {values.shape}: expected one weight per point, ({n},)")
  check_finite(name, values)
  if not isinstance(values, jax.core.Tracer) and (bool(jnp.any(values < 0)) or not bool(jnp.any(values > 0))):
    raise DataError(
      f"{name}: the least weight is {float(jnp.min(values))}; expected weights >= 0 that are not all zero"
    )
  return values


def squared_euclidean(x: Rows, y: Rows) -> Features:
  """|x_i − y_j|² from points around their common mean, which loses fewest digits."""
  x, y = wide(x), wide(y)
  middle = jax.lax.stop_gradient(0.5 * (jnp.mean(x, axis=0) + jnp.mean(y, axis=0)))  # the cost does not depend on it
  x, y = x - middle[None], y - middle[None]
  return 2 * x, y, jnp.sum(x * x, axis=1), jnp.sum(y * y, axis=1)


def unit_of(cost: Float[Array, ""]) -> Float[Array, ""]:
  """A mean cost as the unit of ε, without a gradient; 1 for points that all coincide, which have none but rounding."""
  mean = jax.lax.stop_gradient(cost)
  return jnp.where(mean > jnp.finfo(mean.dtype).tiny ** 0.5, mean, jnp.ones_like(mean))


def centred(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
  """The points around their mean."""
  return x - jnp.mean(x, axis=0, keepdims=True)


def cosine(x: Rows, y: Rows) -> Features:
  """1 − cos(x_i, y_j); a zero row has the cosine 0 with every other, and no gradient."""
  u, v = _unit(wide(x)), _unit(wide(y))
  return u, v, jnp.ones(len(u), u.dtype), jnp.zeros(len(v), v.dtype)


def _unit(x: Array) -> Array:
  largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
  x = x / jnp.where(largest > 0, jax.lax.stop_gradient(largest), 1.0)  # squares stay in range
  square = jnp.sum(x * x, axis=1, keepdims=True)
  return jnp.where(square > 0, x / jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
