"""The operator-valued Dyson equation of one layer: an n x n resolvent instead of a scalar one.

R = (z(1 − σ²g) I − Aᵀ (I(1 − σ²h))⁻¹ A)⁻¹ with g = tr R/n and h = tr R̃/n for the other factor order; with full noise
it must reproduce
the scalar equation, with read and write covariances it goes beyond it:

    R  = (z − z σ² h E − Aᵀ (1 − σ² g B)⁻¹ A)⁻¹,   g = tr(E R)/n,
    R̃ = (1 − σ² g B − A (z − z σ² h E)⁻¹ Aᵀ)⁻¹ / z,  h = tr(B R̃)/n.
"""

import numpy as np

from jpmhc_jax.core.errors import UserError


def resolvent(
  mixer: np.ndarray, sigma: float, z: np.ndarray, read: np.ndarray | None = None, write: np.ndarray | None = None
) -> np.ndarray:
  """G(z) for one layer by damped iteration, all points at once; a factor A = U Vᵀ of rank r < n/2 is inverted by
  Woodbury."""
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
      return np.einsum("tii->t", r) / n
  raise UserError(f"operator-valued Dyson: change {change:.1e} after 20,000 steps; move z further from the real axis")
