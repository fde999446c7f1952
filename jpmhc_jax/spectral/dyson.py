"""The matrix Dyson equation on a grid: G(z) of JᵀJ for any stack of layers, with gradients."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex
import numpy as np

from jpmhc_jax.spectral import chain, krylov, newton
from jpmhc_jax.spectral.layers import Layers
from jpmhc_jax.spectral.newton import Options


class Resolvent(NamedTuple):
  """G(z) = (1/N) E tr (z − JᵀJ)⁻¹ on the grid, and how well the equation was solved there."""

  g: jax.Array  # complex (points,)
  residual: jax.Array  # (points,) largest relative defect of an unknown
  iterations: jax.Array  # (points,) float; the same for all points of a chunk


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _solved(layers: Layers, z: Complex[Array, " points"], options: Options) -> tuple[Array, Array, Array]:
  return newton.solve(layers, z, options)


# u = Φ(u, θ)  ⇒  (1 − ∂Φ/∂u) du = ∂Φ/∂θ dθ: one more Krylov solve with Newton's operator, and none of the iterations.
@_solved.defjvp
def _solved_jvp(options, primals, tangents):
  layers, z = primals
  unknowns, residual, iterations = _solved(layers, z, options)
  _, moved = jax.jvp(lambda lay, at: chain.dyson_map(lay, at, unknowns)[0], primals, tangents)
  scale = newton.relative_scale(unknowns)
  linear = chain.linearised(layers, chain.messages(layers, z, unknowns))
  solve = functools.partial(krylov.gmres, dimension=2 * options.krylov, restarts=2)
  relative = jax.lax.custom_linear_solve(
    newton.matvec(layers, linear, scale), newton.flat(moved / scale), solve, transpose_solve=solve
  )
  change = relative.reshape(scale.shape) * scale
  return (unknowns, residual, iterations), (change, jnp.zeros_like(residual), jnp.zeros_like(iterations))


def _chunk(layers: Layers, points: int, options: Options) -> int:
  """Few points, so that a slow one holds up few others (half the time of 400 at once on 2 cores), and bounded
  memory."""
  limit = options.chunk or min(32, 5_000_000 // (layers.depth * layers.streams**2))
  return int(np.clip(limit, 1, points))


@functools.partial(jax.jit, static_argnums=2)
def resolvent(layers: Layers, z: Complex[Array, " points"], options: Options = Options()) -> Resolvent:  # noqa: B008
  """G(z) of JᵀJ for Im z > 0: exact as N → ∞ for any layers, equal or not, commuting or not.

  z: complex (points,), upper half-plane. Cost O(L n³) a point and iteration, 15-40 iterations. Differentiable in
  mixers,
  noise and z (forward and reverse) through the implicit function theorem. Residuals are returned, not judged: see
  `checked`.
  """
  if z.dtype != jnp.complex128:
    raise ValueError(f"z: dtype {z.dtype}; expected complex128 (wrap in `with jax.enable_x64(True):`)")
  points = z.shape[0]
  chunk = _chunk(layers, points, options)
  padded = jnp.concatenate([z, jnp.broadcast_to(z[-1:], (-points % chunk,))]).reshape(-1, chunk)

  def solve(part):
    unknowns, residual, iterations = _solved(layers, part, options)
    return Resolvent(chain.dyson_map(layers, part, unknowns)[1], residual, iterations)

  return jax.tree.map(lambda a: a.reshape(-1)[:points], jax.lax.map(solve, padded))


def checked(
  layers: Layers, z: Complex[np.ndarray, " points"] | Complex[Array, " points"], limit: float = 1e-7
) -> Resolvent:
  """`resolvent`, raising ValueError unless Im z > 0 everywhere and every residual is at most `limit`."""
  z = jnp.asarray(z, jnp.complex128)
  if bool(jnp.any(z.imag <= 0)):
    raise ValueError(
      f"z: smallest imaginary part {float(jnp.min(z.imag)):.3g}; the resolvent is wanted above the real axis"
    )
  result = resolvent(layers, z)
  worst = int(jnp.argmax(result.residual))
  if not float(result.residual[worst]) <= limit:
    raise ValueError(
      f"Dyson equation: residual {float(result.residual[worst]):.1e} at z = {complex(z[worst]):.4g}, "
      f"above {limit:.0e}; move z further from the real axis"
    )
  return result
