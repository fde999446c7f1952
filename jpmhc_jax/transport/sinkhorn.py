"""Entropic optimal transport between two clouds of points: Sinkhorn's algorithm, its derivatives and its plan.

    transport = jp.transport.EntropicTransport(epsilon=0.05)
    plan = transport(x, y)             # potentials; plan.barycentres(), plan.marginals(), plan.matrix()
    value = transport.value(x, y)      # regularised cost; gradient by the envelope theorem
    gap = transport.divergence(x, y)   # debiased: zero for equal clouds

Nothing of the size n × m is stored beyond 16 MiB, and nothing grows with the number of iterations: potentials are
differentiated by the implicit rule of their fixed point, in both modes and to any order.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.core.errors import check_choice, require
from jpmhc_jax.core.fields import check_number, check_whole
from jpmhc_jax.transport import sweeps
from jpmhc_jax.transport.points import check_points, cosine, Rows, squared_euclidean, unit_of, weights
from jpmhc_jax.transport.sweeps import Problem

__all__ = [
  "COSTS",
  "EntropicTransport",
  "SOLVER_ITERATIONS",
  "TransportPlan",
  "conjugate_gradients",
  "potentials",
  "regularised_cost",
]

COSTS = {"sqeuclidean": squared_euclidean, "cosine": cosine}
SOLVER_ITERATIONS = 300  # of conjugate gradients in the implicit rule


@dataclasses.dataclass(frozen=True)
class EntropicTransport:
  """min ⟨P, C⟩ + ε KL(P | abᵀ) over plans P between x (n, d) and y (m, d), in the log domain, in blocks.

  cost: "sqeuclidean" |x − y|², or "cosine" 1 − x·y/(|x||y|), 1 for a zero row. epsilon: in units of the mean cost,
  which carries no gradient. rho: weight of KL(P1 | a) + KL(Pᵀ1 | b), in units of the mean cost; infinite for plans with
  marginals a and b. The ε of iteration t is max(epsilon, start · decay^t); iterations stop where Σ |P1 − a| is at most
  `tolerance`, or after `iterations`. Weights a, b are nonnegative, uniform by default; they carry no gradient.

  Inputs of lower precision are computed in float32. Raises ConfigError for fields out of range, DataError for points
  that are not finite, of other widths, or weights that no plan has.
  Source: Cuturi 2013; Feydy et al. 2019 (divergence); Séjourné et al. 2019 (unbalanced); Cuturi et al. 2020 (implicit).

  >>> x = jnp.array([[0.0], [1.0]])
  >>> plan = jp.transport.EntropicTransport(epsilon=0.01)(x, x + 3)
  >>> plan.matrix().round(3).tolist()
  [[0.5, 0.0], [0.0, 0.5]]
  """

  cost: str = "sqeuclidean"
  epsilon: float = 0.05
  rho: float = float("inf")
  iterations: int = 500
  tolerance: float = 1e-4
  start: float = 1.0
  decay: float = 0.7

  def __post_init__(self) -> None:
    check_choice("cost", self.cost, COSTS)
    check_number("epsilon", self.epsilon, gt=0)
    require(self.rho > 0, "rho", self.rho, "a positive number, or infinity for fixed marginals")
    check_whole("iterations", self.iterations, ge=1)
    check_number("tolerance", self.tolerance, ge=0)
    check_number("start", self.start, ge=0)
    check_number("decay", self.decay, gt=0, lt=1)

  def problem(
    self,
    x: Rows,
    y: Rows,
    a: Array | None = None,
    b: Array | None = None,
    epsilon: Any = None,
  ) -> Problem:
    """The problem in the form of `sweeps`, with ε and ρ in units of the cost."""
    check_points(x, y)
    if epsilon is not None and not isinstance(epsilon, jax.core.Tracer):
      check_number("epsilon", float(epsilon), gt=0)
    u, v, alpha, beta = COSTS[self.cost](x, y)
    a, b = weights("a", a, len(x), u.dtype), weights("b", b, len(y), u.dtype)
    if not any(isinstance(w, jax.core.Tracer) for w in (a, b)):
      total = float(jnp.sum(b))
      same = self.rho < np.inf or abs(float(jnp.sum(a)) - total) <= 1e-3 * total
      require(same, "a, b", (float(jnp.sum(a)), total), "equal sums, or a finite rho")
    free = Problem(u, v, alpha, beta, a, b, jnp.ones((), u.dtype), jnp.asarray(self.rho, u.dtype))
    unit = unit_of(free.mean_cost())
    relative = self.epsilon if epsilon is None else epsilon
    return dataclasses.replace(free, epsilon=jnp.asarray(relative, u.dtype) * unit, rho=self.rho * unit)

  def __call__(
    self,
    x: Rows,
    y: Rows,
    a: Array | None = None,
    b: Array | None = None,
    epsilon: Any = None,
  ) -> "TransportPlan":
    """The plan between the clouds; `epsilon`, which may be traced, replaces the field."""
    problem = self.problem(x, y, a, b, epsilon)
    f, g, error, iterations = potentials(self, problem)
    return TransportPlan(problem, f, g, error, iterations)

  def value(
    self,
    x: Rows,
    y: Rows,
    a: Array | None = None,
    b: Array | None = None,
    epsilon: Any = None,
  ) -> Float[Array, ""]:
    """The least ⟨P, C⟩ + ε KL(P | abᵀ) + marginal terms. Its gradient is that of ⟨P, C⟩ with P fixed, one pass."""
    return regularised_cost(self, self.problem(x, y, a, b, epsilon))

  def divergence(
    self,
    x: Rows,
    y: Rows,
    a: Array | None = None,
    b: Array | None = None,
    epsilon: Any = None,
  ) -> Float[Array, ""]:
    """S(x, y) = V(x, y) − V(x, x)/2 − V(y, y)/2 + ε (Σa − Σb)²/2 with the ε and ρ of V(x, y): 0 for equal clouds."""
    both = self.problem(x, y, a, b, epsilon)
    gap = jnp.sum(both.a) - jnp.sum(both.b)
    total = regularised_cost(self, both) + 0.5 * both.epsilon * gap**2
    for points, weight in ((x, both.a), (y, both.b)):
      own = dataclasses.replace(self.problem(points, points, weight, weight), epsilon=both.epsilon, rho=both.rho)
      total = total - 0.5 * regularised_cost(self, own)
    return total


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TransportPlan:
  """A solved plan P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε), held as its potentials f (n,), g (m,): a pytree.

  The gauge is Σ b g = 0 for fixed marginals. error: Σ |P1 − a| before the last update. Everything derived from it is
  differentiable in the points, through the potentials.

  >>> plan = jp.transport.EntropicTransport(epsilon=0.02)(jnp.eye(2), 2 * jnp.eye(2))
  >>> plan.barycentres(jnp.array([[10.0], [20.0]])).round(2).tolist()
  [[10.0], [20.0]]
  """

  problem: Problem
  f: Float[Array, " n"]
  g: Float[Array, " m"]
  error: Float[Array, ""]
  iterations: Array

  def barycentres(self, values: Float[Array, "m k"]) -> Float[Array, "n k"]:
    """Σ_j P_ij values_j / Σ_j P_ij: what each source point sees of the target."""
    return sweeps.row_means(self.problem, self.f, self.g, values)

  def marginals(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """P1 and Pᵀ1."""
    p = self.problem
    no_values = jnp.zeros((len(p.a), 0), p.a.dtype), jnp.zeros((len(p.b), 0), p.b.dtype)
    rows, _, columns, _ = sweeps.moments(p, self.f, self.g, *no_values)
    return p.a * rows, p.b * columns

  def sharp_cost(self) -> Float[Array, ""]:
    """⟨P, C⟩, without the entropy."""
    p = self.problem
    rows, seen, columns, _ = sweeps.moments(p, self.f, self.g, jnp.zeros((len(p.a), 0), p.u.dtype), p.v)
    return jnp.vdot(p.a * rows, p.alpha) + jnp.vdot(p.b * columns, p.beta) - jnp.sum(p.a[:, None] * p.u * seen)

  def row_entropy(self) -> Float[Array, " n"]:
    """Entropy of each row of P over log m, in [0, 1]; m to its power is the effective number of partners."""
    result: Array = sweeps.row_entropies(self.problem, self.g) / np.log(max(len(self.g), 2))
    return result

  def matrix(self) -> Float[Array, "n m"]:
    """P itself, for small clouds."""
    p = self.problem
    cost = p.alpha[:, None] + p.beta[None] - jnp.matmul(p.u, p.v.T, precision=jax.lax.Precision.HIGHEST)
    return p.a[:, None] * p.b[None] * jnp.exp((self.f[:, None] + self.g[None] - cost) / p.epsilon)


_Solution = tuple[Array, Array, Array, Array]
_Search = tuple[Array, Array, Array, Array, Array]  # x, residual, direction, |residual|², steps


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def potentials(options: EntropicTransport, problem: Problem) -> _Solution:
  """(f (n,), g (m,), error, iterations) of Sinkhorn's algorithm; differentiated as the fixed point that they reach."""
  dtype = problem.u.dtype
  scores = sweeps.held_scores(problem)
  # In units of ε the annealing starts at start/epsilon, whatever the mean cost is.
  first = options.start / options.epsilon

  def epsilon_of(t: Array) -> Array:
    return problem.epsilon * jnp.maximum(1.0, first * options.decay ** t.astype(dtype)).astype(dtype)

  def body(state: _Solution) -> _Solution:
    f, g, _, t = state
    epsilon = epsilon_of(t)
    new_f, new_g, error, fine = sweeps.sweep(problem, f, g, epsilon, scores)
    new_f, new_g, error = jax.lax.cond(
      fine, lambda: (new_f, new_g, error), lambda: sweeps.exact_sweep(problem, f, g, epsilon)
    )
    # A step at a larger ε says nothing of the error at the last one.
    return new_f, new_g, jnp.where(epsilon > problem.epsilon, jnp.inf, error).astype(dtype), t + 1

  def going(state: _Solution) -> Array:
    return (state[3] < options.iterations) & (state[2] > options.tolerance)

  start = (
    jnp.zeros_like(problem.alpha),
    jnp.zeros_like(problem.beta),
    jnp.full((), jnp.inf, dtype),
    jnp.zeros((), jnp.int32),
  )
  f, g, error, t = jax.lax.while_loop(going, body, start)
  level = jnp.where(jnp.isinf(problem.rho), jnp.vdot(problem.b, g) / jnp.sum(problem.b), 0.0).astype(dtype)
  return f + level, g - level, error, t


