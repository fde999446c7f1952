"""The model of a recursion: layers whose noises are correlated, as those of calls that apply the same weights are.

    Y_l = A_l ⊗ I_p + (B_l ⊗ I_p) W_l (A'_l ⊗ I_p),   J = Y_{L−1} … Y_0,   W_l of size mp, jointly Gaussian,
    E[W_l X W_kᵀ] = K_lk tr X / mp,   E[W_l X W_k] = T_lk tr X / mp

K is the covariance of the layers, T their elliptic covariance; K diagonal and T = 0 is `spectral.layers.Layers`.
A_l, A'_l and B_l may differ between cells, shares of the p dimensions, which the noise couples with each other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jpmhc_jax.spectral.layers import block_noise, Layers, Real

__all__ = ["Correlated", "correlated_noise", "independent", "is_independent", "tied_covariance"]

_SYMMETRIC = 1e-8  # relative asymmetry and negative eigenvalue of the moments that are rounding


class Correlated(NamedTuple):
  """L layers with n streams, m segments and C cells; layer 0 acts first. Build it with `correlated_noise`.

  >>> with jax.enable_x64(True):
  ...   layers = jp.spectral.correlated_noise(np.zeros((2, 1, 1)), np.ones((2, 1)), np.ones((2, 1)), np.eye(2))
  >>> layers.depth, layers.streams
  (2, 1)
  """

  mixers: jax.Array  # (C, L, n, n), the mean of the noise included
  reads: jax.Array  # (C, L, m, n)
  writes: jax.Array  # (C, L, n, m)
  covariance: jax.Array  # (L, L)  K
  elliptic: jax.Array  # (L, L)  T
  shares: jax.Array  # (C,) of the p dimensions, with sum 1

  @property
  def depth(self) -> int:
    """L, the number of layers."""
    return self.mixers.shape[1]

  @property
  def streams(self) -> int:
    """n."""
    return self.mixers.shape[-1]


def correlated_noise(
  mixers: Real,
  reads: Real,
  writes: Real,
  covariance: Real,
  elliptic: Real = 0.0,
  mean: Real = 0.0,
  shares: np.ndarray | Sequence[float] | None = None,
) -> Correlated:
  """Layers with the given moments of their noise across layers.

  mixers: (L, n, n); reads: (L, n), or (L, m, n) with m segments; writes: (L, n) or (L, n, m). Coefficients that differ
  between C cells have one more axis in front: (C, L, n, n), (C, L, m, n) and (C, L, n, m). shares: (C,) of the cells,
  positive, in any unit; equal ones by default.
  covariance, elliptic: K and T, (L, L), with K ± T positive semidefinite. A matrix that two layers l and k share has
  K_lk = σ_l σ_k, and T_lk = 0 where it is general, K_lk where it is symmetric. mean: tr W_l / mp, number or (L,).
  Raises ValueError for moments that no noise has. Needs float64 (`jax.enable_x64`).

  >>> with jax.enable_x64(True):  # the product W W of one Gaussian matrix with itself: singular values up to √6.75
  ...   square = jp.spectral.correlated_noise(np.zeros((2, 1, 1)), np.ones((2, 1)), np.ones((2, 1)), np.ones((2, 2)))
  >>> round(jp.spectral.predict(square, points=64).top, 1)
  2.6
  """
  covariance = jnp.asarray(covariance, jnp.float64)
  depth = np.shape(mixers)[-3]
  if covariance.shape != (depth, depth):
    raise ValueError(f"covariance: shape {covariance.shape}; expected (layers, layers) = {(depth, depth)}")
  elliptic = jnp.broadcast_to(jnp.asarray(elliptic, jnp.float64), covariance.shape)
  if not isinstance(covariance, jax.core.Tracer) and not isinstance(elliptic, jax.core.Tracer):
    _check_moments(np.asarray(covariance), np.asarray(elliptic))
  mean = jnp.broadcast_to(jnp.asarray(mean, jnp.float64), (depth,))
  mixers, reads, writes = _coefficients(mixers, reads, writes)
  weights = _shares(len(mixers), shares)
  return Correlated(mixers + mean[None, :, None, None] * (writes @ reads), reads, writes, covariance, elliptic, weights)


def _shares(cells: int, shares: np.ndarray | Sequence[float] | None) -> jax.Array:
  """(C,) with sum 1."""
  weights = np.ones(cells) if shares is None else np.asarray(shares, np.float64)
  if weights.shape != (cells,) or not np.all(weights > 0) or not np.all(np.isfinite(weights)):
    raise ValueError(f"shares: {shares}; expected {cells} positive numbers, one for each cell")
  return jnp.asarray(weights / weights.sum())


def _coefficients(mixers: Real, reads: Real, writes: Real) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Those of all cells, with their shapes and values checked: (C, L, n, n), (C, L, m, n), (C, L, n, m)."""
  mixers, reads, writes = (jnp.asarray(each, jnp.float64) for each in (mixers, reads, writes))
  cells: tuple[int, ...] = (1,)
  if mixers.ndim == 4:
    cells = mixers.shape[:1]
    if reads.shape[:2] != mixers.shape[:2] or writes.shape[:2] != mixers.shape[:2]:
      raise ValueError(
        f"mixers {mixers.shape}, reads {reads.shape}, writes {writes.shape}: expected the same numbers of cells and of "
        "layers in front"
      )
    mixers, reads, writes = (each.reshape(-1, *each.shape[2:]) for each in (mixers, reads, writes))
  mixers = block_noise(mixers, 0.0, reads, writes).mixers
  reads = reads[:, None, :] if reads.ndim == 2 else reads
  writes = writes[:, :, None] if writes.ndim == 2 else writes
  mixers, reads, writes = (each.reshape(*cells, -1, *each.shape[1:]) for each in (mixers, reads, writes))
  return mixers, reads, writes


