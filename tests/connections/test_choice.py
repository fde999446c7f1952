"""A learned choice between families: the right one wins by real gradients, and the run ends with it alone."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jpmhc_jax import mixers
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.evaluation.mixers import make_diagnose
from jpmhc_jax.models.connections import hyper_connection_fn
from jpmhc_jax.training.step import make_train_step

STEPS = 240


def connection(options="families=cayley/sinkhorn"):
  config = schema.Connection(mixer="choice", options=options, generator="static", streams=4)
  return hyper_connection_fn(config, width=8, layer_index=0)


def at(parameters, share):
  return parameters | {"progress": jnp.float32(share)}


def rotation():
  skew = jnp.zeros((4, 4)).at[0, 1].set(9.0).at[2, 3].set(6.0)
  return mixers.make("cayley").project(skew - skew.T, 4)


@functools.cache
def learn(teacher):
  """Weights over training, and the last loss, of one connection that imitates a given mixing of random streams."""
  rule = connection()
  target = {"rotation": rotation, "average": lambda: jnp.full((4, 4), 0.25)}[teacher]()
  optimizer = optax.adam(0.05)

  def loss(parameters, share, streams):
    mixed = rule(at(parameters, share), streams, jnp.zeros_like)
    return jnp.mean(jnp.square(mixed - jnp.einsum("ij,tjd->tid", target, streams)))

  def one(carry, k):
    parameters, state = carry
    streams = jax.random.normal(jax.random.fold_in(jax.random.key(1), k), (16, 4, 8))
    value, gradient = jax.value_and_grad(loss)(parameters, k / STEPS, streams)
    updates, state = optimizer.update(gradient, state)
    weights = rule.choice_weights(at(parameters, k / STEPS))
    return (optax.apply_updates(parameters, updates), state), (weights, value)

  parameters = rule.init(jax.random.key(0))
  run = jax.jit(lambda: jax.lax.scan(one, (parameters, optimizer.init(parameters)), jnp.arange(STEPS)))
  _, (weights, losses) = run()
  return weights, losses


@pytest.mark.parametrize(("teacher", "right"), [("rotation", "cayley"), ("average", "sinkhorn")])
def test_the_family_that_can_do_the_task_is_chosen(teacher, right):
  weights, losses = learn(teacher)
  assert weights[right][-1] == 1.0
  assert losses[-1] < 0.02 * losses[0]


def test_the_wrong_family_alone_cannot_do_the_task():
  # Otherwise the choice would mean nothing: no doubly stochastic matrix is near the rotation, no rotation averages.
  matrix = rotation()
  assert float(jnp.min(matrix)) < -0.3
  distances = [jnp.sum(jnp.square(matrix - mixers.make("sinkhorn").random(jax.random.key(k), 4))) for k in range(20)]
  assert min(map(float, distances)) > 0.5


def test_weights_start_equal_and_end_one_hot():
  weights, _ = learn("rotation")
  np.testing.assert_array_equal([weight[0] for weight in weights.values()], 0.5)
  soft = np.array(weights["cayley"][: int(0.7 * STEPS)])
  assert 0 < soft[10] < 1 and soft[-1] > 0.99  # the choice is all but made before it is made
  np.testing.assert_array_equal(weights["cayley"][int(np.ceil(0.7 * STEPS)) :], 1.0)
  np.testing.assert_array_equal(weights["sinkhorn"][int(np.ceil(0.7 * STEPS)) :], 0.0)


def test_the_gradient_is_that_of_the_weights_and_none_after_the_choice():
  with jax.enable_x64(True):
    choice = mixers.make("choice")
    scores, direction = jnp.array([0.3, 0.1, -0.2]), jnp.array([1.0, -2.0, 0.5])

    @jax.jit
    def value(s, share):
      return choice.weights(s, jnp.asarray(share)) @ direction

    slope = jax.jit(jax.grad(value))
    for share in (0.0, 0.4, 0.69):
      gradient = slope(scores, share)
      steps = 1e-6 * jnp.eye(3)
      finite = [(value(scores + step, share) - value(scores - step, share)) / 2e-6 for step in steps]
      np.testing.assert_allclose(gradient, finite, atol=1e-7)
    np.testing.assert_array_equal(slope(scores, 0.7), 0.0)


def test_after_the_choice_the_mixer_is_that_family_exactly():
  rule = connection("families=iso/sinkhorn/cayley")
  parameters = rule.init(jax.random.key(0)) | {"choice": jnp.array([0.0, 0.1, 2.0])}
  parameters["bias"] = parameters["bias"] + jax.random.normal(jax.random.key(1), parameters["bias"].shape)
  mix = rule.coefficients(at(parameters, 0.8), jnp.ones((5, 4, 8))).mix
  np.testing.assert_allclose(mix @ mix.T, np.eye(4), atol=1e-6)
  logits = parameters["bias"][-16:].reshape(4, 4)
  np.testing.assert_array_equal(mix, mixers.make("cayley").project(logits, 4))


def test_one_family_may_stand_twice_with_other_options():
  rule = connection("families=cayley(alpha=1)/cayley")
  parameters = rule.init(jax.random.key(0)) | {"choice": jnp.array([0.0, 5.0])}
  assert list(rule.choice_weights(parameters)) == ["cayley(alpha=1)", "cayley"]
  logits = jax.random.normal(jax.random.key(1), (2, 4, 4))
  mix = rule.coefficients_of(at(parameters, 1.0), jnp.concatenate([jnp.zeros(8), logits.ravel()])).mix
  np.testing.assert_array_equal(mix, mixers.make("cayley").project(logits[1], 4))


@pytest.mark.slow
def test_a_run_anneals_without_retracing_and_reports_its_weights(monkeypatch):
  choice = schema.Connection(mixer="choice", options="families=cayley/sinkhorn/iso,end=0.6", streams=2)
  config = dataclasses.replace(tiny.config(connection=choice), steps=5)
  setup = tiny.setup(config)
  tiny.trace_once(monkeypatch, setup)
  step, examples, state = make_train_step(setup), tiny.dataset(config), setup.create()
  diagnose, found = make_diagnose(setup), []
  for k in range(5):
    state, _ = step(state, jax.device_put(examples.batch(k)))
    found.append([diagnose(state)[f"mixer/block0.tokens/choice/{name}"] for name in ("cayley", "sinkhorn", "iso")])
  np.testing.assert_allclose(np.sum(found, axis=1), 1.0, rtol=1e-6)
  assert max(found[1]) < 1.0 and max(found[2]) == max(found[4]) == 1.0
  progress = [leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state.buffers)[0] if "progress" in str(path)]
  np.testing.assert_array_equal(progress, [1.0, 1.0])
  assert not any("progress" in str(path) for path, _ in jax.tree_util.tree_flatten_with_path(state.params)[0])
  assert isinstance(setup.graph, nnx.GraphDef)


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ("families=cayley", "at least two families"),
    ("families=cayley/choice", "no choice or schedule among them"),
    ("families=cayley/cayley", "named twice"),
    ("families=cayley/caley", "expected one of .* Did you mean 'cayley'"),
    ("cold=2.0", "hot=1.0, cold=2.0: expected 0 < cold <= hot"),
    ("start=0.8", "start=0.8, end=0.7: expected shares of the run"),
  ],
)
def test_bad_options_are_named(options, expected):
  with pytest.raises(ConfigError, match=expected):
    connection(options)


def test_a_choice_is_not_stored_on_a_manifold():
  config = schema.Connection(mixer="choice", parameterisation="manifold")
  with pytest.raises(ConfigError, match="no manifold of their own"):
    hyper_connection_fn(config, width=8, layer_index=0)
