"""Entropic transport against its optimality conditions, differences, unrolled iterations and ott-jax, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpmhc_jax as jp
from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.transport import sweeps
from jpmhc_jax.transport.sinkhorn import potentials, regularised_cost

EXACT = {"tolerance": 1e-13, "iterations": 3000}


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def clouds(n=12, m=15, d=3, dtype=np.float64):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5
  a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
  return tuple(jnp.asarray(array, dtype) for array in (x, y, a, b))


def dense_cost(cost, x, y):
  if cost == "cosine":
    x, y = (p / jnp.linalg.norm(p, axis=1, keepdims=True) for p in (x, y))
    return 1 - x @ y.T
  return jnp.sum((x[:, None] - y[None]) ** 2, axis=-1)


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize("rho", [np.inf, 1.5])
def test_the_plan_is_optimal(cost, rho, monkeypatch):
  x, y, a, b = clouds()
  monkeypatch.setattr(sweeps, "ENTRIES", 4 * len(y))  # three blocks, and none held
  monkeypatch.setattr(sweeps, "HELD", 0)
  solver = jp.transport.EntropicTransport(cost=cost, epsilon=0.1, rho=rho, **EXACT)
  plan = solver(x, y, a, b)
  p, c, unit = plan.matrix(), dense_cost(cost, x, y), plan.problem.epsilon / 0.1
  np.testing.assert_allclose(unit, a @ c @ b, rtol=1e-12)
  # The objective is strictly convex: a plan at which its derivative vanishes on the feasible directions is the plan.
  slope = c + 0.1 * unit * jnp.log(p / jnp.outer(a, b))
  if np.isfinite(rho):
    slope = slope + rho * unit * (jnp.log(p.sum(1) / a)[:, None] + jnp.log(p.sum(0) / b)[None])
    np.testing.assert_allclose(slope, 0, atol=1e-11)
  else:
    np.testing.assert_allclose(slope - slope[:1] - slope[:, :1] + slope[0, 0], 0, atol=1e-11)
    np.testing.assert_allclose(p.sum(1), a, atol=1e-12)
    np.testing.assert_allclose(p.sum(0), b, atol=1e-12)
  np.testing.assert_allclose(plan.marginals()[0], p.sum(1), rtol=1e-10)
  np.testing.assert_allclose(plan.sharp_cost(), jnp.sum(p * c), rtol=1e-10)
  np.testing.assert_allclose(plan.barycentres(y), p @ y / p.sum(1)[:, None], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("cost", "rho"), [("sqeuclidean", np.inf), ("cosine", 1.5)])
def test_derivatives_are_those_of_differences(cost, rho, monkeypatch):
  x, y, a, b = clouds()
  monkeypatch.setattr(sweeps, "ENTRIES", 4 * len(y))
  solver = jp.transport.EntropicTransport(cost=cost, epsilon=0.1, rho=rho, **EXACT)
  start = solver.problem(x, y, a, b)
  dx, dy = jnp.cos(x), jnp.sin(y)

  def at(t):
    fixed = {"epsilon": start.epsilon, "rho": start.rho}
    return dataclasses.replace(solver.problem(x + t * dx, y + t * dy, a, b), **fixed)

  def of_plan(t):
    moved = jp.transport.TransportPlan(at(t), *potentials(solver, at(t)))
    return moved.sharp_cost() + jnp.sum(moved.f**2) + jnp.vdot(moved.barycentres(y), x)

  def of_value(t):
    return regularised_cost(solver, at(t))

  for function in (of_plan, of_value):
    step = jax.jit(function)
    slope = (step(1e-4) - step(-1e-4)) / 2e-4
    np.testing.assert_allclose(jax.jit(jax.grad(function))(0.0), slope, rtol=2e-6)
    np.testing.assert_allclose(jax.jvp(function, (0.0,), (1.0,))[1], slope, rtol=2e-6)
  curvature = (step(1e-3) - 2 * step(0.0) + step(-1e-3)) / 1e-6
  np.testing.assert_allclose(jax.jit(jax.grad(jax.grad(of_value)))(0.0), curvature, rtol=1e-3)


def test_the_implicit_derivative_is_that_of_unrolled_iterations():
  x, y, a, b = clouds()
  solver = jp.transport.EntropicTransport(epsilon=0.2, **EXACT)
  problem = solver.problem(x, y, a, b)

  def unrolled(y):
    moved = dataclasses.replace(solver.problem(x, y, a, b), epsilon=problem.epsilon)

    def sweep(_, carry):
      return sweeps.exact_sweep(moved, *carry, problem.epsilon)[:2]

    f, g = jax.lax.fori_loop(0, 400, sweep, (jnp.zeros(len(x)), jnp.zeros(len(y))))
    return jp.transport.TransportPlan(moved, f, g, f[0], f[0]).barycentres(y)

  def implicit(y):
    return solver(x, y, a, b, epsilon=problem.epsilon / solver.problem(x, y, a, b).epsilon * 0.2).barycentres(y)

  direction = jnp.sin(y)
  values, tangents = zip(*(jax.jvp(f, (y,), (direction,)) for f in (unrolled, implicit)), strict=True)
  np.testing.assert_allclose(*values, rtol=1e-9)
  np.testing.assert_allclose(*tangents, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jaxopt, which ott-jax imports
@pytest.mark.parametrize(("cost", "rho"), [("sqeuclidean", np.inf), ("cosine", np.inf), ("sqeuclidean", 1.5)])
def test_value_barycentres_and_their_gradients_are_those_of_ott(cost, rho):
  pytest.importorskip("ott")
  from ott.geometry import geometry
  from ott.problems.linear import linear_problem
  from ott.solvers.linear import sinkhorn

  x, y, a, b = clouds()
  solver = jp.transport.EntropicTransport(cost=cost, epsilon=0.1, rho=rho, **EXACT)
  problem, values = solver.problem(x, y, a, b), jnp.sin(jnp.arange(30.0)).reshape(15, 2)
  epsilon, weight = float(problem.epsilon), float(problem.rho)
  tau = 1.0 if rho == np.inf else weight / (weight + epsilon)
  # Their entropy is relative to counting, ours to abᵀ, which counts where masses are free.
  shift = 0.0 if rho == np.inf else epsilon * (jnp.log(a)[:, None] + jnp.log(b)[None])

  def theirs(x, y):
    held = geometry.Geometry(dense_cost(cost, x, y) - shift, epsilon=epsilon)
    solve = sinkhorn.Sinkhorn(threshold=1e-13, max_iterations=3000)
    solved = solve(linear_problem.LinearProblem(held, a=a, b=b, tau_a=tau, tau_b=tau))
    seen = solved.matrix @ values / jnp.sum(solved.matrix, axis=1, keepdims=True)
    return jnp.stack([solved.reg_ot_cost if rho == np.inf else 0.0, jnp.sum(jnp.cos(seen))])

  def ours(x, y):
    value = solver.value(x, y, a, b) if rho == np.inf else 0.0
    return jnp.stack([value, jnp.sum(jnp.cos(solver(x, y, a, b).barycentres(values)))])

  with jax.numpy_rank_promotion("allow"):
    expected, slopes = theirs(x, y), jax.jacrev(theirs, (0, 1))(x, y)
  np.testing.assert_allclose(ours(x, y), expected, rtol=1e-10)
  for mine, other in zip(jax.jacrev(ours, (0, 1))(x, y), slopes, strict=True):
    np.testing.assert_allclose(mine, other, atol=1e-9)


@pytest.mark.parametrize(
  ("cost", "dtype"), [("sqeuclidean", jnp.bfloat16), pytest.param("cosine", jnp.float32, marks=pytest.mark.slow)]
)
def test_small_epsilon_duplicates_empty_clusters_and_zero_rows_give_finite_values_and_gradients(cost, dtype):
  x, y, _, _ = clouds(24, 20, 5, np.float32)
  x, y = x.at[3].set(x[4]).at[5].set(0.0).astype(dtype), y.at[:8].set(1.0).astype(dtype)
  a, b = jnp.ones(24).at[:4].set(0) / 20, jnp.ones(20).at[10:].set(0) / 10
  solver = jp.transport.EntropicTransport(cost=cost, epsilon=1e-4, iterations=60)

  def loss(x, y):
    plan = solver(x, y, a, b)
    return solver.value(x, y, a, b) + plan.sharp_cost() + jnp.sum(plan.barycentres(jnp.ones((20, 1)))) + jnp.sum(
      plan.row_entropy()
    ), plan

  (value, plan), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, y)
  for array in (value, plan.f, plan.g, *gradients):
    assert np.isfinite(np.asarray(array, np.float32)).all()
  rows, columns = plan.marginals()
  assert np.all(np.asarray(rows[:4]) == 0) and np.all(np.asarray(columns[10:]) == 0)
  np.testing.assert_allclose(columns, b, atol=1e-3)  # the last update was that of the columns


@pytest.mark.slow
def test_the_divergence_of_equal_clouds_is_zero_and_of_others_positive():
  x, y, a, b = clouds()
  for rho in (np.inf, 0.5):
    solver = jp.transport.EntropicTransport(epsilon=0.3, rho=rho, **EXACT)
    assert abs(solver.divergence(x, x[::-1], a, a[::-1])) < 1e-12
    assert solver.divergence(x, y, a, b) > 0.05
  assert solver.value(x, x, a, a) > 0.01  # what it takes off


def test_memory_does_not_grow_with_iterations_or_with_the_matrix():
  def bytes_of(iterations, n):
    solver = jp.transport.EntropicTransport(iterations=iterations, tolerance=0.0)
    points = jax.ShapeDtypeStruct((n, 8), jnp.float32)
    lowered = jax.jit(jax.grad(lambda x, y: solver.value(x, y), (0, 1))).lower(points, points)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  assert bytes_of(5, 8192) == bytes_of(500, 8192) < 8192 * 8192 * 4 / 16


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"epsilon": 0.0}, "^epsilon=0.0: expected a positive number"),
    ({"cost": "sqeuclid"}, "^cost='sqeuclid': expected one of .* Did you mean 'sqeuclidean'"),
    ({"rho": -1.0}, "^rho=-1.0: expected a positive number, or infinity"),
    ({"iterations": 0}, "^iterations=0: expected at least 1"),
  ],
)
def test_a_field_that_cannot_work_is_named(fields, message):
  with pytest.raises(ConfigError, match=message):
    jp.transport.EntropicTransport(**fields)


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    (lambda x, y, a, b: (x.at[2, 1].set(jnp.nan), y, a, b), DataError, "^x: row 2 has 1 values that are not finite"),
    (lambda x, y, a, b: (x, y[:, :2], a, b), DataError, "^x has 3 features and y 2"),
    (lambda x, y, a, b: (x, y, a[:-1], b), DataError, r"^a has the shape \(11,\): expected one weight per point"),
    (lambda x, y, a, b: (x, y, a, -b), DataError, "^b: the least weight is -"),
    (lambda x, y, a, b: (x, y, 2 * a, b), ConfigError, "^a, b=.*: expected equal sums, or a finite rho"),
  ],
)
def test_bad_clouds_are_named(change, error, message):
  with pytest.raises(error, match=message):
    jp.transport.EntropicTransport()(*change(*clouds()))


def test_an_epsilon_of_the_call_and_a_single_point_without_distances_are_named():
  x, y, _, _ = clouds()
  with pytest.raises(ConfigError, match="^epsilon=0.0: expected a positive number"):
    jp.transport.EntropicTransport().value(x, y, epsilon=0.0)
  with pytest.raises(DataError, match=r"^x has the shape \(1, 3\)"):
    jp.transport.gromov_wasserstein(x[:1], y)


@pytest.mark.slow
def test_gromov_wasserstein_of_points_that_coincide_is_zero():
  points = jnp.ones((5, 3), jnp.float32)
  value, plan = jp.transport.gromov_wasserstein(points, points[:, :2], rounds=2)
  assert abs(value) < 1e-6 and np.isfinite(plan.matrix()).all()


@pytest.mark.slow
def test_gromov_wasserstein_is_the_double_sum_and_finds_a_rotation_into_more_dimensions():
  x, _, a, b = clouds(14, 14)
  x = x + 0.2 * x**2
  q = jnp.linalg.qr(jnp.asarray(np.random.default_rng(1).normal(size=(5, 3))))[0]
  y = jnp.flip(x, 0) @ q.T + 2
  solver = jp.transport.EntropicTransport(epsilon=2e-3, tolerance=1e-10, iterations=1000)
  value, plan = jp.transport.gromov_wasserstein(x, y, solver=solver)
  assert np.array_equal(np.argmax(plan.matrix(), axis=1), np.arange(14)[::-1])
  coarse = dataclasses.replace(solver, epsilon=0.1)

  def double_sum(x, y, p):
    dx, dy = dense_cost("sqeuclidean", x, x), dense_cost("sqeuclidean", y, y)
    return jnp.einsum("ikjl,ij,kl->", (dx[:, :, None, None] - dy[None, None]) ** 2, p, p)

  value, plan = jp.transport.gromov_wasserstein(x, y, a, a[::-1], solver=coarse, rounds=6)
  np.testing.assert_allclose(value, double_sum(x, y, plan.matrix()), rtol=1e-9)
  slopes = jax.grad(lambda x, y: jp.transport.gromov_wasserstein(x, y, a, a[::-1], solver=coarse, rounds=6)[0], (0, 1))
  expected = jax.grad(double_sum, (0, 1))(x, y, plan.matrix())
  for ours, other in zip(slopes(x, y), expected, strict=True):
    np.testing.assert_allclose(ours, other, rtol=1e-7, atol=1e-9 * float(jnp.max(jnp.abs(other))))
