"""Riemannian descent on problems with a closed-form optimum, beside pymanopt's solvers in the same process.

  python -m experiments.benchmarks.riemannian [--out=riemannian.json] [--repeats=5]

For each problem and solver: gradient steps until the gap to the optimum is below 1e-5 of the first gap, cost
evaluations spent on them, the factor by which a step shrinks the gap on the way from 1e-2 to 1e-5, the wall time of
those steps (median; ours without compilation, which is given apart), and the gap at the end. Ours takes fixed steps in
float32 with one gradient each; pymanopt searches along a line in float64. pymanopt is no dependency of the package:
`pip install pymanopt`; without it only our rows are printed.

Expect (2 shared CPU cores, Nov 2026, pymanopt 2.2.1): every solver reaches 1e-5. pymanopt takes 10-21 steps of a line
search, 25-56 evaluations and 0.6-9 ms; cayley_sgd 52-63 evaluations and 1.3-2.4 ms at a step size picked by hand;
cayley_adam 113-200 and 4-9 ms with no such choice; Muon needs far more on joint diagonalisation (1,714). A line search
is the better method for one deterministic loss; the transformations here are for noisy gradients inside a larger model.
"""

import argparse
from collections.abc import Callable
import dataclasses
import importlib.util
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import timing
from jpmhc_jax.core import arguments
from jpmhc_jax.manifolds import Grassmann, Manifold, Orthogonal
from jpmhc_jax.optim.manifold_optimizers import cayley_adam, cayley_sgd, grassmann_adam, landing, projected_muon

STEPS = 2000
TARGET = 1e-5


@dataclasses.dataclass(frozen=True)
class Problem:
  """A loss written once for numpy and jax arrays, with its gradient, optimum and start."""

  name: str
  manifold: Manifold
  loss: Callable[[Any], Any]
  gradient: Callable[[Any], Any]  # Euclidean, for pymanopt's numpy backend; ours differentiates `loss`
  best: float
  start: np.ndarray
  rate: float  # for plain steps: about 1 / curvature


@dataclasses.dataclass(frozen=True)
class Row:
  """One solver on one problem; None where the target was not reached."""

  problem: str
  solver: str
  steps: int | None
  evaluations: int | None
  factor: float | None
  milliseconds: float | None
  compile_seconds: float
  final_gap: float


def problems(seed: int = 0) -> list[Problem]:
  """Procrustes on O(8), leading eigenspace on Gr(20, 4), joint diagonalisation of ten 6 x 6 matrices on O(6)."""
  rng = np.random.default_rng(seed)

  def orthogonal(n: int) -> np.ndarray:
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return q if np.linalg.det(q) > 0 else q * np.array([-1.0] + [1.0] * (n - 1))

  a = np.eye(8) + 0.15 * rng.standard_normal((8, 8))
  b = a @ orthogonal(8) + 0.05 * rng.standard_normal((8, 8))
  u, _, vt = np.linalg.svd(a.T @ b)
  procrustes = float(np.sum((a @ u @ vt - b) ** 2))

  v = orthogonal(20)
  values = np.concatenate([[4.0, 3.6, 3.3, 3.0], np.linspace(2.0, 0.0, 16)])
  c = (v * values) @ v.T

  w = orthogonal(6)
  d = (w[None] * rng.standard_normal((10, 1, 6))) @ w.T[None]
  off = 1.0 - np.eye(6)[None]

  return [
    Problem(
      "Procrustes O(8)", Orthogonal(), lambda x: ((a @ x - b) ** 2).sum(), lambda x: 2 * a.T @ (a @ x - b),
      procrustes, np.eye(8), 0.1,
    ),
    Problem(
      "eigenspace Gr(20,4)", Grassmann(), lambda x: -(x * (c @ x)).sum(), lambda x: -2 * c @ x,
      -float(values[:4].sum()), orthogonal(20)[:, :4], 0.1,
    ),
    Problem(
      "joint diagonalisation O(6)", Orthogonal(), lambda q: ((off * (q.T[None] @ d @ q[None])) ** 2).sum(),
      lambda q: (4 * d @ q[None] @ (off * (q.T[None] @ d @ q[None]))).sum(0), 0.0, np.eye(6), 0.01,
    ),
  ]  # fmt: skip


def our_solvers(problem: Problem) -> dict[str, optax.GradientTransformation]:
  """What a user would try first: plain steps with momentum, Adam, and the comparison arms."""
  cosine = optax.cosine_decay_schedule(0.1, STEPS)
  solvers = {
    "cayley_sgd": cayley_sgd(problem.rate / 2, problem.manifold, momentum=0.8),
    "cayley_adam": cayley_adam(cosine, problem.manifold, b2=0.99),
    "landing": landing(problem.rate),
    "projected_muon": projected_muon(cosine, problem.manifold),
  }
  if isinstance(problem.manifold, Grassmann):
    solvers["grassmann_adam"] = grassmann_adam(cosine, problem.manifold, b2=0.99)
  return solvers


