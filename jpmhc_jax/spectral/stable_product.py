"""Log singular values of a sampled product of any depth, where squares, and then the numbers themselves, overflow.

The product is kept as J = U D T: U orthogonal, D positive, held as logarithms, T of order one. A layer Y gives the next
one by Y U = Q R, the columns in the order of their sizes, D'_i = max_j |R_ij| D_j and T' = D'⁻¹ R D T. The logarithms
grow with the depth, by the Lyapunov exponents; nothing else grows.
Source: Loh et al. 1992 (stabilised products in quantum Monte Carlo); Benettin et al. 1980 (the exponents).
"""

from collections.abc import Callable

from jaxtyping import Float
import numpy as np
import scipy.linalg

from jpmhc_jax.spectral.layers import Layers

__all__ = ["log_singular_values"]

_SWEEPS = 40  # QR sweeps of the last factor: entries whose sizes differ converge by their ratio a sweep
_DECOMPOSED = 1e-12  # share of the largest singular value down to which a decomposition in float64 is right
_NOTHING = -1e5  # log of a singular value that is zero


def _refactored(matrix: np.ndarray, log_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(Q, new, T) with matrix · diag(exp(log_scale)) = Q · diag(exp(new)) · T and no entry of T above 1."""
  with np.errstate(divide="ignore"):
    order = np.argsort(-(log_scale + np.log(np.linalg.norm(matrix, axis=0))))
    q, r = scipy.linalg.qr(matrix[:, order], mode="economic", check_finite=False)
    entries = np.log(np.abs(r)) + log_scale[order][None, :]  # log |R_ij| D_j: never exponentiated as it stands
  largest = np.max(entries, axis=1)
  new = np.where(np.isfinite(largest), largest, _NOTHING)
  t = np.empty_like(r)
  t[:, order] = np.sign(r) * np.exp(entries - new[:, None])
  return q, new, t


def log_singular_values(
  layers: Layers, width: int, seed: int = 0, tick: Callable[[float], None] = lambda share: None
) -> Float[np.ndarray, " size"]:
  """Natural logarithms of the singular values of one draw of the product, N = streams · width of them, descending.

  The model is that of `monte_carlo.eigenvalues`, at any depth and any condition. Values down to 1e-12 of the largest
  are those of a decomposition; of smaller ones, those within a factor of order one of each other are right to a part
  of that factor. Cost O(L N³). tick: called with the share that is done.
  """
  n, size = layers.streams, layers.streams * width
  rng = np.random.default_rng(seed)
  mixers, variance = np.asarray(layers.mixers), np.asarray(layers.variance)
  read, write = (_square_roots(np.asarray(each)) for each in (layers.read, layers.write))

  def couple(matrix: np.ndarray, state: np.ndarray) -> np.ndarray:  # (A ⊗ I) state
    result: np.ndarray = (matrix @ state.reshape(n, -1)).reshape(state.shape)
    return result

  u, log_d, t = np.eye(size), np.zeros(size), np.eye(size)
  for index in range(layers.depth):
    noise = rng.normal(size=(size, size)) * np.sqrt(variance[index] / size)
    image = couple(mixers[index], u) + couple(write[index], noise @ couple(read[index], u))
    u, log_d, step = _refactored(image, log_d)
    t = step @ t
    tick((index + 1) / layers.depth)
  top = np.max(log_d)
  with np.errstate(divide="ignore"):
    direct = top + np.log(np.linalg.svd(np.exp(log_d - top)[:, None] * t, compute_uv=False))
  for _ in range(_SWEEPS):  # D T = (Tᵀ D)ᵀ: each sweep is one step of the QR algorithm on logarithms
    _, following, t = _refactored(t.T, log_d)
    if np.max(np.abs(np.sort(following) - np.sort(log_d))) < 1e-6:
      break
    log_d = following
  graded = np.sort(following)[::-1]
  return np.where(direct > direct[0] + np.log(_DECOMPOSED), direct, graded)


def _square_roots(covariance: np.ndarray) -> np.ndarray:
  values, vectors = np.linalg.eigh(covariance)
  result: np.ndarray = (vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]) @ np.swapaxes(vectors, 1, 2)
  return result
