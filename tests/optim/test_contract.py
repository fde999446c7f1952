"""One contract for every transformation: what optax asks of its own, plus staying on the manifold."""

import functools

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal
import optax
import pytest

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.manifolds import Birkhoff, Grassmann, Iso, Oblique, Orthogonal, Sphere, Stiefel
from jpmhc_jax.optim.adam_atan2 import adam_atan2
from jpmhc_jax.optim.manifold_optimizers import cayley_adam, cayley_sgd, grassmann_adam, landing, projected_muon
from jpmhc_jax.optim.riemannian import (
  retract,
  riemannian_gradient,
  scale_by_riemannian_adam,
  scale_by_riemannian_momentum,
  stabilize_every,
)

# name -> (factory of learning_rate, its geometry or None)
OPTIMIZERS = {
  "adam_atan2": (adam_atan2, None),
  "cayley_sgd": (cayley_sgd, Stiefel(metric="canonical")),
  "cayley_sgd by projection": (functools.partial(cayley_sgd, transport="projection"), Stiefel()),
  "cayley_adam": (cayley_adam, Stiefel(metric="canonical")),
  "cayley_adam elementwise": (functools.partial(cayley_adam, adaptive="elementwise", method="polar"), Stiefel()),
  "cayley_adam unscaled": (functools.partial(cayley_adam, adaptive="none", method="qr"), Stiefel()),
  "orthogonal": (functools.partial(cayley_adam, manifold=Orthogonal()), Orthogonal()),
  "iso": (functools.partial(cayley_adam, manifold=Iso()), Iso()),
  "birkhoff": (functools.partial(cayley_adam, manifold=Birkhoff()), Birkhoff()),
  "sphere": (functools.partial(cayley_adam, manifold=Sphere()), Sphere()),
  "oblique": (functools.partial(cayley_adam, manifold=Oblique()), Oblique()),
  "grassmann_adam": (grassmann_adam, Grassmann()),
  "projected_muon": (projected_muon, Stiefel()),
  "landing": (landing, None),  # approaches the manifold, never exactly on it
}
PIECES = {
  "riemannian_gradient": riemannian_gradient(Stiefel()),
  "momentum": scale_by_riemannian_momentum(Stiefel()),
  "adam": scale_by_riemannian_adam(Stiefel()),
  "retract": retract(Stiefel()),
  "stabilize_every": stabilize_every(Stiefel(), 2),
}
# One of each kind goes through every composition; the others share its code and go through the short list.
FULL = ("adam_atan2", "cayley_sgd", "cayley_adam", "birkhoff", "projected_muon", "landing")
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def problem(name, batch=()):
  """Parameters on the geometry, three gradients a leaf."""
  geometry = OPTIMIZERS[name][1] or Stiefel()
  shape = (4, 4) if isinstance(geometry, Orthogonal | Birkhoff) else (4, 2)
  shapes = {"first": (*batch, *shape), "rest": [(*batch, *shape)]}
  keys = {"first": jax.random.key(1), "rest": [jax.random.key(2)]}
  params = jax.tree.map(lambda s, k: geometry.random(k, s), shapes, keys, is_leaf=lambda s: isinstance(s, tuple))
  gradients = jax.tree.map(lambda p, k: jax.random.normal(jax.random.fold_in(k, 1), (3, *p.shape)), params, keys)
  return params, gradients


def run(optimizer, params, gradients):
  """Parameters and state after the three steps. lax.scan refuses a state whose structure, shapes or dtypes change."""

  def step(carry, gradient):
    params, state = carry
    updates, state = optimizer.update(gradient, state, params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, params)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (params, optimizer.init(params)), gradients)[0]


assert_close = functools.partial(chex.assert_trees_all_close, rtol=0, atol=2e-6)


