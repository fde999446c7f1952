"""Free products of layers as published: z₁-mapping (equal layers), S-transform (unequal layers), subordination (two
laws).

All three take the scalar law of every layer and treat the layers as free of one another. The noises are; the mixers
A_l ⊗ I are not,
so the result is exact only when every A_lᵀA_l is a multiple of the identity, and can be off by 90 % otherwise.
Throughout ψ = z G(z) − 1.
"""

from collections.abc import Callable

import numpy as np

from jpmhc_jax.core.errors import UserError

__all__ = ["Transform", "anderson", "s_transform", "subordination", "z1_mapping"]

Transform = Callable[[np.ndarray], np.ndarray]  # z (upper half-plane) -> G(z)


def z1_mapping(mixer: np.ndarray, sigma: float, depth: int, z: np.ndarray) -> np.ndarray:
  """G of `depth` equal layers: z₁ ω^{L−1} = z with ω = z₁ − 1/G₁(z₁), in logarithms, so that any depth works."""
  return _logarithmic(np.linalg.svd(mixer, compute_uv=False)[None] ** 2, np.array([sigma]), np.array([float(depth)]), z)


def s_transform(mixers: np.ndarray, sigmas: np.ndarray, z: np.ndarray) -> np.ndarray:
  """G of unequal layers by S = Π S_l: z = Π z_l(ψ) · (ψ/(1+ψ))^{L−1}, z_l the inverse of layer l's ψ."""
  s = np.linalg.svd(mixers, compute_uv=False) ** 2
  return _logarithmic(s, np.broadcast_to(sigmas, len(s)).astype(float), np.ones(len(s)), z)


def _logarithmic(s: np.ndarray, sigmas: np.ndarray, powers: np.ndarray, z: np.ndarray) -> np.ndarray:
  """Newton on ψ and every layer's G_l at once, continued down from large Im z.

  Layer l (eigenvalues s_l of AᵀA, z_l = (1+ψ)/G_l, u = 1 − σ²G_l): F_l = mean u/((1+ψ)u² − s_l G_l) − 1 = 0.
  Product: D = Σ p_l log z_l + (Σ p_l − 1) log(ψ/(1+ψ)) − log z = 0. The system is an arrow: δG_l follows from δψ.
  """
  z = np.asarray(z, complex)
  variance, s = sigmas[:, None] ** 2, s[:, :, None]
  mean = np.mean(s[:, :, 0], axis=1) + variance[:, 0]
  total = float(np.exp(np.sum(powers * np.log(mean))))
  psi: np.ndarray | None = None
  g = np.zeros((1, 1), complex)
  for height in [*np.geomspace(300.0, 1e-7, 140), 0.0]:
    at = z + 1j * height * (total + np.abs(z))
    if psi is None:
      psi = total / at
      g = (1 + psi)[None] * psi[None] / mean[:, None]
    for _ in range(25):
      u, q = 1 - variance * g, 1 + psi
      den = q * (u**2)[:, None] - s * g[:, None]
      f = np.mean(u[:, None] / den, axis=1) - 1
      f_g = np.mean(
        -variance[:, None] / den + u[:, None] * (2 * variance[:, None] * q * u[:, None] + s) / den**2, axis=1
      )
      f_psi = np.mean(-((u**3)[:, None]) / den**2, axis=1)
      defect = np.sum(powers[:, None] * np.log(q / g), axis=0) + (powers.sum() - 1) * np.log(psi / q) - np.log(at)
      defect = defect.real + 1j * (np.mod(defect.imag + np.pi, 2 * np.pi) - np.pi)  # logarithms know no full turns
      slope = np.sum(powers[:, None] * (1 / q + f_psi / (f_g * g)), axis=0) + (powers.sum() - 1) * (1 / psi - 1 / q)
      move = -(defect + np.sum(powers[:, None] * f / (f_g * g), axis=0)) / slope
      move_g = -(f + f_psi * move) / f_g
      size = np.maximum(np.abs(move / psi), np.max(np.abs(move_g / g), axis=0))
      damping = np.minimum(1, 0.5 / np.maximum(size, 1e-300))
      psi, g = psi + damping * move, g + damping * move_g
      if np.max(size) < 1e-11:
        break
  if not np.max(size) < 1e-8:
    raise UserError(
      f"S-transform: last Newton step {np.max(size):.1e}; move z further from the real axis or use spectral.dyson"
    )
  assert psi is not None  # the ladder of heights is never empty
  result: np.ndarray = (1 + psi) / z
  return result


def subordination(
  first: Transform, second: Transform, z: np.ndarray, memory: int = 4, iterations: int = 3000
) -> np.ndarray:
  """Free product of two laws by subordination, its fixed point sped up by Anderson's method.

  With w = 1/z, η = ψ/(1+ψ), h(w) = η(w)/w: ω = w h₂(w h₁(ω)), and the product's ψ at w is ψ₁ at ω. Raises UserError
  when it stalls.
  Source: Belinschi, Bercovici 2007; Belinschi, Speicher 2013.
  """
  w = 1 / np.asarray(z, complex)

  def h(transform: Transform, at: np.ndarray) -> np.ndarray:
    one_plus_psi = transform(1 / at) / at
    result: np.ndarray = (1 - 1 / one_plus_psi) / at
    return result

  omega = anderson(lambda omega: w * h(second, w * h(first, omega)), w.copy(), memory, iterations)
  result: np.ndarray = first(1 / omega) / omega * w
  return result


def anderson(step: Transform, start: np.ndarray, memory: int, iterations: int, tolerance: float = 1e-10) -> np.ndarray:
  """Anderson acceleration of x ← step(x), each entry on its own, in the lower half-plane; an entry that would leave it
  takes the plain step. Raises UserError where `iterations` steps do not reach the tolerance."""
  images: list[np.ndarray] = []
  residuals: list[np.ndarray] = []
  x, change = start, np.inf
  for _ in range(iterations):
    image = step(x)
    change = float(np.max(np.abs(image - x) / np.abs(x)))
    if change < tolerance:
      return image
    images, residuals = [*images[-memory:], image], [*residuals[-memory:], image - x]
    x = image
    if len(images) > 1:
      differences = np.stack([r - residuals[-1] for r in residuals[:-1]], axis=1)
      # One complex unknown an entry: all history columns are parallel, so least squares is a weighted mean of secants.
      weights = np.conj(differences) / np.maximum(np.sum(np.abs(differences) ** 2, axis=1, keepdims=True), 1e-300)
      gamma = -weights * residuals[-1][:, None]
      trial = image + sum(gamma[:, k] * (images[k] - image) for k in range(gamma.shape[1]))
      x = np.where(np.isfinite(trial) & (trial.imag < 0), trial, image)
  raise UserError(
    f"subordination: relative change {change:.1e} after {iterations} steps; move z further from the real axis"
  )
