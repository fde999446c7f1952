"""Losses of maps: what keeps the geometry of the Jacobian, and what brings two clouds together.

J is the Jacobian (k x m) at one point, M = JᵀJ − I. Losses of the Jacobian take f: (m,) -> (k,) and a point; `jax.vmap`
takes a batch. Estimators take a key, and are unbiased in the exact value that their docstring names.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from jpmhc_jax.core.fields import check_number, check_whole
from jpmhc_jax.transport.jacobians import jacobian, log_volume, PointMap
from jpmhc_jax.transport.maps import check_pairs
from jpmhc_jax.transport.points import check_cloud, check_image, Rows, wide

__all__ = [
  "contrastive", "isometry", "isometry_estimate", "isometry_penalty", "mmd", "negative_log_likelihood",
  "one_probe_isometry", "relaxed_isometry", "relaxed_isometry_estimate", "tangent_basis", "tangent_isometry",
  "tangent_isometry_estimate", "trace_isometry", "trace_isometry_estimate", "volume",
]  # fmt: skip

_ENTRIES = 2**22


def isometry(f: PointMap, x: Float[Array, " m"]) -> Float[Array, ""]:
  """|JᵀJ − I|²_F = Σ (σ² − 1)²: zero where every singular value is 1.

  >>> float(jp.transport.isometry(lambda x: 2 * x, jnp.ones(3)))
  27.0
  """
  j = jacobian(f, x)
  gram = j.T @ j
  return jnp.sum((gram - jnp.eye(len(x), dtype=gram.dtype)) ** 2)


def isometry_estimate(f: PointMap, x: Float[Array, " m"], key: Key[Array, ""], probes: int = 2) -> Float[Array, ""]:
  """`isometry` without bias: the mean over pairs of independent Gaussian probes of (⟨Jv, Jw⟩ − ⟨v, w⟩)².

  `probes` Jacobian-vector products give probes·(probes − 1)/2 pairs. Raises ConfigError for fewer than two probes.

  >>> estimate = jp.transport.isometry_estimate(lambda x: jnp.flip(x), jnp.ones(3), jax.random.key(0))
  >>> bool(estimate < 1e-10)
  True
  """
  check_whole("probes", probes, ge=2)
  v = jax.random.normal(key, (probes, len(x)), x.dtype)
  return _pair_mean(v, _pushed(f, x, v))


def isometry_penalty(
  f: PointMap,
  points: Float[Array, "n m"],
  key: Key[Array, ""],
  probes: int = 2,
  share: float = 1.0,
  basis: Float[Array, "n m r"] | None = None,
) -> Float[Array, ""]:
  """The mean of `isometry` over points, or with a basis that of `tangent_isometry`, without bias and at any price.

  f: rows (n, m) -> (n, k), each row on its own; a probe is one Jacobian-vector product of all. Only a share of the
  points is probed, evenly spaced from a random one on, so that each is as likely. p probes at c points vary by

    (4 (p − 2) tr M⁴ + 2 tr(M²)² + 6 tr M⁴) · 2 / (p (p − 1) c)

  beside that between the points. Raises ConfigError for fewer than two probes and a share outside (0, 1], DataError
  without points.

  >>> x = jax.random.normal(jax.random.key(0), (8, 3))
  >>> bool(jp.transport.isometry_penalty(lambda x: jnp.flip(x, 1), x, jax.random.key(1), share=0.5) < 1e-10)
  True
  """
  check_whole("probes", probes, ge=2)
  check_number("share", share, gt=0, le=1)
  check_cloud("points", points)
  n, count = len(points), max(1, round(share * len(points)))
  first, directions = jax.random.split(key)
  if count < n:
    rows = (jax.random.randint(first, (), 0, n) + jnp.arange(count) * (n // count)) % n
    points, basis = points[rows], None if basis is None else basis[rows]
  size = points.shape[1] if basis is None else basis.shape[2]
  v = jax.random.normal(directions, (probes, count, size), points.dtype)
  if basis is not None:
    v = jnp.einsum("nmr,pnr->pnm", basis, v)
  jv = jax.vmap(lambda v: jax.jvp(f, (points,), (v,))[1])(v)
  i, j = np.triu_indices(probes, 1)
  return jnp.mean((jnp.sum(jv[i] * jv[j], axis=-1) - jnp.sum(v[i] * v[j], axis=-1)) ** 2)


def _pushed(f: PointMap, x: Array, v: Array) -> Array:
  result: Array = jax.vmap(lambda v: jax.jvp(f, (x,), (v,))[1])(v)
  return result


def _pair_mean(v: Array, jv: Array) -> Array:
  """Mean of (⟨Jv_i, Jv_j⟩ − ⟨v_i, v_j⟩)² over i ≠ j."""
  gap, n = jv @ jv.T - v @ v.T, len(v)
  return jnp.sum(jnp.where(jnp.eye(n, dtype=bool), 0.0, gap**2)) / (n * (n - 1))


def one_probe_isometry(f: PointMap, x: Float[Array, " m"], key: Key[Array, ""]) -> Float[Array, ""]:
  """(|Jv|² − |v|²)² of one Gaussian probe: its mean is 2|M|²_F + (tr M)², with the same zeros as `isometry`.

  >>> bool(jp.transport.one_probe_isometry(lambda x: -x, jnp.ones(3), jax.random.key(0)) < 1e-10)
  True
  """
  v = jax.random.normal(key, (len(x),), x.dtype)
  jv = jax.jvp(f, (x,), (v,))[1]
  return (jnp.vdot(jv, jv) - jnp.vdot(v, v)) ** 2


def trace_isometry(f: PointMap, x: Float[Array, " m"]) -> Float[Array, ""]:
  """(tr JᵀJ / m − 1)²: only the mean of σ² is held at 1; singular values {0, √2} pass.

  >>> f = lambda x: jnp.array([2.0**0.5, 0.0]) * x
  >>> float(jp.transport.trace_isometry(f, jnp.ones(2)).round(6)), float(jp.transport.isometry(f, jnp.ones(2)).round(4))
  (0.0, 2.0)
  """
  return (jnp.sum(jacobian(f, x) ** 2) / len(x) - 1) ** 2


def trace_isometry_estimate(
  f: PointMap, x: Float[Array, " m"], key: Key[Array, ""], probes: int = 2
) -> Float[Array, ""]:
  """`trace_isometry` without bias: the mean product of two independent Hutchinson estimates of tr JᵀJ / m − 1.

  The square of one estimate would add its variance. Raises ConfigError for fewer than two probes.

  >>> bool(abs(jp.transport.trace_isometry_estimate(lambda x: x, jnp.ones(4), jax.random.key(0))) < 1e-10)
  True
  """
  check_whole("probes", probes, ge=2)
  v = jax.random.rademacher(key, (probes, len(x)), x.dtype)
  gaps = jnp.sum(_pushed(f, x, v) ** 2, axis=1) / len(x) - 1
  return (jnp.sum(gaps) ** 2 - jnp.sum(gaps**2)) / (probes * (probes - 1))


def relaxed_isometry(f: PointMap, x: Float[Array, " m"]) -> Float[Array, ""]:
  """m tr (JᵀJ)² / (tr JᵀJ)² − 1: zero where all singular values are equal, of any size. Source: Lee et al. 2022.

  >>> float(jp.transport.relaxed_isometry(lambda x: 5 * x, jnp.ones(3)))
  0.0
  """
  j = jacobian(f, x)
  gram = j.T @ j
  return len(x) * jnp.sum(gram**2) / jnp.trace(gram) ** 2 - 1


def relaxed_isometry_estimate(
  f: PointMap, points: Float[Array, "n m"], key: Key[Array, ""], probes: int = 2
) -> Float[Array, ""]:
  """m E[tr (JᵀJ)²] / E[tr JᵀJ]² − 1 over points, each mean from independent Gaussian probes.

  tr (JᵀJ)² = E ⟨Jv, Jw⟩² and tr JᵀJ = E |Jv|² are unbiased; their ratio is so up to 1/(points · probes).

  >>> estimate = jp.transport.relaxed_isometry_estimate(lambda x: 5 * x, jnp.ones((200, 3)), jax.random.key(0))
  >>> bool(abs(estimate) < 0.5)
  True
  """
  check_whole("probes", probes, ge=2)
  m = points.shape[1]

  def of_point(x: Array, key: Array) -> tuple[Array, Array]:
    v = jax.random.normal(key, (probes, m), x.dtype)
    jv = _pushed(f, x, v)
    return _pair_mean(jnp.zeros_like(v), jv), jnp.mean(jnp.sum(jv**2, axis=1))

  fourth, second = jax.vmap(of_point)(points, jax.random.split(key, len(points)))
  return m * jnp.mean(fourth) / jnp.mean(second) ** 2 - 1


def tangent_basis(points: Rows, neighbours: int, rank: int) -> Float[Array, "n m r"]:
  """The `rank` leading directions of the `neighbours` nearest points around each point, orthonormal, without gradient.

  Raises ConfigError unless 1 <= rank <= neighbours < n and rank <= m.

  >>> line = jnp.arange(6.0)[:, None] * jnp.array([[0.6, 0.8]])
  >>> print(np.abs(jp.transport.tangent_basis(line, neighbours=2, rank=1)[3, :, 0]).round(3))
  [0.6 0.8]
  """
  check_cloud("points", points, 2)
  n, m = points.shape
  check_whole("neighbours", neighbours, ge=1, lt=n)
  check_whole("rank", rank, ge=1, le=min(neighbours, m))
  x = jax.lax.stop_gradient(wide(points))

  def of_row(row: Array) -> Array:
    distance = jnp.sum((x - row[None]) ** 2, axis=1)
    near = x[jax.lax.top_k(-distance, neighbours + 1)[1]]  # with the point itself
    return jnp.linalg.svd(near - jnp.mean(near, axis=0, keepdims=True), full_matrices=False)[2][:rank].T

  held = max(1, _ENTRIES // (n * m))  # rows whose differences from all others are in memory
  result: Array = jax.vmap(of_row)(x) if held >= n else jax.lax.map(of_row, x, batch_size=held)
  return result


def tangent_isometry(f: PointMap, x: Float[Array, " m"], basis: Float[Array, "m r"]) -> Float[Array, ""]:
  """|(JU)ᵀ(JU) − I|²_F: isometry in the directions U only, by r Jacobian-vector products.

  >>> f = lambda x: jnp.array([1.0, 9.0]) * x
  >>> float(jp.transport.tangent_isometry(f, jnp.ones(2), jnp.array([[1.0], [0.0]])))
  0.0
  """
  ju = _pushed(f, x, basis.T)
  return jnp.sum((ju @ ju.T - basis.T @ basis) ** 2)


def tangent_isometry_estimate(
  f: PointMap, x: Float[Array, " m"], basis: Float[Array, "m r"], key: Key[Array, ""], probes: int = 2
) -> Float[Array, ""]:
  """`tangent_isometry` without bias, from Gaussian probes inside U.

  >>> f, u = lambda x: jnp.array([1.0, 9.0]) * x, jnp.array([[1.0], [0.0]])
  >>> float(jp.transport.tangent_isometry_estimate(f, jnp.ones(2), u, jax.random.key(0)))
  0.0
  """
  check_whole("probes", probes, ge=2)
  v = jax.random.normal(key, (probes, basis.shape[1]), x.dtype) @ basis.T
  return _pair_mean(v, _pushed(f, x, v))


def volume(
  f: PointMap, x: Float[Array, " m"], target: Any = 0.0, key: Key[Array, ""] | None = None
) -> Float[Array, ""]:
  """(log vol J − target)², exact up to 64 singular values, above from `log_volume`, whose variance it adds.

  It holds the product of singular values: {½, 2} passes.

  >>> round(float(jp.transport.volume(lambda x: jnp.array([0.5, 2.0]) * x, jnp.ones(2))), 6)
  0.0
  """
  result: Array = (log_volume(f, x, key)[0] - target) ** 2
  return result


def contrastive(image: Rows, y: Rows, temperature: Any = 0.1, bank: Array | None = None) -> Float[Array, ""]:
  """Symmetric InfoNCE of pairs by rows: cross entropy of softmax(cos(image_i, y_j) / temperature) at j = i, both ways.

  bank: more rows of the target (b, k), which are negatives of each image. Raises DataError without two pairs or for
  other widths. Source: van den Oord et al. 2018; Radford et al. 2021.

  >>> bool(jp.transport.contrastive(jnp.eye(4), jnp.eye(4)) < 1e-3)
  True
  """
  check_pairs(image, y, ("image", "y"))
  check_image(image, y)
  if not isinstance(temperature, jax.Array):
    check_number("temperature", temperature, gt=0)
  image, y = _unit(image), _unit(y)
  logits = image @ y.T / temperature
  towards = logits
  if bank is not None:
    towards = jnp.concatenate([logits, image @ _unit(jax.lax.stop_gradient(bank)).T / temperature], axis=1)
  right = jnp.diagonal(logits)
  return 0.5 * jnp.mean(jax.nn.logsumexp(towards, axis=1) + jax.nn.logsumexp(logits, axis=0) - 2 * right)


def _unit(rows: Rows) -> Array:
  x = wide(rows)
  return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def mmd(image: Rows, y: Rows, scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)) -> Float[Array, ""]:
  """Unbiased squared maximum mean discrepancy with Gaussian kernels of several widths, summed.

      mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean k(x_i, y_j),  k(r) = Σ_s exp(−r² / (2 s b))

  b: mean squared distance of both clouds together, without a gradient. It may be negative. Raises DataError for clouds
  of fewer than two points. Source: Gretton et al. 2012.

  >>> x = jax.random.normal(jax.random.key(0), (50, 2))
  >>> bool(jp.transport.mmd(x, x + 3) > 1) and bool(abs(jp.transport.mmd(x[:25], x[25:])) < 0.3)
  True
  """
  check_cloud("image", image, 2)
  check_cloud("y", y, 2)
  check_image(image, y)
  x, y = wide(image), wide(y)
  both = jnp.concatenate([x, y])
  width = jax.lax.stop_gradient(2 * jnp.mean(jnp.sum((both - jnp.mean(both, axis=0, keepdims=True)) ** 2, axis=1)))
  width = jnp.where(width > 0, width, 1.0)

  def kernel(a: Array, b: Array) -> Array:
    square = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)[None] - 2 * a @ b.T
    return sum((jnp.exp(-jnp.maximum(square, 0) / (2 * s * width)) for s in scales), jnp.zeros(()))

  def own(a: Array) -> Array:
    n = len(a)
    return jnp.sum(jnp.where(jnp.eye(n, dtype=bool), 0.0, kernel(a, a))) / (n * (n - 1))

  return own(x) + own(y) - 2 * jnp.mean(kernel(x, y))


def negative_log_likelihood(image: Rows, y: Rows, log_volumes: Float[Array, " n"], rank: int) -> Float[Array, ""]:
  """Mean of −log p(x) / r in nats a dimension, p the density of a map that carries x to N(μ, s² I).

      −log p(x) = |f(x) − μ|² / (2 s²) + r/2 log(2π s²) − log vol J(x)

  μ, s²: mean and variance a feature of y, without a gradient; r = min(m, k) dimensions are carried. For m < k it is a
  density where the image's plane goes through μ. Raises DataError for fewer than two target points and other widths.
  Source: Dinh et al. 2017.

  >>> y = jnp.array([[1.0], [-1.0]])
  >>> round(float(jp.transport.negative_log_likelihood(y, y, jnp.zeros(2), 1) - 0.5 * jnp.log(2 * jnp.pi)), 4)
  0.5
  """
  check_whole("rank", rank, ge=1)
  check_cloud("image", image)
  check_cloud("y", y, 2)
  check_image(image, y)
  image, y = wide(image), jax.lax.stop_gradient(wide(y))
  mean = jnp.mean(y, axis=0, keepdims=True)
  variance = jnp.mean((y - mean) ** 2)
  variance = jnp.where(variance > 0, variance, 1.0)  # points that all coincide have no spread: any unit serves
  square = jnp.sum((image - mean) ** 2, axis=1) / variance
  return jnp.mean(0.5 * square - log_volumes) / rank + 0.5 * jnp.log(2 * jnp.pi * variance)