def run_ours(problem: Problem, name: str, optimizer: optax.GradientTransformation, repeats: int) -> Row:
  """Compiles STEPS steps into one program, then times it."""

  def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
    params, state = carry
    loss, gradient = jax.value_and_grad(problem.loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), loss

  start = jnp.asarray(problem.start, jnp.float32)
  began = time.perf_counter()
  program = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=STEPS)).lower(start).compile()
  compiled = time.perf_counter() - began
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    (final, _), losses = jax.block_until_ready(program(start))
    times.append(time.perf_counter() - began)
  costs = [*np.asarray(losses, np.float64), float(problem.loss(np.asarray(final, np.float64)))]
  steps, factor, gap = summary(costs, problem.best)
  milliseconds = None if steps is None else 1e3 * statistics.median(times) * steps / STEPS
  return Row(problem.name, f"jpmhc_jax {name}", steps, steps, factor, milliseconds, compiled, gap)


def run_pymanopt(problem: Problem, name: str, repeats: int) -> Row:
  """The same problem through pymanopt's numpy backend with its default line search."""
  import pymanopt
  import pymanopt.manifolds
  import pymanopt.optimizers

  n, p = problem.start.shape
  grassmann = isinstance(problem.manifold, Grassmann)
  manifold = pymanopt.manifolds.Grassmann(n, p) if grassmann else pymanopt.manifolds.Stiefel(n, p)
  evaluations = 0

  def cost(x: np.ndarray) -> float:
    nonlocal evaluations
    evaluations += 1
    return problem.loss(x)

  wrap = pymanopt.function.numpy(manifold)
  described = pymanopt.Problem(manifold, wrap(cost), euclidean_gradient=wrap(problem.gradient))
  solver = getattr(pymanopt.optimizers, name)(
    max_iterations=STEPS, min_gradient_norm=1e-6, min_step_size=1e-14, verbosity=0, log_verbosity=1
  )
  times = []
  for _ in range(repeats):
    evaluations, began = 0, time.perf_counter()
    result = solver.run(described, initial_point=problem.start.copy())
    times.append(time.perf_counter() - began)
  costs = [*result.log["iterations"]["cost"], result.cost]
  steps, factor, gap = summary(costs, problem.best)
  share = None if steps is None else steps / max(1, len(costs) - 1)
  milliseconds = None if share is None else 1e3 * statistics.median(times) * share
  spent = None if share is None else round(evaluations * share)
  return Row(problem.name, f"pymanopt {name}", steps, spent, factor, milliseconds, 0.0, gap)


def summary(costs: list[float], best: float) -> tuple[int | None, float | None, float]:
  """Steps to the target, mean factor a step between 1e-2 and the target, and the last relative gap."""
  gaps = (np.asarray(costs) - best) / (costs[0] - best)

  def first_below(level: float) -> int | None:
    below = np.flatnonzero(gaps <= level)
    return int(below[0]) if below.size else None

  early, late = first_below(1e-2), first_below(TARGET)
  factor = None  # a gap under 1e-7 is rounding in float32
  if early is not None and late is not None and late > early:
    factor = float((max(gaps[late], 1e-7) / gaps[early]) ** (1 / (late - early)))
  return late, factor, float(gaps[-1])


def table(rows: list[Row]) -> str:
  """Fixed-width text."""
  head = f"{'problem':28}{'solver':32}{'steps':>7}{'evals':>7}{'factor':>8}{'ms':>9}{'compile s':>11}{'final gap':>12}"

  def cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

  lines = [
    f"{r.problem:28}{r.solver:32}{cell(r.steps, 'd'):>7}{cell(r.evaluations, 'd'):>7}{cell(r.factor, '.3f'):>8}"
    f"{cell(r.milliseconds, '.2f'):>9}{r.compile_seconds:>11.2f}{r.final_gap:>12.1e}"
    for r in rows
  ]
  return "\n".join([head, *lines])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=arguments.path, help="write the rows as JSON")
  parser.add_argument("--repeats", type=arguments.whole(1), default=5)
  options = parser.parse_args()
  has_pymanopt = importlib.util.find_spec("pymanopt") is not None
  rows = []
  for problem in problems():
    rows += [run_ours(problem, name, solver, options.repeats) for name, solver in our_solvers(problem).items()]
    if has_pymanopt:
      rows += [run_pymanopt(problem, name, options.repeats) for name in ("SteepestDescent", "ConjugateGradient")]
  print(table(rows))
  if not has_pymanopt:
    print("pymanopt is not installed, so its rows are missing: pip install pymanopt")
  if options.out:
    timing.write_json(options.out, {"rows": [dataclasses.asdict(row) for row in rows]})


if __name__ == "__main__":
  main()