@potentials.defjvp
def _potentials_jvp(
  options: EntropicTransport, primals: tuple[Problem], tangents: tuple[Problem]
) -> tuple[_Solution, tuple[Any, ...]]:
  # With R and L the plan's rows and columns over their sums, the equations κ f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε)
  # and those of g give  κ df + R dg = R∘dC 1,  κ dg + Lᵀdf = (L∘dC)ᵀ1.  Without df, and scaled to be symmetric:
  # (κ² − s LᵀR s⁻¹)(s dg) = s (κ (L∘dC)ᵀ1 − Lᵀ(R∘dC 1)), s = √(b c). Fixed marginals have the kernel s (the gauge).
  (problem,), (change,) = primals, tangents
  solution = potentials(options, problem)
  f, g = solution[:2]
  by_row, by_column = sweeps.cost_tangents(problem, f, g, change)
  kappa, balanced = problem.damping, jnp.isinf(problem.rho)
  sums = jnp.exp(-g / problem.rho)  # Eᵀa behind a column update
  scale = jnp.sqrt(problem.b * sums)
  ratio = jnp.sqrt(problem.b / sums)
  safe = jnp.where(problem.b > 0, scale, 1.0)
  gauge = jnp.where(balanced, scale / jnp.linalg.norm(scale), 0.0)

  def matvec(h: Array) -> Array:
    back = ratio * sweeps.there_and_back(problem, f, g, jnp.where(problem.b > 0, h / safe, 0.0))
    return kappa**2 * h - back + gauge * jnp.vdot(gauge, h)

  right = scale * (kappa * by_column - sweeps.column_means(problem, f, g, by_row[:, None])[:, 0])
  right = right - gauge * jnp.vdot(gauge, right)
  h = jax.lax.custom_linear_solve(matvec, right, conjugate_gradients, symmetric=True)
  dg = jnp.where(problem.b > 0, h / safe, 0.0)
  df = (by_row - sweeps.row_means(problem, f, g, dg[:, None])[:, 0]) / kappa
  # Columns of weight zero follow the rows; the others satisfy this already.
  free = (by_column - sweeps.column_means(problem, f, g, df[:, None])[:, 0]) / kappa
  dg = jnp.where(problem.b > 0, dg, free)
  return solution, (df, dg, jnp.zeros_like(solution[2]), np.zeros((), jax.dtypes.float0))


