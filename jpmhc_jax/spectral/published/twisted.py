"""Dykema's twisted S-transform for layers as M_n(C)-valued variables.

The layers' noises make YᵀY free over M_n(C), where scalar freeness fails because the mixers do not commute. For
P = YᵀY with Y = A ⊗ I + σX the S-transform is explicit up to two scalars. With T = S⁻¹ and B = E[(1 − bP)⁻¹] − 1:

    T(B) = σ² h + AᵀA / u,   u = 1 − σ² g,   R = B T⁻¹,   g = tr R/n,   h = 1/u + tr(A R Aᵀ)/(n u²)

(from R⁻¹ = b⁻¹ − σ²h − AᵀA/u, the matrix Dyson equation, and b⁻¹ = R⁻¹(1 + B)). Dykema 2006: T_{PQ}(B) = T_P(T_Q B
T_Q⁻¹) T_Q(B)
in this order of factors; the resolvent at z solves z B = T(B)(1 + B), and G = tr(1 + B)/(n z).

For two layers JᵀJ has the trace moments of (Y_2ᵀY_2)(Y_1Y_1ᵀ): the fold is exact. For more layers the fold multiplies
Y_lᵀY_l in turn, which is not JᵀJ unless the mixers commute with their transposes: an approximation, as published.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpmhc_jax.core.errors import UserError

__all__ = ["resolvent"]


def _inverse_s(b: jax.Array, gram: jax.Array, variance: jax.Array, scalars: jax.Array) -> tuple[jax.Array, jax.Array]:
  """T(B), and the defect of the two scalars (g, h) that it was computed from."""
  n = gram.shape[0]
  g, h = scalars
  u = 1 - variance * g
  t = variance * h * jnp.eye(n) + gram / u
  r = jnp.linalg.solve(t.T, b.T).T
  return t, jnp.stack([jnp.trace(r) / n - g, 1 / u + jnp.sum(gram * r.T) / (n * u**2) - h])


def _defect(unknowns: jax.Array, grams: jax.Array, variances: jax.Array, z: jax.Array) -> jax.Array:
  """Everything that must vanish: z B − T(B)(1 + B), and two scalars a layer."""
  depth, n, _ = grams.shape
  b, scalars = unknowns[: n * n].reshape(n, n), unknowns[n * n :].reshape(depth, 2)
  fold, twisted, defects = jnp.eye(n, dtype=b.dtype), b, []
  for gram, variance, pair in zip(grams, variances, scalars, strict=True):  # the first factor is the rightmost
    t, defect = _inverse_s(twisted, gram, variance, pair)
    fold, twisted = t @ fold, t @ jnp.linalg.solve(t.T, twisted.T).T
    defects.append(defect)
  return jnp.concatenate([jnp.ravel(b - fold @ (jnp.eye(n) + b) / z), *defects])


@functools.partial(jax.jit, static_argnums=4)
def _newton(
  unknowns: jax.Array, grams: jax.Array, variances: jax.Array, z: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array]:
  """Damped Newton at every point; returns the size of the last step relative to the unknowns too."""

  def one(x: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    def step(_: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
      x, _ = state
      jacobian = jax.jacfwd(_defect, holomorphic=True)(x, grams, variances, at)
      move = -jnp.linalg.solve(jacobian, _defect(x, grams, variances, at))
      size = jnp.linalg.norm(move) / jnp.linalg.norm(x)
      return x + jnp.minimum(1.0, 0.3 / jnp.maximum(size, 1e-300)) * move, size

    result: tuple[jax.Array, jax.Array] = jax.lax.fori_loop(0, steps, step, (x, jnp.asarray(1.0)))
    return result

  return jax.vmap(one)(unknowns, z)


def resolvent(mixers: np.ndarray, sigmas: np.ndarray | float, z: np.ndarray) -> np.ndarray:
  """G(z) of JᵀJ by the twisted fold: Newton on B and two scalars a layer, continued down from large Im z.

  Raises UserError where Newton has not converged.
  """
  with jax.enable_x64(True):
    z, (depth, n, _) = np.asarray(z, complex), mixers.shape
    grams = np.einsum("lki,lkj->lij", mixers, mixers)
    if depth == 2:
      grams[0] = mixers[0] @ mixers[0].T
    variances = np.broadcast_to(np.asarray(sigmas, float), depth) ** 2
    total = float(np.prod(np.trace(grams, axis1=1, axis2=2) / n + variances))
    start = (total / (z + 100j * (total + np.abs(z))))[:, None] * np.eye(n).ravel()
    unknowns = jnp.asarray(np.concatenate([start, np.tile([0j, 1.0], (len(z), depth))], axis=1))
    for height in [*np.geomspace(100.0, 1e-4, 40), 0.0]:
      at = jnp.asarray(z + 1j * height * (total + np.abs(z)))
      unknowns, last = _newton(unknowns, jnp.asarray(grams), jnp.asarray(variances), at, 8)
    if not float(jnp.max(last)) < 1e-8:
      raise UserError(
        f"twisted S-transform: last Newton step {float(jnp.max(last)):.1e}; move z further from the real axis"
      )
    b = np.asarray(unknowns)[:, : n * n].reshape(-1, n, n)
  result: np.ndarray = (1 + np.einsum("tii->t", b) / n) / z
  return result
