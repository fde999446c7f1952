"""The Dyson equation of one layer Y = A ⊗ I + σX, as published: scalar, and operator-valued.

Scalar: G = mean_i u / (z u² − s_i), u = 1 − σ² G, where s_i are the eigenvalues of AᵀA and the noise is full. Exact for
one layer (it is Pastur's equation, since only the singular values of A matter there). Newton with Armijo damping,
continued from large to small Im z.

Operator-valued: an n x n resolvent instead of a scalar one, R = (z(1 − σ²g) I − Aᵀ (I(1 − σ²h))⁻¹ A)⁻¹ with
g = tr R/n and h = tr R̃/n for the other factor order. With full noise it must reproduce the scalar equation; with read
and write covariances E and B it goes beyond it:

    R  = (z − z σ² h E − Aᵀ (1 − σ² g B)⁻¹ A)⁻¹,   g = tr(E R)/n,
    R̃ = (1 − σ² g B − A (z − z σ² h E)⁻¹ Aᵀ)⁻¹ / z,  h = tr(B R̃)/n.
"""

import numpy as np

from jpmhc_jax.core.errors import UserError

__all__ = ["from_eigenvalues", "operator_resolvent", "scalar_resolvent"]


def _defect(g: np.ndarray, z: np.ndarray, s: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray]:
  u = 1 - variance * g
  denominator = z[:, None] * (u**2)[:, None] - s[None, :]
  value = np.mean(u[:, None] / denominator, axis=1) - g
  slope = np.mean((1 / denominator - 2 * z[:, None] * (u**2)[:, None] / denominator**2), axis=1) * (-variance) - 1
  return value, slope


def _newton(g: np.ndarray, z: np.ndarray, s: np.ndarray, variance: float, steps: int = 60) -> np.ndarray:
  """Damped Newton on every point at once; a step that does not reduce |F| or leaves the lower half-plane is halved."""
  value, slope = _defect(g, z, s, variance)
  for _ in range(steps):
    step, length = -value / slope, np.ones(len(z))
    for _ in range(30):
      trial = g + length * step
      following, trial_slope = _defect(trial, z, s, variance)
      bad = ~((np.abs(following) <= (1 - 1e-4 * length) * np.abs(value)) & (trial.imag < 0)) & (np.abs(value) > 1e-14)
      if not bad.any():
        break
      length = np.where(bad, 0.5 * length, length)
    keep = ~bad
    g, value, slope = (np.where(keep, new, old) for new, old in ((trial, g), (following, value), (trial_slope, slope)))
    if np.all((np.abs(value) < 1e-13) | bad):
      break
  return g


def scalar_resolvent(mixer: np.ndarray, sigma: float, z: np.ndarray) -> np.ndarray:
  """G(z) of YᵀY for one layer Y = A ⊗ I + σX. Raises UserError if a point does not converge to 1e-9."""
  return from_eigenvalues(np.linalg.svd(mixer, compute_uv=False) ** 2, sigma, z)


def from_eigenvalues(s: np.ndarray, sigma: float, z: np.ndarray) -> np.ndarray:
  """The same from the eigenvalues of AᵀA, which is all that enters. Raises UserError where Newton has not converged."""
  z = np.asarray(z, complex)
  variance, scale = sigma**2, np.max(s) + 4 * sigma**2 + np.abs(z)
  g: np.ndarray | None = None
  for height in np.geomspace(4.0, 1e-8, 48):  # continuation from far above the axis
    at = z + 1j * height * scale
    g = _newton(1 / at if g is None else g, at, s, variance)
  g = _newton(1 / z if g is None else g, z, s, variance)
  worst = float(np.max(np.abs(_defect(g, z, s, variance)[0])))
  if not worst < 1e-9:
    raise UserError(f"scalar Dyson: defect {worst:.1e}; move z further from the real axis or use spectral.dyson")
  return g


def operator_resolvent(
  mixer: np.ndarray, sigma: float, z: np.ndarray, read: np.ndarray | None = None, write: np.ndarray | None = None
) -> np.ndarray:
  """G(z) for one layer by damped iteration, all points at once; a factor A = U Vᵀ of rank r < n/2 is inverted by
  Woodbury. Raises UserError where the iteration has not converged."""
  z = np.asarray(z, complex)
  n = mixer.shape[0]
  read, write = np.eye(n) if read is None else read, np.eye(n) if write is None else write
  u, s, vt = np.linalg.svd(mixer)
  rank = int(np.sum(s > 1e-12 * max(s[0], 1e-300)))
  left, right = u[:, :rank] * s[:rank], vt[:rank]
  at = z[:, None, None]
  g = h = 1 / z
  for _ in range(20_000):
    outer = np.eye(n) - sigma**2 * g[:, None, None] * write
    inner = at * (np.eye(n) - sigma**2 * h[:, None, None] * read)
    inner_inverse, outer_inverse = np.linalg.inv(inner), np.linalg.inv(outer)
    # (inner − rightᵀ M right)⁻¹, M = leftᵀ outer⁻¹ left, by Woodbury with an r x r solve; the same for the other order
    m = left.T @ outer_inverse @ left
    r = inner_inverse + inner_inverse @ right.T @ np.linalg.solve(
      np.eye(rank) - m @ right @ inner_inverse @ right.T, m @ right @ inner_inverse
    )
    k = right @ inner_inverse @ right.T
    dual = outer_inverse + outer_inverse @ left @ np.linalg.solve(
      np.eye(rank) - k @ left.T @ outer_inverse @ left, k @ left.T @ outer_inverse
    )
    following = np.einsum("ij,tji->t", read, r) / n, np.einsum("ij,tji->t", write, dual) / (n * z)
    change = max(np.max(np.abs(following[0] - g) / np.abs(g)), np.max(np.abs(following[1] - h) / np.abs(h)))
    g, h = 0.5 * (g + following[0]), 0.5 * (h + following[1])
    if change < 1e-11:
      result: np.ndarray = np.einsum("tii->t", r) / n
      return result
  raise UserError(f"operator-valued Dyson: change {change:.1e} after 20,000 steps; move z further from the real axis")