def conjugate_gradients(matvec: Callable[[Array], Array], right: Float[Array, " m"]) -> Float[Array, " m"]:
  """Solves a symmetric positive system until the residual is of the size of rounding, SOLVER_ITERATIONS at most."""
  # `jax.scipy.sparse.linalg.cg` moves its start and the right side to the device in one operation, which makes the
  # start linear in the right side and the whole untransposable.
  least = (10 * jnp.finfo(right.dtype).eps) ** 2 * jnp.vdot(right, right)

  def body(state: _Search) -> _Search:
    x, residual, direction, square, t = state
    image = matvec(direction)
    step = square / jnp.vdot(direction, image)
    residual = residual - step * image
    new = jnp.vdot(residual, residual)
    return x + step * direction, residual, residual + (new / square) * direction, new, t + 1

  def going(state: _Search) -> Array:
    return (state[3] > least) & (state[4] < SOLVER_ITERATIONS)

  state = (jnp.zeros_like(right), right, right, jnp.vdot(right, right), jnp.zeros((), jnp.int32))
  return jax.lax.while_loop(going, body, state)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def regularised_cost(options: EntropicTransport, problem: Problem) -> Float[Array, ""]:
  """The least value of a problem, from its potentials: ⟨a, f⟩ + ⟨b, g⟩ for fixed marginals of sum one."""
  return _dual(problem, *potentials(options, problem)[:2])