@every_optimizer
def test_composition(name):
  """Plain; vmapped; masked; and clipped + partitioned + scheduled + injected + accumulated: all agree."""
  factory, geometry = OPTIMIZERS[name]
  params, gradients = problem(name)
  if name not in FULL:
    params, gradients = ({"first": tree["first"]} for tree in (params, gradients))

  def nested():
    injected = optax.inject_hyperparams(factory)(learning_rate=optax.constant_schedule(0.05))
    groups = optax.partition({"x": injected, "y": factory(0.05)}, {"first": "x", "rest": ["y"]})
    return optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1e9), groups), 2).gradient_transformation()

  @jax.jit
  def every_way(params, gradients):
    both = jax.tree.map(lambda g: jnp.stack([jnp.zeros_like(g), g]), gradients)
    ways = {
      "plain": run(factory(0.05), params, gradients)[0],
      "vmap": jax.vmap(lambda g: run(factory(0.05), params, g)[0])(both),
    }
    if name not in FULL:
      return ways
    twice = jax.tree.map(lambda g: jnp.repeat(g, 2, axis=0), gradients)
    masked = optax.masked(factory(0.05), {"first": True, "rest": [False]})
    return ways | {"masked": run(masked, params, gradients)[0], "nested": run(nested(), params, twice)[0]}

  results = every_way(params, gradients)
  plain, vmapped = results["plain"], results["vmap"]
  assert max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (plain, params)), strict=True)) > 0.01
  assert_close(jax.tree.map(lambda x: x[1], vmapped), plain)
  kept = (1 - 0.05 * 0.1) ** 3 if name == "adam_atan2" else 1.0  # without gradients only its weight decay moves
  assert_close(jax.tree.map(lambda x: x[0], vmapped), jax.tree.map(lambda p: kept * p, params))
  if name in FULL:
    assert_close(results["nested"], plain)
    assert_close(results["masked"]["first"], plain["first"])
    untouched = params["rest"][0] + jnp.sum(gradients["rest"][0], axis=0)
    assert_close(results["masked"]["rest"][0], untouched, atol=1e-5)
  if geometry:
    for leaf in jax.tree.leaves(plain):
      assert geometry.distance(leaf) < 3e-6


@pytest.mark.parametrize("name", ["cayley_adam", "landing"])
def test_eager_equals_jit(name):
  optimizer = OPTIMIZERS[name][0](0.05)
  params, gradients = problem(name)
  gradient = jax.tree.map(lambda g: g[0], gradients)
  state = optimizer.init(params)
  eager = optimizer.update(gradient, state, params)
  assert_close(jax.jit(optimizer.update)(gradient, state, params), eager, atol=1e-5)
  assert jax.tree.structure(eager[1]) == jax.tree.structure(state)


@pytest.mark.parametrize("name", ["cayley_sgd", "cayley_adam", "grassmann_adam", "birkhoff", "sphere", "landing"])
def test_gradients_of_any_finite_size_make_steps_on_the_manifold(name):
  factory, geometry = OPTIMIZERS[name]
  params, gradients = problem(name)
  params, gradients = params["first"], jnp.stack([gradients["first"][0]] * 3)  # moments of unlike sizes keep no ratio
  step = jax.jit(lambda g: run(factory(0.05), params, g)[0])
  huge, large = step(1e30 * gradients), step(1e18 * gradients)
  for size, points in ((1e30, huge), (1e18, large), (1e-30, step(1e-30 * gradients)), (0.0, step(0.0 * gradients))):
    assert jnp.max((geometry or Stiefel()).distance(points)) < (3e-6 if geometry else 0.5), size  # false for NaN
  assert jnp.max(jnp.abs(huge - params)) > 1e-3
  if "adam" in name or name in ("birkhoff", "sphere"):  # all of these are Adam's
    assert_allclose(huge, large, rtol=0, atol=1e-5)
    assert_allclose(huge, step(gradients), rtol=0, atol=1e-5)
  assert_allclose(step(1e-30 * gradients), params, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["cayley_sgd", "cayley_adam", "grassmann_adam", "sphere", "projected_muon", "landing"])
def test_a_start_off_the_manifold_is_projected_with_a_warning(name):
  factory, geometry = OPTIMIZERS[name]
  manifold = geometry or Stiefel()
  on = manifold.random(jax.random.key(0), (4, 2))
  gradient = manifold.tangent(on, jax.random.normal(jax.random.key(1), (4, 2)))
  optimizer = factory(0.05)
  optimizer.init(on)  # no warning, which would be an error here
  start = 3.0 * on  # far enough that no retraction finds back by itself
  with pytest.warns(UserWarning, match=r"parameter \(the only leaf\) is off its manifold .* step only projects it"):
    state = optimizer.init(start)
  step = jax.jit(optimizer.update)
  updates, state = step(gradient, state, start)
  assert_allclose(start + updates, on, rtol=0, atol=2e-6)
  updates, state = step(gradient, state, on)
  moved = on + updates
  assert jnp.sum(gradient * (moved - on)) < 0
  if geometry:
    assert geometry.distance(moved) < 3e-6


