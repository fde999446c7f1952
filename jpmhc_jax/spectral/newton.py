"""Newton with continuation for the unknowns of the Dyson chain, every grid point on its own schedule.

Damped iteration always converges but needs thousands of steps next to a spectral edge; Newton on the 2L scalars needs
five, with the linear systems solved matrix-free. The solution at the neighbouring grid point brings Newton within
reach, or, where there is none, a dozen damped steps. A grid point where Newton fails is lifted far above the real axis,
z + i h, where damped steps converge fast, and comes down by continuation in h, in steps that shorten at every failure.

Whatever path led there, a solution with all unknowns in the closed lower half-plane is the right one: the map is a
strict contraction of that half-space in its own (Carathéodory) metric and has one fixed point (Earle, Hamilton 1970).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float

from jpmhc_jax.spectral import chain, krylov
from jpmhc_jax.spectral.layers import Layers

__all__ = ["Options", "State", "flat", "matvec", "relative_scale", "solve", "start"]

_LOOSE = 1e-3  # residual at which a lifted point is solved well enough to move on; below it Newton is not judged
_LARGE = 0.3  # residual above which a Newton step that makes it worse is a failure; next to an edge small ones may grow
_ROUNDING = 1e-6  # residual below which a Newton step that gains nothing has met the rounding error
_PATIENCE = 10  # Newton steps that a stage may take
# Far outside a spectrum an unknown is real but for a part of 1e-17 or less, whose sign rounding decides.
_REAL = 1e-12


class Options(NamedTuple):
  """How hard to try."""

  tolerance: float = 1e-10  # largest relative change of any unknown under one application of the map
  max_iterations: int = 400
  warmup: int = 12  # damped steps before the first Newton step at a point that has no solved neighbour
  krylov: int = 16  # dimension of the GMRES space; 16 solves 200 unknowns to 1e-14 (measured at L = 100, n = 4)
  chunk: int = 0  # grid points solved together; 0 chooses by memory


class State(NamedTuple):
  """One row a grid point: `height` is h of the z + i h being solved, `anchor` the last solved stage above it."""

  unknowns: jax.Array
  residual: jax.Array  # of the previous iterate
  damped: jax.Array  # damped steps still to do
  newton: jax.Array  # Newton steps spent on this stage
  height: jax.Array
  descent: jax.Array  # factor (> 1) by which the height comes down
  anchor: jax.Array
  anchor_height: jax.Array  # inf before the first lift
  settled: jax.Array
  iteration: jax.Array


def relative_scale(unknowns: chain.Unknowns) -> chain.Unknowns:
  """Newton works on log(unknowns): their sizes differ by e^L over the layers. A layer without noise has unknown 0."""
  return jnp.where(unknowns == 0, 1.0, unknowns)


def flat(unknowns: chain.Unknowns) -> Complex[Array, "unknowns points"]:
  """Both families of unknowns as one vector a point."""
  return unknowns.reshape(-1, unknowns.shape[-1])


def matvec(layers: Layers, linear: chain.Linearised, scale: chain.Unknowns) -> Callable[[Array], Array]:
  """y -> (1 − D)y, D the derivative of the map in relative variables."""

  def apply(y: Array) -> Array:
    return y - flat(chain.derivative(layers, linear, y.reshape(scale.shape) * scale) / scale)

  return apply


def start(layers: Layers, z: Complex[Array, " points"]) -> tuple[chain.Unknowns, Float[Array, ""]]:
  """Leading order at z moved up to where it dominates (both corners of R are second moments there), and E tr JᵀJ /
  N."""

  def moment(state: Array, layer: tuple[Array, ...]) -> tuple[Array, Array]:
    mixer, inner, outer, variance = layer
    size = variance * jnp.sum(inner * state) / state.shape[0]
    return mixer @ state @ mixer.T + size * outer, size

  eye = jnp.eye(layers.streams)
  reverse = (jnp.swapaxes(layers.mixers, 1, 2), layers.write, layers.read, layers.variance)
  _, beta = jax.lax.scan(moment, eye, (layers.mixers, layers.read, layers.write, layers.variance))
  total, alpha = jax.lax.scan(moment, eye, reverse, reverse=True)
  total = jnp.trace(total) / layers.streams
  alpha = jnp.broadcast_to((1 - 0.5j) * alpha[:, None], (layers.depth, z.shape[0]))
  return jnp.stack([alpha, beta[:, None] / (z + 1j * total)[None, :]]), total


def _below(unknowns: chain.Unknowns) -> Bool[Array, " points"]:
  """Is every unknown finite and in the closed lower half-plane, up to rounding?"""
  return jnp.all(jnp.isfinite(unknowns) & (unknowns.imag <= _REAL * jnp.abs(unknowns)), axis=(0, 1))


def _choose(points: Bool[Array, " points"], yes: chain.Unknowns, no: chain.Unknowns) -> chain.Unknowns:
  return jnp.where(points[None, None, :], yes, no)


def _replanned(state: State, residual: Float[Array, " points"], z: Array, lift: Array, options: Options) -> State:
  """Moves points between stages: down when a stage is solved, back to the anchor when Newton fails there."""
  home = state.height <= 0
  grew = (state.newton > 0) & (residual > 10 * state.residual) & (residual > _LARGE)
  failed = grew | (state.newton >= _PATIENCE) & (residual > _LOOSE)
  first = failed & ~jnp.isfinite(state.anchor_height)
  again = failed & ~first
  solved = ~home & (residual <= _LOOSE)
  anchor = _choose(solved, state.unknowns, state.anchor)
  anchor_height = jnp.where(solved, state.height, jnp.where(first, lift, state.anchor_height))
  descent = jnp.where(again, jnp.sqrt(state.descent), state.descent)
  lower = anchor_height / descent
  lower = jnp.where(lower < 0.1 * z.imag, 0.0, lower)
  rounding = (state.newton > 2) & (residual <= _ROUNDING) & (residual > 0.3 * state.residual)
  return state._replace(
    unknowns=_choose(failed, anchor, state.unknowns),
    residual=jnp.where(solved | failed, jnp.inf, residual),
    damped=jnp.where(first, options.warmup, jnp.maximum(state.damped - 1, 0)),
    newton=jnp.where(solved | failed, 0, state.newton),
    height=jnp.where(first, lift, jnp.where(solved | again, lower, state.height)),
    descent=descent,
    anchor=anchor,
    anchor_height=anchor_height,
    settled=state.settled | home & ~failed & ((residual <= options.tolerance) | rounding),
  )


def _newton_step(
  layers: Layers, messages: chain.Messages, unknowns: chain.Unknowns, defect: Array, options: Options
) -> Array:
  linear = chain.linearised(layers, messages)
  step = krylov.gmres(matvec(layers, linear, relative_scale(unknowns)), defect, options.krylov)
  largest = jnp.max(jnp.abs(step), axis=0)
  return step * jnp.minimum(1.0, 0.7 / jnp.maximum(largest, 1e-300))[None, :]


def _iterate(layers: Layers, z: Complex[Array, " points"], lift: Array, options: Options, state: State) -> State:
  messages = chain.messages(layers, z + 1j * state.height, state.unknowns)
  mapped, _ = chain.updated(layers, messages)
  scale = relative_scale(state.unknowns)
  defect = flat((mapped - state.unknowns) / scale)
  residual = jnp.max(jnp.abs(defect), axis=0)
  residual = jnp.where(jnp.isfinite(residual), residual, jnp.inf)
  plan = _replanned(state, residual, z, lift, options)
  # A point that has just changed its stage stands still for this iteration: the messages are those of the old stage.
  moving = (plan.height == state.height) & jnp.isfinite(plan.residual) & ~plan.settled
  wanted = moving & (plan.damped == 0)
  step = jax.lax.cond(
    jnp.any(wanted),
    lambda: _newton_step(layers, messages, state.unknowns, defect, options),
    lambda: jnp.zeros_like(defect),
  )
  candidate = state.unknowns + scale * step.reshape(scale.shape)
  usable = wanted & _below(candidate)
  average = 0.5 * (mapped + state.unknowns)
  following = _choose(moving, _choose(usable, candidate, average), plan.unknowns)
  return plan._replace(unknowns=following, newton=plan.newton + wanted, iteration=state.iteration + 1)


def solve(
  layers: Layers, z: Complex[Array, " points"], guess: chain.Unknowns, options: Options
) -> tuple[chain.Unknowns, Array, Array]:
  """Unknowns, relative residuals and iteration count (the same for all points, as float).

  guess: unknowns at points nearby; a point whose guess is NaN starts from the leading order far above the axis.
  """
  points = z.shape[0]
  first, total = start(layers, z)
  lift = total + jnp.abs(z)
  near = _below(guess)
  state = State(
    unknowns=_choose(near, guess, first),
    residual=jnp.full(points, jnp.inf),
    damped=jnp.where(near, 1, options.warmup),
    newton=jnp.zeros(points, int),
    height=jnp.zeros(points),
    descent=jnp.full(points, 10.0),
    anchor=first,
    anchor_height=jnp.full(points, jnp.inf),
    settled=jnp.zeros(points, bool),
    iteration=jnp.zeros((), int),
  )
  state = jax.lax.while_loop(
    lambda s: (s.iteration < options.max_iterations) & ~jnp.all(s.settled),
    lambda s: _iterate(layers, z, lift, options, s),
    state,
  )
  mapped, _ = chain.dyson_map(layers, z, state.unknowns)
  residual = jnp.max(jnp.abs(flat((mapped - state.unknowns) / relative_scale(state.unknowns))), axis=0)
  return state.unknowns, residual, jnp.full(points, state.iteration, z.real.dtype)