def _dual(problem: Problem, f: Array, g: Array) -> Array:
  rho, balanced = problem.rho, jnp.isinf(problem.rho)
  finite = jnp.where(balanced, 1.0, rho)

  def conjugate(potential: Array) -> Array:
    return jnp.where(balanced, potential, -finite * jnp.expm1(-potential / finite))

  # Behind a column update the plan has the sum Σ b exp(−g/ρ), without a pass.
  mass = jnp.vdot(problem.b, jnp.exp(-g / rho))
  both = jnp.vdot(problem.a, conjugate(f)) + jnp.vdot(problem.b, conjugate(g))
  return both - problem.epsilon * (mass - jnp.sum(problem.a) * jnp.sum(problem.b))


@regularised_cost.defjvp
def _regularised_cost_jvp(
  options: EntropicTransport, primals: tuple[Problem], tangents: tuple[Problem]
) -> tuple[Array, Array]:
  # Envelope theorem: the potentials are stationary, so dV = ⟨P, dC⟩. Its own derivative goes through the potentials.
  (problem,), (change,) = primals, tangents
  f, g = potentials(options, problem)[:2]
  rows, seen_v, columns, seen_u = sweeps.moments(problem, f, g, problem.u, problem.v)
  moved = jnp.vdot(problem.a * rows, change.alpha) + jnp.vdot(problem.b * columns, change.beta)
  moved = moved - jnp.sum(problem.a[:, None] * seen_v * change.u) - jnp.sum(problem.b[:, None] * seen_u * change.v)
  return _dual(problem, f, g), moved
