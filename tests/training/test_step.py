"""The step: one trace, no host transfer, the same numbers on one device and on eight, whole and in micro-batches."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training import step as steps
from jpmhc_jax.training.step import make_train_step

STEPS = 3


@pytest.fixture(scope="module")
def reference():
  """State and metrics after three steps on one device."""
  return tiny.run(tiny.config(), STEPS)


def test_the_loss_is_finite_and_every_parameter_moves(reference):
  state, metrics = reference
  assert all(np.isfinite(list(m.values())).all() for m in metrics)
  start = tiny.setup(tiny.config()).create()
  moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), start.params, state.params)
  still = [jax.tree_util.keystr(p) for p, m in jax.tree_util.tree_leaves_with_path(moved) if not m]
  assert still == []
  chex.assert_trees_all_equal(start.buffers, state.buffers)
  assert float(jnp.max(jnp.abs(state.table))) > 0


def test_the_average_follows_the_parameters(reference):
  """EMA: after k steps the shadow is a convex combination of the visited parameters, nearest the first ones."""
  state, _ = reference
  start = tiny.setup(tiny.config()).create().params

  def between(first, shadow, last):
    assert float(jnp.linalg.norm(shadow - first)) < float(jnp.linalg.norm(last - first))

  jax.tree.map(between, start, state.ema, state.params)


def test_steps_are_traced_once_and_move_nothing_through_the_host(monkeypatch):
  config = tiny.config()
  setup = tiny.setup(config)
  tiny.trace_once(monkeypatch, setup)
  step, examples, state = make_train_step(setup), tiny.dataset(config), setup.create()
  for k in range(3):
    batch = jax.device_put(examples.batch(k), meshes.batch_sharding(setup.mesh))
    with jax.transfer_guard("disallow"):
      state, _ = step(state, batch)
  assert int(state.step) == 3


def test_the_old_state_is_donated():
  config = tiny.config()
  setup = tiny.setup(config)
  state = setup.create()
  make_train_step(setup)(state, jax.device_put(tiny.dataset(config).batch(0)))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.optimizer, state.table, state.ema)))


def _gradients(config):
  """Gradients of the first step (before the optimiser, whose sign-like steps would amplify the rounding of a zero)."""
  setup = tiny.setup(config)
  state, batch = setup.create(), jax.device_put(tiny.dataset(config).batch(0), meshes.batch_sharding(setup.mesh))

  def gradients(state, batch):
    carry = steps.refresh_carry(setup, state, batch)
    return steps.accumulate(setup, state, carry, state.table[carry.data["puzzle_identifiers"]])[0]

  return jax.jit(gradients)(state, batch)


@pytest.fixture(scope="module")
def gradients():
  return _gradients(tiny.config())


def _assert_same_gradients(actual, expected):
  for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
    scale = max(float(jnp.max(jnp.abs(e))), 1e-4)
    np.testing.assert_allclose(a, e, atol=2e-5 * scale, err_msg=jax.tree_util.keystr(path))


def _assert_same_metrics(actual, expected):
  for many, one in zip(actual, expected, strict=True):
    for name in one:
      np.testing.assert_allclose(many[name], one[name], rtol=2e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(reference, gradients):
  config = tiny.config(mesh=schema.Mesh(data=2, fsdp=2, tensor=2))
  state, metrics = tiny.run(config, STEPS)
  _assert_same_metrics(metrics, reference[1])
  _assert_same_gradients(_gradients(config), gradients)
  np.testing.assert_array_equal(state.carry.data["inputs"], reference[0].carry.data["inputs"])
  np.testing.assert_array_equal(state.carry.halted, reference[0].carry.halted)


def test_parameters_and_moments_are_split_over_fsdp_and_tensor():
  setup = tiny.setup(tiny.config(mesh=schema.Mesh(data=2, fsdp=2, tensor=2)))
  state = setup.create()
  kernel = state.params["block0"]["features"]["gate_up"]
  assert kernel.addressable_shards[0].data.shape == (kernel.shape[0] // 2, 2, kernel.shape[2] // 2)
  moments = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer)
    if jax.tree_util.keystr(path).endswith("['block0']['features']['gate_up']")
  ]
  assert len(moments) == 2
  assert all(m.sharding == kernel.sharding for m in moments)


@pytest.mark.slow
def test_micro_batches_sum_to_the_whole_batch(reference, gradients):
  """The first step explores nothing (its halting key differs a slice), so that the gradients can be compared whole."""
  config = tiny.config(accumulation=4, mesh=schema.Mesh(data=2))
  _assert_same_gradients(_gradients(config), gradients)
  state, metrics = tiny.run(config, 1)
  for name in ("lm_loss", "q_halt_loss", "gradient_norm"):
    np.testing.assert_allclose(metrics[0][name], reference[1][0][name], rtol=2e-5)
  np.testing.assert_array_equal(state.carry.data["inputs"], tiny.dataset(config).batch(0)["inputs"])


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["none", "coefficients", "block", "call"])
def test_rematerialisation_changes_memory_and_not_numbers(policy, gradients):
  model = dataclasses.replace(tiny.config().model, rematerialise=policy)
  _assert_same_gradients(_gradients(tiny.config(model=model)), gradients)


@pytest.mark.slow
def test_bfloat16_computes_near_float32_with_float32_masters(reference):
  state, metrics = tiny.run(tiny.config(precision=schema.Precision(compute="bfloat16")), 1)
  assert state.carry.z_h.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.ema))} == {jnp.dtype("float32")}
  np.testing.assert_allclose(metrics[0]["lm_loss"], reference[1][0]["lm_loss"], rtol=0.03)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mesh": schema.Mesh(data=3)}, "the product must equal the 8 devices"),
    ({"mesh": schema.Mesh(data=1, tensor=8)}, "mesh.tensor=8 does not divide axis 'heads' of size 2"),
    ({"batch_size": 12, "mesh": schema.Mesh(data=8)}, "batch_size=12: expected a multiple of .* = 8; use 16"),
  ],
)
def test_a_layout_that_cannot_work_is_refused_with_the_remedy(changes, message):
  with pytest.raises(ConfigError, match=message):
    tiny.setup(tiny.config(**changes), devices=8)