def _check_moments(covariance: np.ndarray, elliptic: np.ndarray) -> None:
  scale = max(float(np.max(np.abs(covariance), initial=0.0)), np.finfo(np.float64).tiny)
  for name, moment in (
    ("covariance + elliptic", covariance + elliptic),
    ("covariance - elliptic", covariance - elliptic),
  ):
    if not np.all(np.isfinite(moment)) or np.max(np.abs(moment - moment.T), initial=0.0) > _SYMMETRIC * scale:
      raise ValueError(f"{name}: not finite or not symmetric; expected the second moments of real noise, (L, L)")
    least = float(np.min(np.linalg.eigvalsh(moment), initial=0.0))
    if least < -_SYMMETRIC * scale * len(moment):
      raise ValueError(
        f"{name}: smallest eigenvalue {least:.3g}; expected a positive semidefinite matrix, such as a Gram matrix"
      )


def tied_covariance(sigma: Real, weights: Sequence[int], similarity: float = 1.0) -> np.ndarray:
  """K of layers that share weights: K_lk = ρ σ_l σ_k where layers l and k apply the same weight, σ_l² on the diagonal.

  sigma: number or (L,); weights: (L,) label of the weight that a layer applies; similarity: ρ from 0 (fresh noise at
  every call) to 1 (the same Jacobian at every call). Raises ValueError for another similarity.

  >>> jp.spectral.tied_covariance(2.0, [0, 1, 0], similarity=0.5).tolist()
  [[4.0, 0.0, 2.0], [0.0, 4.0, 0.0], [2.0, 0.0, 4.0]]
  """
  if not 0 <= similarity <= 1:
    raise ValueError(f"similarity={similarity}: expected a number from 0 (independent calls) to 1 (identical calls)")
  labels = np.asarray(weights)
  sigma = np.broadcast_to(np.asarray(sigma, np.float64), labels.shape)
  shared = np.where(labels[:, None] == labels[None, :], similarity, 0.0)
  np.fill_diagonal(shared, 1.0)
  return shared * sigma[:, None] * sigma[None, :]


def independent(layers: Correlated) -> Layers:
  """The layers of one cell with independent noise: K reduced to its diagonal, T = 0. The mean stays in the mixers."""
  (mixers,), (reads,), (writes,) = layers.mixers, layers.reads, layers.writes
  return block_noise(mixers, jnp.sqrt(jnp.diagonal(layers.covariance)), reads, writes)


def is_independent(layers: Correlated) -> bool:
  """Has it one cell, K diagonal and T zero? Unknown, and taken for correlated, while JAX traces."""
  if len(layers.mixers) > 1 or any(isinstance(m, jax.core.Tracer) for m in (layers.covariance, layers.elliptic)):
    return False
  covariance = np.asarray(layers.covariance)
  return not np.any(covariance - np.diag(np.diagonal(covariance))) and not np.any(np.asarray(layers.elliptic))
