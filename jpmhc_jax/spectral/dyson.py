"""The matrix Dyson equation on a grid: G(z) of JᵀJ for any stack of layers, with gradients."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex
import numpy as np

from jpmhc_jax.core.errors import differing_digits
from jpmhc_jax.spectral import chain, krylov, newton
from jpmhc_jax.spectral.layers import Layers
from jpmhc_jax.spectral.newton import Options

__all__ = ["NotSolvedError", "Resolvent", "SOLVED", "by_parts", "checked", "resolvent"]

SOLVED = 1e-3  # relative residual above which a density would be drawn wrong
_AT_ONCE = 16  # grid points that `by_parts` solves together
_PATIENT = Options(max_iterations=2000, warmup=100)  # for the few points that a grid is left with: hard edges


class NotSolvedError(Exception):
  """The Dyson equation was not solved; the message says why.

  `predict` samples a product in its place.

  >>> raise jp.spectral.NotSolvedError("the Dyson equation was left with a residual of 0.5, expected less than 0.001")
  Traceback (most recent call last):
  jpmhc_jax.spectral.dyson.NotSolvedError: the Dyson equation was left with a residual of 0.5, expected less than 0.001
  """

  @classmethod
  def of(cls, residual: float) -> "NotSolvedError":
    """The iteration ended at this residual."""
    reached, limit = differing_digits(residual, SOLVED)
    return cls(f"the Dyson equation was left with a residual of {reached}, expected less than {limit}")


class Resolvent(NamedTuple):
  """G(z) = (1/N) E tr (z − JᵀJ)⁻¹ on the grid, and how well the equation was solved there."""

  g: jax.Array  # complex (points,)
  residual: jax.Array  # (points,) largest relative defect of an unknown
  iterations: jax.Array  # (points,) float; the same for all points of a chunk


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _solved(
  layers: Layers, z: Complex[Array, " points"], guess: chain.Unknowns, options: Options
) -> tuple[Array, Array, Array]:
  return newton.solve(layers, z, guess, options)


# u = Φ(u, θ)  ⇒  (1 − ∂Φ/∂u) du = ∂Φ/∂θ dθ: one more Krylov solve with Newton's operator, and none of the iterations.
# The solution does not depend on the guess.
@_solved.defjvp
def _solved_jvp(options: Options, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
  layers, z, guess = primals
  unknowns, residual, iterations = _solved(layers, z, guess, options)
  _, moved = jax.jvp(lambda lay, at: chain.dyson_map(lay, at, unknowns)[0], primals[:2], tangents[:2])
  scale = newton.relative_scale(unknowns)
  linear = chain.linearised(layers, chain.messages(layers, z, unknowns))
  solve = functools.partial(krylov.gmres, dimension=2 * options.krylov, restarts=2)
  relative = jax.lax.custom_linear_solve(
    newton.matvec(layers, linear, scale), newton.flat(moved / scale), solve, transpose_solve=solve
  )
  change = relative.reshape(scale.shape) * scale
  return (unknowns, residual, iterations), (change, jnp.zeros_like(residual), jnp.zeros_like(iterations))


def _chunk(layers: Layers, points: int, options: Options) -> int:
  """Few points, so that a slow one holds up few others, and bounded memory."""
  limit = options.chunk or min(_AT_ONCE, 5_000_000 // (layers.depth * layers.streams**2))
  return int(np.clip(limit, 1, points))


@functools.partial(jax.jit, static_argnums=2)
def resolvent(layers: Layers, z: Complex[Array, " points"], options: Options = Options()) -> Resolvent:  # noqa: B008
  """G(z) of JᵀJ for Im z > 0: exact as N → ∞ for any layers, equal or not, commuting or not.

  z: complex (points,), upper half-plane. Cost O(L n³) a point and iteration; about 5 iterations beside a
  solved grid point, 15-40 without one, so z should be ordered along its curve. Differentiable in mixers, noise and z
  (forward and reverse) through the implicit function theorem. Residuals are returned, not judged: see `checked`.
  Raises ValueError for a z of another dtype than complex128.
  """
  if z.dtype != jnp.complex128:
    raise ValueError(f"z: dtype {z.dtype}; expected complex128 (wrap in `with jax.enable_x64(True):`)")
  points = z.shape[0]
  chunk = _chunk(layers, points, options)

  def solve(neighbours: Array, part: Array) -> tuple[Array, Resolvent]:
    return _part(layers, part, neighbours, options)

  return _joined(jax.lax.scan(solve, _nothing(layers, chunk), _parts(z, chunk))[1], points)


def _parts(z: Complex[Array, " points"], chunk: int) -> Complex[Array, "parts chunk"]:
  """Part j holds every k-th point from the j-th on: its points are the right-hand neighbours of those of part j − 1."""
  return jnp.concatenate([z, jnp.broadcast_to(z[-1:], (-z.shape[0] % chunk,))]).reshape(chunk, -1).T


def _nothing(layers: Layers, chunk: int) -> chain.Unknowns:
  """No guess, for the first part."""
  return jnp.full((2, layers.depth, chunk), jnp.nan, jnp.complex128)


def _part(
  layers: Layers, z: Complex[Array, " chunk"], neighbours: chain.Unknowns, options: Options
) -> tuple[chain.Unknowns, Resolvent]:
  """The guess for the next part, NaN at points that were not solved, and the values of this one."""
  unknowns, residual, iterations = _solved(layers, z, neighbours, options)
  solved = jnp.where(residual < SOLVED, unknowns, jnp.nan)
  return jax.lax.stop_gradient(solved), Resolvent(chain.dyson_map(layers, z, unknowns)[1], residual, iterations)


def _joined(parts: Resolvent, points: int) -> Resolvent:
  """Values of all parts, (parts, chunk), in the order of the grid."""
  result: Resolvent = jax.tree.map(lambda a: a.T.reshape(-1)[:points], parts)
  return result


_compiled_part = jax.jit(_part, static_argnums=3)


def by_parts(
  layers: Layers, z: Complex[Array, " points"], tick: Callable[[float], None] = lambda share: None
) -> Resolvent:
  """`resolvent`, a part of the grid after the other, from Python: one program for every grid over these layers.

  The few points that are not solved get a second try, with more iterations. tick: called after every part with the
  share of the grid that is done; what it raises ends the work. Raises NotSolvedError after the first part of which
  fewer than half of the points are solved: the rest would take as long.
  """
  chunk = _chunk(layers, _AT_ONCE, Options())
  parts = _parts(z, chunk)
  guess, solved = _nothing(layers, chunk), []
  for index, part in enumerate(parts):
    guess, values = _compiled_part(layers, part, guess, Options())
    solved.append(values)
    residual = np.asarray(values.residual)
    if not np.median(residual) < SOLVED:
      raise NotSolvedError.of(float(np.median(residual)))
    tick((index + 1) / len(parts))
  result: Resolvent = _joined(jax.tree.map(lambda *each: jnp.stack(each), *solved), z.shape[0])
  rest = np.flatnonzero(~(np.asarray(result.residual) < SOLVED))
  if not 0 < len(rest) <= chunk:
    return result
  at = jnp.asarray(np.resize(rest, chunk))
  _, again = _compiled_part(layers, z[at], _nothing(layers, chunk), _PATIENT)
  result = jax.tree.map(lambda old, new: old.at[at].set(new), result, again)
  return result


def checked(
  layers: Layers, z: Complex[np.ndarray, " points"] | Complex[Array, " points"], limit: float = 1e-7
) -> Resolvent:
  """`resolvent`, raising ValueError unless Im z > 0 everywhere and every residual is at most `limit`."""
  z = jnp.asarray(z, jnp.complex128)
  if bool(jnp.any(z.imag <= 0)):
    raise ValueError(
      f"z: smallest imaginary part {float(jnp.min(z.imag)):.3g}; the resolvent is wanted above the real axis"
    )
  result: Resolvent = resolvent(layers, z)
  worst = int(jnp.argmax(result.residual))
  if not float(result.residual[worst]) <= limit:
    reached, allowed = differing_digits(float(result.residual[worst]), limit)
    raise ValueError(
      f"Dyson equation: residual {reached} at z = {complex(z[worst]):.4g}, above {allowed}; move z further from the "
      "real axis"
    )
  return result
