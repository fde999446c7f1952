"""Descent to closed-form optima, long runs in float32, and the run's optimiser with matrices stored on manifolds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import optax
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.manifolds import Birkhoff, Grassmann, Iso, MANIFOLDS, Oblique, Orthogonal, Sphere, Stiefel
from jpmhc_jax.optim.manifold_optimizers import cayley_adam, cayley_sgd, grassmann_adam, landing, projected_muon
from jpmhc_jax.training.optimizer import make_optimizer


def descend(optimizer, loss, start, steps):
  """The parameters after `steps` full-gradient steps."""

  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=steps)[0][0])(start)


def rotation(seed, n):
  """A random orthogonal matrix of determinant 1, which steps from the identity can reach."""
  q = Orthogonal().random(jax.random.key(seed), (n, n))
  return q.at[:, 0].multiply(jnp.sign(jnp.linalg.det(q)))


DECAY = functools.partial(optax.exponential_decay, transition_steps=1)
PROCRUSTES = {
  "cayley_sgd": cayley_sgd(0.02, Orthogonal()),
  "cayley_sgd by projection": cayley_sgd(0.02, Orthogonal(), transport="projection"),
  "cayley_adam": cayley_adam(optax.cosine_decay_schedule(0.1, 1500), Orthogonal()),
  "cayley_adam elementwise": cayley_adam(optax.cosine_decay_schedule(0.1, 1500), Orthogonal(), adaptive="elementwise"),
  "landing": landing(0.05),
  "projected_muon": projected_muon(DECAY(0.1, decay_rate=0.99), Orthogonal()),
}


@pytest.mark.parametrize("name", PROCRUSTES)
def test_procrustes(name):
  """min |A X - B|_F over rotations: the polar factor of A^T B, here the rotation that made B up to noise."""
  a = jnp.eye(5) + 0.3 * jax.random.normal(jax.random.key(1), (5, 5))
  b = a @ rotation(2, 5) + 0.05 * jax.random.normal(jax.random.key(3), (5, 5))
  u, _, vt = np.linalg.svd(np.asarray(a, np.float64).T @ np.asarray(b, np.float64))
  best = u @ vt
  assert np.linalg.det(best) > 0

  def loss(x):
    return jnp.sum((a @ x - b) ** 2)

  got = descend(PROCRUSTES[name], loss, jnp.eye(5), 1500)
  assert_allclose(got, best, rtol=0, atol=1e-5)
  assert Orthogonal().distance(got) < 3e-6


@pytest.mark.parametrize(
  "optimizer",
  [
    grassmann_adam(DECAY(0.1, decay_rate=0.985)),
    grassmann_adam(DECAY(0.3, decay_rate=0.985), adaptive="matrix", method="qr"),
    cayley_sgd(0.1, Grassmann()),
  ],
  ids=["published", "matrix", "sgd"],
)
def test_leading_eigenspace(optimizer):
  """max tr U^T A U: the projector onto the eigenvectors of the largest eigenvalues."""
  basis = Orthogonal().random(jax.random.key(0), (8, 8))
  values = jnp.array([3.0, 2.5, 2.0, 1.0, 0.7, 0.5, 0.2, 0.0])
  a = (basis * values[None, :]) @ basis.T
  u = descend(optimizer, lambda u: -jnp.sum(u * (a @ u)), Grassmann().random(jax.random.key(1), (8, 3)), 1000)
  assert_allclose(u @ u.T, basis[:, :3] @ basis[:, :3].T, rtol=0, atol=1e-5)


def test_joint_diagonalisation():
  """min sum_k |off(Q^T A_k Q)|^2 for A_k = V D_k V^T: zero, at V up to order and signs of the columns."""
  v = Orthogonal().random(jax.random.key(0), (4, 4))
  diagonals = jax.random.normal(jax.random.key(1), (6, 1, 4))
  a = (v[None] * diagonals) @ v.T[None]
  off = 1.0 - jnp.eye(4)

  def loss(q):
    return jnp.sum((off[None] * (q.T[None] @ a @ q[None])) ** 2)

  start = Orthogonal().random(jax.random.key(2), (4, 4))
  q = descend(cayley_sgd(0.01, Orthogonal()), loss, start, 1500)
  assert loss(q) < 1e-10
  overlap = jnp.abs(v.T @ q)
  assert_allclose(jnp.sort(overlap, axis=0)[-1], 1.0, rtol=0, atol=1e-5)
  assert_allclose(jnp.sort(overlap, axis=0)[:-1], 0.0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("geometry", [Iso(), Birkhoff(), Stiefel(), Oblique(), Sphere()])
def test_nearest_point(geometry):
  """min |X - T|^2 for T on the manifold is T; for T off it, where the projection is the nearest point, that."""
  shape = (4, 4) if isinstance(geometry, Iso | Birkhoff) else (5, 2)
  target = geometry.random(jax.random.key(3), shape)
  if not isinstance(geometry, Birkhoff):  # its projection is Sinkhorn's, nearest in another sense
    target = target + 0.1 * jax.random.normal(jax.random.key(4), shape)
  start = geometry.random(jax.random.key(5), shape)
  # In the Fisher metric a long first step lands at the boundary, where an entry's gradient vanishes with the entry.
  peak = 0.05 if isinstance(geometry, Birkhoff) else 0.2
  optimizer = cayley_adam(DECAY(peak, decay_rate=0.995), geometry, b2=0.99)
  got = descend(optimizer, lambda x: jnp.sum((x - target) ** 2), start, 3000)
  assert_allclose(got, geometry.project(target), rtol=0, atol=1e-5)


def test_landing_keeps_its_promise():
  """Gradients far too long for the radius: |X^T X - I|_F never exceeds it, and without gradients it goes to zero."""
  optimizer = landing(10.0, attraction=1.0, radius=0.3)
  params = Stiefel().random(jax.random.key(0), (6, 3))

  def step(params, gradient):
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    return params, jnp.linalg.norm(params.T @ params - jnp.eye(3))

  gradients = 5.0 * jax.random.normal(jax.random.key(1), (200, 6, 3))
  params, distances = jax.jit(lambda p, g: jax.lax.scan(step, p, g))(params, gradients)
  assert 0.25 < jnp.max(distances) < 0.3 + 1e-5
  _, distances = jax.jit(lambda p, g: jax.lax.scan(step, p, g))(params, jnp.zeros((50, 6, 3)))
  assert distances[-1] < 1e-5


ROLES = {
  "kernel": "trunk",
  "rotation": "manifold:orthogonal",
  "span": "manifold:grassmann",
  "mix": ["manifold:birkhoff"],
}


def start():
  keys = jax.random.split(jax.random.key(0), 3)
  return {
    "kernel": jnp.ones((3, 2)),
    "rotation": MANIFOLDS["orthogonal"].random(keys[0], (2, 4, 4)),
    "span": MANIFOLDS["grassmann"].random(keys[1], (4, 2)),
    "mix": [MANIFOLDS["birkhoff"].random(keys[2], (4, 4))],
  }


@pytest.mark.slow
def test_the_runs_optimiser_moves_stored_matrices_along_their_manifolds():
  config = schema.Optimizer(
    learning_rate=1e-3, warmup_steps=2, mixer=schema.MixerOptimizer(manifold_learning_rate=0.1, stabilize_every=5)
  )
  optimizer = make_optimizer(config, ROLES, total_steps=12)
  params = start()
  gradients = jax.tree.map(lambda p: jax.random.normal(jax.random.key(9), p.shape), params)

  @jax.jit
  def update(params, state):
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  first, state = update(params, optimizer.init(params))
  # Step 1 of a warm-up over 2 steps: half of 0.1 times a unit vector in each matrix's metric.
  moved = jnp.sqrt(jnp.sum((first["rotation"] - params["rotation"]) ** 2, axis=(-2, -1)))
  assert_allclose(moved, 0.05, rtol=1e-3)
  last = first
  for _ in range(9):
    last, state = update(last, state)
  assert jnp.max(MANIFOLDS["orthogonal"].distance(last["rotation"])) < 3e-6
  assert MANIFOLDS["grassmann"].distance(last["span"]) < 3e-6
  assert MANIFOLDS["birkhoff"].distance(last["mix"][0]) < 2e-6
  assert jnp.max(jnp.abs(last["mix"][0] - params["mix"][0])) > 0.05
  assert jnp.max(jnp.abs(last["kernel"] - params["kernel"])) < 0.02  # the trunk's own rate


def test_bad_manifold_settings_are_refused():
  with pytest.raises(ConfigError, match="stabilize_every=-1"):
    make_optimizer(schema.Optimizer(mixer=schema.MixerOptimizer(stabilize_every=-1)), ROLES, 10)
  wrong = {**ROLES, "span": "manifold:grassman"}
  with pytest.raises(ConfigError, match=r"\['span'\].*Did you mean 'grassmann'"):
    make_optimizer(schema.Optimizer(), wrong, 10).init(start())
  with pytest.raises(ConfigError, match=r"expected a manifold out of orthogonal\."):
    make_optimizer(schema.Optimizer(), ROLES, 10, {"orthogonal": Orthogonal()}).init(start())


@pytest.mark.slow
@pytest.mark.parametrize(
  "factory, manifold, shape",
  [
    (cayley_adam, Stiefel(metric="canonical"), (6, 2)),
    (cayley_adam, Orthogonal(), (4, 4)),
    (cayley_adam, Iso(), (4, 4)),
    (grassmann_adam, Grassmann(), (4, 2)),
    (cayley_sgd, Stiefel(), (6, 3)),
  ],
)
def test_a_hundred_thousand_float32_steps_stay_on_the_manifold(factory, manifold, shape):
  """Noisy gradients, stabilised every 100 steps: the worst residual of the whole run is below 1e-5."""
  optimizer = factory(0.01, manifold)

  def step(carry, key):
    params, state = carry
    updates, state = optimizer.update(jax.random.normal(key, shape), state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), manifold.distance(params)

  params = manifold.random(jax.random.key(0), shape)
  keys = jax.random.split(jax.random.key(1), 100_000)
  _, distances = jax.jit(lambda p, k: jax.lax.scan(step, (p, optimizer.init(p)), k))(params, keys)
  assert jnp.max(distances) < 1e-5
