"""G(z) of layers with correlated noise on a grid, each point from its neighbour, with gradients."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex
import numpy as np

from jpmhc_jax.spectral import dyson, krylov
from jpmhc_jax.spectral.correlated import equation, newton
from jpmhc_jax.spectral.correlated.equation import Places
from jpmhc_jax.spectral.correlated.newton import Options
from jpmhc_jax.spectral.correlated.noise import Correlated, independent, is_independent
from jpmhc_jax.spectral.dyson import Resolvent

__all__ = ["Prepared", "by_parts", "first_moment", "prepared", "resolvent"]

_AT_ONCE = 16  # grid points between two ticks


class _Neighbours(NamedTuple):
  """The last two points of the grid and their unknowns, the nearer one first; NaN where there is none."""

  z: jax.Array  # (2,)
  unknowns: jax.Array  # (2, 2L, 2L)


class _Infinity(NamedTuple):
  unknowns: jax.Array
  moment: jax.Array


class Prepared(NamedTuple):
  """Layers with what does not depend on z: a whole spectrum solves several grids over them."""

  at: Places
  infinity: _Infinity


_Values = tuple[Array, Array, Array, Array]  # h, G, residual and iterations


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _solved(at: Places, z: Complex[Array, ""], guess: Array, infinity: _Infinity, options: Options) -> _Values:
  """(h, G, residual, iterations) at z."""
  solution = newton.solve(at, 1 / z, guess, options.tolerance, options)
  solved = (solution.residual < dyson.SOLVED) & newton.on_branch(solution.unknowns)
  restart = lambda: newton.descend(at, z, *infinity, options)  # noqa: E731
  solution = jax.lax.cond(solved, lambda: solution, restart)
  return solution.unknowns, solution.mapped.g, solution.residual, solution.iterations.astype(z.real.dtype)


# h = map(h, θ)  ⇒  (1 − D) dh = ∂map/∂θ dθ: one more Krylov solve, and none of the iterations.
# The solution does not depend on the guess.
@_solved.defjvp
def _solved_jvp(options: Options, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[_Values, _Values]:
  at, z, guess, infinity = primals
  unknowns, g, residual, iterations = _solved(at, z, guess, infinity, options)
  mapped, moved = jax.jvp(lambda at, z: equation.dyson_map(at, 1 / z, unknowns), primals[:2], tangents[:2])
  scale = newton.size(unknowns)
  solve = functools.partial(krylov.gmres, dimension=2 * options.krylov, restarts=3)
  relative = jax.lax.custom_linear_solve(
    newton.matvec(at, mapped.full, scale), (moved.traced / scale).reshape(-1, 1), solve, transpose_solve=solve
  )
  change = relative.reshape(scale.shape) * scale
  _, further = jax.jvp(lambda h: equation.dyson_map(at, 1 / z, h).g, (unknowns,), (change,))
  zeros = jnp.zeros_like(residual), jnp.zeros_like(iterations)
  return (unknowns, g, residual, iterations), (change, moved.g + further, *zeros)


def _guess(near: _Neighbours, z: Complex[Array, ""]) -> Array:
  """Along the line through the last two solutions, or the last one where that leaves the half-plane."""
  step = (z - near.z[0]) / (near.z[0] - near.z[1])
  ahead = near.unknowns[0] + step * (near.unknowns[0] - near.unknowns[1])
  good = (jnp.abs(step) < 2) & jnp.all(jnp.isfinite(ahead)) & jnp.all(jnp.diagonal(ahead).imag < 0)
  return jnp.where(good, ahead, near.unknowns[0])


@functools.partial(jax.jit, static_argnums=4)
def _grid(
  at: Places, z: Complex[Array, " points"], near: _Neighbours, infinity: _Infinity, options: Options
) -> tuple[_Neighbours, Resolvent]:
  """The neighbours of the next part of the grid, and the values of this one."""

  def point(near: _Neighbours, z: Array) -> tuple[_Neighbours, Resolvent]:
    guess = jax.lax.stop_gradient(_guess(near, z))
    unknowns, g, residual, iterations = _solved(at, z, guess, infinity, options)
    unknowns = jnp.where(residual < dyson.SOLVED, jax.lax.stop_gradient(unknowns), jnp.nan)
    following = _Neighbours(jnp.stack([z, near.z[0]]), jnp.stack([unknowns, near.unknowns[0]]))
    return jax.lax.stop_gradient(following), Resolvent(g, residual, iterations)

  return jax.lax.scan(point, near, z)


@jax.jit
def _infinity(at: Places) -> _Infinity:
  return _Infinity(*newton.at_infinity(jax.lax.stop_gradient(at)))


def _alone(at: Places) -> _Neighbours:
  """No neighbours, for the first point."""
  unknowns = jnp.full((2, *at.moments.shape), jnp.nan, jnp.complex128)
  return _Neighbours(jnp.full(2, jnp.nan, jnp.complex128), unknowns)


def resolvent(layers: Correlated, z: Complex[Array, " points"], options: Options = Options()) -> Resolvent:  # noqa: B008
  """G(z) of JᵀJ for Im z > 0, exact as p → ∞ for jointly Gaussian noise of any covariance.

  z: complex (points,), upper half-plane, ordered along its curve, since every point starts from the one before it. Cost
  O(L³ m³) a point and map, about 8 maps a point; layers whose moments are known to be independent take the O(L n³)
  chain of `dyson.resolvent`. Differentiable in mixers, reads, writes, moments and z (forward and reverse) through the
  implicit function theorem. Residuals are returned, not judged. Raises ValueError for a z that is not complex128.
  """
  if z.dtype != jnp.complex128:
    raise ValueError(f"z: dtype {z.dtype}; expected complex128 (wrap in `with jax.enable_x64(True):`)")
  result: Resolvent
  if is_independent(layers):
    result = dyson.resolvent(independent(layers), z)
  else:
    at = equation.places(layers)
    _, result = _grid(at, z, _alone(at), _infinity(at), options)
  return result


def prepared(layers: Correlated | Prepared) -> Prepared:
  """The layers for several grids."""
  if isinstance(layers, Prepared):
    return layers
  at = equation.places(layers)
  return Prepared(at, _infinity(at))


def by_parts(
  layers: Correlated | Prepared, z: Complex[Array, " points"], tick: Callable[[float], None] = lambda share: None
) -> Resolvent:
  """`resolvent`, a part of the grid after the other, from Python: one program for every grid over these layers.

  tick: called after every part with the share of the grid that is done; what it raises ends the work. Raises
  NotSolvedError after the first part of which fewer than half of the points are solved: the rest would take as long.
  """
  at, infinity = prepared(layers)
  near = _alone(at)
  padded = np.append(np.asarray(z), np.repeat(np.asarray(z)[-1:], -z.shape[0] % _AT_ONCE)).reshape(-1, _AT_ONCE)
  done = []
  for index, part in enumerate(padded):
    near, values = _grid(at, jnp.asarray(part), near, infinity, Options())
    done.append(values)
    residual = np.asarray(values.residual)
    if not np.median(residual) < dyson.SOLVED:
      raise dyson.NotSolvedError.of(float(np.median(residual)))
    tick((index + 1) / len(padded))
  result: Resolvent = jax.tree.map(lambda *each: jnp.concatenate(each)[: z.shape[0]], *done)
  return result


def first_moment(layers: Correlated | Prepared) -> float:
  """E tr JᵀJ / N, exact as p → ∞."""
  return float(prepared(layers).infinity.moment)