@pytest.mark.parametrize("name", ["cayley_adam", "birkhoff", "grassmann_adam", "projected_muon", "landing"])
def test_one_device_and_eight_give_the_same_steps(name):
  optimizer = OPTIMIZERS[name][0](0.05)
  step = jax.jit(lambda p, g: run(optimizer, p, g)[0])
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec("data"))
  with jax.enable_x64(True):  # small programs round otherwise than large ones, and Muon makes much of that
    params, gradients = (tree["first"].astype(jnp.float64) for tree in problem(name, batch=(8,)))
    sharded = jax.device_put((params, gradients), (split, NamedSharding(mesh, PartitionSpec(None, "data"))))
    got = step(*sharded)
    assert got.sharding.is_equivalent_to(split, got.ndim) and got.dtype == jnp.float64
    assert_close(got, step(params, gradients), atol=1e-12)


@pytest.mark.parametrize("name", [*PIECES, *(n for n in OPTIMIZERS if OPTIMIZERS[n][1])])
def test_demands_are_stated(name):
  transform = PIECES[name] if name in PIECES else OPTIMIZERS[name][0](0.05)
  with pytest.raises(ConfigError, match=r"\['mixer'\] has dtype bfloat16.*float32 master"):
    transform.init({"mixer": jnp.zeros((4, 4), jnp.bfloat16)})
  geometry = OPTIMIZERS[name][1] if name in OPTIMIZERS else Stiefel()
  params = {"mixer": geometry.random(jax.random.key(0), (4, 4))}
  with pytest.raises(ValueError, match="need the parameters"):
    transform.update(params, transform.init(params))


def test_a_wrong_shape_names_the_leaf():
  with pytest.raises(ConfigError, match=r"\['mixer'\]: shape \(2, 4\): Stiefel needs .* n >= p"):
    cayley_adam(0.1).init({"mixer": jnp.zeros((2, 4))})
  with pytest.raises(ConfigError, match="matrix, elementwise, none"):
    cayley_adam(0.1, adaptive="full")
  with pytest.raises(ConfigError, match="isometric, projection"):
    cayley_sgd(0.1, transport="parallel")


def test_donated_steps_share_no_buffers():
  optimizer = cayley_adam(0.05)
  params = {"x": Stiefel().random(jax.random.key(0), (4, 2))}
  state = optimizer.init(params)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state):
    updates, state = optimizer.update(params, state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(3):
    params, state = step(params, state)
  assert Stiefel().distance(params["x"]) < 1e-6


def test_stabilisation_happens_on_schedule_and_only_then():
  optimizer = stabilize_every(Stiefel(), 3)
  params = Stiefel().random(jax.random.key(0), (4, 2))
  update = 0.1 * jnp.ones_like(params)
  state, distances = optimizer.init(params), []
  for _ in range(6):
    got, state = optimizer.update(update, state, params)
    distances.append(float(Stiefel().distance(params + got)))
  assert [d < 1e-6 for d in distances] == [False, False, True, False, False, True]
  never = stabilize_every(Stiefel(), 0)
  assert_array_equal(never.update(update, never.init(params), params)[0], update)


def test_momentum_keeps_its_length_when_carried_along():
  manifold, params = Stiefel(), Stiefel().random(jax.random.key(0), (5, 2))
  momentum = scale_by_riemannian_momentum(manifold, decay=1.0)
  state = momentum.init(params)
  push = manifold.tangent(params, jax.random.normal(jax.random.key(1), (5, 2)))
  carried, state = momentum.update(push, state, params)
  for _ in range(20):
    params = manifold.retract(params, 0.1 * carried)
    carried, state = momentum.update(jnp.zeros_like(params), state, params)
  assert_allclose(jnp.linalg.norm(carried), jnp.linalg.norm(push), rtol=1e-5)
  assert_allclose(manifold.tangent(params, carried), carried, rtol=0, atol=1e-5)
