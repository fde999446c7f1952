"""Newton-GMRES for the unknowns of one point z, with damped steps and continuation from infinity where it fails.

From the solution at a neighbouring point Newton needs two or three steps, each with a handful of products D v, where D
is the derivative of the map. Without a neighbour the point is reached from z = ∞, where the map is nilpotent and so
solved by iterating it, down the line z + i t in steps that shorten at every failure. Damped iteration always converges,
if slowly beside an edge. Whatever path led there, a solution with Im h ≤ 0 is the right one (see `equation`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float

from jpmhc_jax.spectral import krylov
from jpmhc_jax.spectral.correlated import equation
from jpmhc_jax.spectral.correlated.equation import Places

__all__ = ["Options", "Solution", "Unknowns", "at_infinity", "descend", "matvec", "on_branch", "size", "solve"]

_LOOSE = 1e-4  # residual at which a point on the way down is solved well enough to move on
_ROUNDING = 1e-8  # residual below which a step that gains nothing has met the rounding error
_REAL = 1e-12  # Im h / |h| that is rounding, far outside a spectrum
_BRANCH = 1e-6  # the same for the eigenvalues of Im h, which the residual moves
_FINEST = 1e-4  # relative residual down to which float32 solves the linear system of a step
_HIGHEST = 1e30  # times the first height: where the descent gives up looking for one to begin at
_STEPS_DOWN = 200

Unknowns = Complex[Array, "u u"]


class Options(NamedTuple):
  """How hard to try."""

  tolerance: float = 1e-9  # largest relative change of an unknown under one application of the map
  max_iterations: int = 24  # applications of the map at one point
  damped: int = 6  # averaged steps after a failed Newton step
  krylov: int = 16  # dimension of the GMRES space


class Solution(NamedTuple):
  """Where the iteration ended at one point."""

  unknowns: jax.Array  # (2L, 2L)
  mapped: equation.Map  # at these unknowns
  residual: jax.Array  # ()
  iterations: jax.Array  # () int


def size(unknowns: Unknowns) -> Float[Array, "u u"]:
  """√|h_rr h_ss|: what an entry is measured by."""
  units = equation.units(unknowns)
  return units[:, None] * units[None, :]


def _single(at: Places, full: Array, scale: Float[Array, "u u"]) -> Callable[[Array], Array]:
  """`matvec` on pairs in float32, which is all that an inexact Newton step needs: y -> y − F̃ (moments~ ∘ S y S) F̃."""
  segments, units = at.ends.shape[3], jnp.sqrt(jnp.diagonal(scale))
  wide = jnp.repeat(units, segments)
  relative_full = full / (wide[:, None] * wide[None, :])[None]
  real, imaginary = (part.astype(jnp.float32) for part in _parts(relative_full))
  moments = (at.moments * scale * jnp.roll(scale, (len(units) // 2,) * 2, axis=(0, 1))).astype(jnp.float32)
  relative = at._replace(moments=moments)

  def apply(y: Array) -> Array:
    tangent = jax.lax.complex(*y.reshape(2, *scale.shape))
    change = equation.derivative(relative, jax.lax.complex(real, imaginary), tangent)
    return y - jnp.stack(_parts(change)).reshape(y.shape)

  return apply


def _parts(a: Array) -> tuple[Array, Array]:
  return a.real, a.imag


def matvec(at: Places, full: Array, scale: Float[Array, "u u"]) -> Callable[[Array], Array]:
  """y -> (1 − D) y in relative variables, for flat y."""

  def apply(y: Array) -> Array:
    tangent = y.reshape(scale.shape) * scale
    return y - (equation.derivative(at, full, tangent) / scale).reshape(y.shape)

  return apply


def on_branch(unknowns: Unknowns) -> Bool[Array, ""]:
  """Is Im h ≤ 0, up to rounding?"""
  below = -unknowns.imag / size(unknowns)
  factor = jnp.linalg.cholesky(0.5 * (below + below.T) + _BRANCH * jnp.eye(len(below)))
  return jnp.all(jnp.isfinite(factor))


def _diagonal_below(unknowns: Unknowns) -> Bool[Array, ""]:
  diagonal = jnp.diagonal(unknowns)
  return jnp.all(jnp.isfinite(unknowns)) & jnp.all(diagonal.imag <= _REAL * jnp.abs(diagonal))


def _largest(change: Unknowns, unknowns: Unknowns) -> Float[Array, ""]:
  """Of a change, relative to the unknown or to its `size`, whichever is larger: rounding moves both."""
  return jnp.max(jnp.abs(change) / jnp.maximum(jnp.abs(unknowns), size(unknowns)))


def _residual(unknowns: Unknowns, mapped: equation.Map) -> Float[Array, ""]:
  residual = _largest(mapped.traced - unknowns, unknowns)
  return jnp.where(jnp.isfinite(residual), residual, jnp.inf)


class _State(NamedTuple):
  solution: Solution
  damped: jax.Array  # averaged steps still to do
  settled: jax.Array


def solve(at: Places, w: Complex[Array, ""], guess: Unknowns, tolerance: float | Array, options: Options) -> Solution:
  """The unknowns at w = 1/z from a guess; a guess of NaN is returned as it is, with residual ∞."""

  def iterate(state: _State) -> _State:
    unknowns, mapped, residual, iteration = state.solution
    defect, scale = mapped.traced - unknowns, size(unknowns)
    # Solve the linear system only as far as Newton's own error allows.
    accuracy = jnp.clip(jnp.maximum(residual, 0.1 * tolerance / residual), _FINEST, 0.1).astype(jnp.float32)

    def newton() -> Array:
      rhs, norm = defect / scale, jnp.max(jnp.abs(defect / scale))
      pair = jnp.stack(_parts(rhs / norm)).reshape(2, -1).astype(jnp.float32)
      step = krylov.gmres_of_pairs(_single(at, mapped.full, scale), pair, options.krylov, accuracy)
      step = norm * scale * jax.lax.complex(*step.astype(scale.dtype).reshape(2, *scale.shape))
      return step * jnp.minimum(1.0, 1.0 / jnp.maximum(_largest(step, unknowns), 1e-300))

    candidate = unknowns + jax.lax.cond(state.damped == 0, newton, lambda: 0.5 * defect)
    following = jnp.where(_diagonal_below(candidate), candidate, 0.5 * (unknowns + mapped.traced))
    next_map = equation.dyson_map(at, w, following)
    next_residual = _residual(following, next_map)
    grew = (state.damped == 0) & (next_residual > residual)
    damped = jnp.where(grew, options.damped, jnp.maximum(state.damped - 1, 0))
    stuck = (next_residual <= _ROUNDING) & (next_residual > 0.3 * residual)
    settled = (next_residual <= tolerance) | stuck
    return _State(Solution(following, next_map, next_residual, iteration + 1), damped, settled)

  mapped = equation.dyson_map(at, w, guess)
  residual = _residual(guess, mapped)
  first = Solution(guess, mapped, residual, jnp.ones((), int))
  finite = jnp.all(jnp.isfinite(guess))
  state = _State(first, jnp.zeros((), int), ~finite | (residual <= tolerance))
  keep_on = lambda s: (s.solution.iterations < options.max_iterations) & ~s.settled  # noqa: E731
  return jax.lax.while_loop(keep_on, iterate, state).solution


def at_infinity(at: Places) -> tuple[Unknowns, Float[Array, ""]]:
  """The unknowns at z = ∞ and the first moment of the spectrum, E tr JᵀJ / N.

  Nothing returns to an earlier layer there, so that the map is nilpotent: iterating it ends at the solution.
  """
  zero = jnp.zeros((), jnp.complex128)

  def following(state: tuple[Any, ...]) -> tuple[Any, ...]:
    count, unknowns, _, _ = state
    mapped = equation.dyson_map(at, zero, unknowns)
    return count + 1, mapped.traced, _residual(unknowns, mapped), mapped.moment

  start = 0, jnp.zeros(at.moments.shape, jnp.complex128), jnp.asarray(jnp.inf), zero
  more = lambda state: (state[0] < _applications(at)) & (state[2] > 1e-13)  # noqa: E731
  _, unknowns, _, moment = jax.lax.while_loop(more, following, start)
  return unknowns, moment.real


def _iterated(at: Places, w: Complex[Array, ""], infinity: Unknowns) -> Unknowns:
  """The map iterated from the unknowns at infinity, for a z = 1/w far above the spectrum.

  The read half, zero at infinity, is of order w, and the map hands it on from layer to layer: so many applications are
  wanted as there are places. In one Newton step its linear system, all but nilpotent, is too much for a small Krylov
  space.
  """

  def following(state: tuple[Any, ...]) -> tuple[Any, ...]:
    count, unknowns, _ = state
    mapped = equation.dyson_map(at, w, unknowns)
    return count + 1, mapped.traced, _residual(unknowns, mapped)

  start = jnp.zeros((), int), infinity, jnp.asarray(jnp.inf)
  more = lambda state: (state[0] < _applications(at)) & (state[2] > _LOOSE)  # noqa: E731
  return jax.lax.while_loop(more, following, start)[1]


def _applications(at: Places) -> int:
  """Of the map, after which nothing is left to hand on where it is nilpotent."""
  return 2 * at.moments.shape[0] + 4


class _Descent(NamedTuple):
  anchor: Solution  # the last solved point above
  height: jax.Array  # its height over z; inf for the solution at infinity
  aim: jax.Array  # height that is tried next
  factor: jax.Array  # by which the height comes down
  tries: jax.Array


def descend(
  at: Places, z: Complex[Array, ""], infinity: Unknowns, moment: Float[Array, ""], options: Options
) -> Solution:
  """The solution at z, come to from infinity."""

  def attempt(state: _Descent) -> _Descent:
    w, first = 1 / (z + 1j * state.aim), jnp.isinf(state.height)
    guess = jax.lax.cond(first, lambda: _iterated(at, w, infinity), lambda: state.anchor.unknowns)
    tolerance = jnp.where(state.aim > 0, _LOOSE, options.tolerance)
    new = solve(at, w, guess, tolerance, options)
    solved = (new.residual <= jnp.where(state.aim > 0, _LOOSE, _ROUNDING)) & on_branch(new.unknowns)
    factor = jnp.where(solved, jnp.minimum(state.factor**1.5, 10.0), jnp.sqrt(state.factor))
    factor = jnp.where(first, 10.0, factor)
    height = jnp.where(solved, state.aim, state.height)
    lower = jnp.where(height / factor < 0.1 * z.imag, 0.0, height / factor)
    aim = jnp.where(first & ~solved, 100 * state.aim, lower)
    anchor = jax.tree.map(lambda a, b: jnp.where(solved, a, b), new, state.anchor)
    return _Descent(anchor, height, aim, factor, state.tries + 1)

  shapes = jax.eval_shape(lambda: solve(at, z, infinity, options.tolerance, options))
  unsolved = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
  high = 10 * (moment + jnp.abs(z))
  start = _Descent(unsolved, jnp.asarray(jnp.inf), high, jnp.asarray(10.0), jnp.zeros((), int))
  more = lambda s: (s.height > 0) & (s.tries < _STEPS_DOWN) & (s.factor > 1.001) & (s.aim < _HIGHEST * high)  # noqa: E731
  last = jax.lax.while_loop(more, attempt, start)
  residual = jnp.where(last.height == 0, last.anchor.residual, jnp.inf)
  return last.anchor._replace(residual=residual, iterations=last.tries)
