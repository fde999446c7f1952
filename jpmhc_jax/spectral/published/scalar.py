"""The scalar Dyson equation of one layer, as published: G = mean_i u / (z u² − s_i), u = 1 − σ² G.

s_i are the eigenvalues of AᵀA, the noise is full. Exact for one layer (it is Pastur's equation for A ⊗ I + σX, since
only
the singular values of A matter there). Newton with Armijo damping, continued from large to small Im z.
"""

import numpy as np

from jpmhc_jax.core.errors import UserError


def _defect(g, z, s, variance):
  u = 1 - variance * g
  denominator = z[:, None] * (u**2)[:, None] - s[None, :]
  value = np.mean(u[:, None] / denominator, axis=1) - g
  slope = np.mean((1 / denominator - 2 * z[:, None] * (u**2)[:, None] / denominator**2), axis=1) * (-variance) - 1
  return value, slope


def _newton(g, z, s, variance, steps=60):
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


def resolvent(mixer: np.ndarray, sigma: float, z: np.ndarray) -> np.ndarray:
  """G(z) of YᵀY for one layer Y = A ⊗ I + σX. Raises UserError if a point does not converge to 1e-9."""
  return from_eigenvalues(np.linalg.svd(mixer, compute_uv=False) ** 2, sigma, z)


def from_eigenvalues(s: np.ndarray, sigma: float, z: np.ndarray) -> np.ndarray:
  """The same from the eigenvalues of AᵀA, which is all that enters."""
  z = np.asarray(z, complex)
  variance, scale = sigma**2, np.max(s) + 4 * sigma**2 + np.abs(z)
  g = None
  for height in np.geomspace(4.0, 1e-8, 48):  # continuation from far above the axis
    at = z + 1j * height * scale
    g = _newton(1 / at if g is None else g, at, s, variance)
  g = _newton(g, z, s, variance)
  worst = float(np.max(np.abs(_defect(g, z, s, variance)[0])))
  if not worst < 1e-9:
    raise UserError(f"scalar Dyson: defect {worst:.1e}; move z further from the real axis or use spectral.dyson")
  return g
