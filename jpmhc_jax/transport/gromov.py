"""Entropic Gromov–Wasserstein: plans between clouds of different dimension, from the distances within each."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.core.errors import require
from jpmhc_jax.core.fields import check_whole
from jpmhc_jax.transport import sweeps
from jpmhc_jax.transport.points import centred, check_cloud, Rows, unit_of, weights, wide
from jpmhc_jax.transport.sinkhorn import EntropicTransport, potentials, TransportPlan
from jpmhc_jax.transport.sweeps import Problem

__all__ = ["gromov_wasserstein"]


def gromov_wasserstein(
  x: Rows,
  y: Rows,
  a: Array | None = None,
  b: Array | None = None,
  *,
  solver: EntropicTransport | None = None,
  rounds: int = 20,
) -> tuple[Float[Array, ""], TransportPlan]:
  """Σ (|x_i − x_k|² − |y_j − y_l|²)² P_ij P_kl at a local minimum of it plus ε KL(P | abᵀ), and the plan there.

  Each of `rounds` rounds linearises at the plan, from abᵀ on, and solves the transport problem of `solver` (default:
  epsilon 0.05, fixed marginals), whose ε is in units of the mean linearised cost at abᵀ. Squared distances have rank
  d + 2, so that a round costs O(n m (d + e)) and stores no n × n matrix. The gradient of the value is that with P
  fixed; the plan carries none. Raises as `EntropicTransport` does, and DataError for a single point.
  Source: Peyré, Cuturi & Solomon 2016; Scetbon, Peyré & Cuturi 2022 (low rank).

  >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [5.0, 1.0]])
  >>> solver = jp.transport.EntropicTransport(epsilon=0.001)
  >>> value, plan = jp.transport.gromov_wasserstein(x, jnp.flip(x, 1), solver=solver)
  >>> jnp.argmax(plan.matrix(), axis=1).tolist()
  [0, 1, 2, 3]
  """
  solver = EntropicTransport() if solver is None else solver
  check_whole("rounds", rounds, ge=1)
  require(solver.rho == float("inf"), "solver.rho", solver.rho, "infinity: marginals are fixed here")
  check_cloud("x", x, 2)
  check_cloud("y", y, 2)
  x, y = centred(wide(x)), centred(wide(y))
  a, b = weights("a", a, len(x), x.dtype), weights("b", b, len(y), x.dtype)
  fixed_x, fixed_y = jax.lax.stop_gradient((x, y))
  product = jnp.outer(a @ _right(fixed_x), b @ _left(fixed_y))  # Bᵀ P A of P = abᵀ
  mean = _linearised(fixed_x, fixed_y, a, b, product, jnp.ones((), x.dtype)).mean_cost()
  epsilon = solver.epsilon * unit_of(mean)

  def solved(cross: Array) -> tuple[Problem, tuple[Array, Array, Array, Array]]:
    problem = _linearised(fixed_x, fixed_y, a, b, cross, epsilon)
    return problem, potentials(solver, problem)

  def body(_: Array, cross: Array) -> Array:
    problem, (f, g, _, _) = solved(cross)
    return _crosses(problem, f, g, fixed_x, fixed_y)[0]

  problem, (f, g, error, iterations) = solved(jax.lax.fori_loop(0, rounds - 1, body, product))
  cross, other, rows, columns = _crosses(problem, f, g, x, y)
  own = jnp.vdot(rows, _mean_squares(x, rows)) + jnp.vdot(columns, _mean_squares(y, columns))
  return own - 2 * jnp.vdot(other, cross), TransportPlan(problem, f, g, error, iterations)


# Squared distances are D = A Bᵀ with A = [|x|², 1, −2x] and B = [1, |x|², x]: D_x P D_y = A_x (B_xᵀ P A_y) B_yᵀ.
def _left(x: Array) -> Array:
  square = jnp.sum(x * x, axis=1, keepdims=True)
  return jnp.concatenate([square, jnp.ones_like(square), -2 * x], axis=1)


def _right(x: Array) -> Array:
  square = jnp.sum(x * x, axis=1, keepdims=True)
  return jnp.concatenate([jnp.ones_like(square), square, x], axis=1)


def _mean_squares(x: Array, a: Array) -> Array:
  """Σ_k a_k |x_i − x_k|⁴ of every row, from moments of the cloud up to the fourth."""
  s = jnp.sum(x * x, axis=1)
  weighted = a * s
  quadratic = jnp.sum(x * (x @ (x.T @ (a[:, None] * x))), axis=1)
  linear = s * (x @ (a @ x)) + x @ (weighted @ x)
  return s * s * jnp.sum(a) + 2 * s * jnp.sum(weighted) + jnp.vdot(weighted, s) - 4 * linear + 4 * quadratic


def _linearised(x: Array, y: Array, a: Array, b: Array, cross: Array, epsilon: Array) -> Problem:
  """The transport problem whose cost is the derivative by P of the value at a plan with B_xᵀ P A_y = cross."""
  own = 2 * _mean_squares(x, a), 2 * _mean_squares(y, b)
  return Problem(4 * _left(x) @ cross, _right(y), *own, a, b, epsilon, jnp.full((), jnp.inf, x.dtype))


def _crosses(problem: Problem, f: Array, g: Array, x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
  """B_xᵀ P A_y, A_xᵀ P B_y, P1 and Pᵀ1 in one pass."""
  values = jnp.concatenate([_left(y), _right(y)], axis=1)
  rows, seen, columns, _ = sweeps.moments(problem, f, g, jnp.zeros((len(x), 0), x.dtype), values)
  left, right = jnp.split(problem.a[:, None] * seen, 2, axis=1)
  return _right(x).T @ left, _left(x).T @ right, problem.a * rows, problem.b * columns
