"""The model against the official implementation's own numbers: forward, carry, halting, losses, gradients."""

import functools

import chex
from flax import nnx
from golden import assert_kept_close, kept
import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest

from jpmhc_jax.models.deep_supervision import Carry, refresh
from jpmhc_jax.models.layers import rope_tables
from jpmhc_jax.models.trm import supervision_step
from jpmhc_jax.training.tasks.trm import objective

STEPS = 3


@pytest.fixture(scope="module")
def arrays(shared):
  return official.load(shared / "fixtures" / "trm_model.npz")


@functools.cache
def _compiled(name):
  graph, _, _ = official.template(name)
  config = official.config(name)

  def model(params, buffers):
    return nnx.merge(graph, nnx.State(params), nnx.State(buffers))

  def step(params, rows, buffers, carry):
    def loss(params, rows):
      return objective(model(params, buffers), rows, carry, config, jax.random.key(0))

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, rows)

  def forward(params, buffers, rows, carry):
    return model(params, buffers)(carry.z_h, carry.z_l, carry.data["inputs"], rows)

  return jax.jit(step), jax.jit(forward)


def _stored_carry(arrays, prefix, latents, batch):
  """The carry that a stored step starts from: stored flags, latents of the step before, refreshed with the batch."""
  halted = jnp.asarray(arrays[f"{prefix}/carry_in_halted"])
  return refresh(Carry(**latents, halted=halted), *batch)


def _batch(arrays, prefix):
  return {k: jnp.asarray(v.astype(np.int32)) for k, v in official.at(arrays, f"{prefix}/batch").items()}


def _carry_after(arrays, prefix):
  data = {k: jnp.asarray(v.astype(np.int32)) for k, v in official.at(arrays, f"{prefix}/carry/current_data").items()}
  stored = official.at(arrays, f"{prefix}/carry")
  return {
    "z_h": jnp.asarray(stored["z_H"]), "z_l": jnp.asarray(stored["z_L"]),
    "steps": jnp.asarray(stored["steps"]), "data": data,
  }  # fmt: skip


def _relative(actual, expected):
  actual, expected = np.asarray(actual)[kept(expected)], expected[kept(expected)]
  return float(np.max(np.abs(actual - expected)) / max(np.max(np.abs(expected)), 1e-12))


@pytest.mark.parametrize("name", official.CONFIGS)
@pytest.mark.parametrize("step", range(STEPS))
def test_each_step_matches_the_official_code_from_the_stored_carry(arrays, name, step):
  weights = official.at(arrays, f"{name}/weights")
  params, buffers = official.convert(weights, name)
  prefix, length = f"{name}/step{step}", official.SEQUENCE + official.SLOTS
  batch = _batch(arrays, prefix)
  fresh = tuple(jnp.broadcast_to(buffers[k][None, None], (6, length, official.WIDTH)) for k in ("h_init", "l_init"))
  if step == 0:
    blank = jax.tree.map(jnp.zeros_like, batch)
    latents = {"z_h": fresh[0], "z_l": fresh[1], "steps": jnp.zeros((6,), jnp.int32), "data": blank}
  else:
    latents = _carry_after(arrays, f"{name}/step{step - 1}")
  carry = _stored_carry(arrays, prefix, latents, (fresh, batch))
  table = next(v for k, v in weights.items() if k.endswith("puzzle_emb.weights"))
  rows = jnp.asarray(table)[carry.data["puzzle_identifiers"]]

  run, run_forward = _compiled(name)
  (loss, (after, metrics)), (grads, row_grads) = run(params, rows, buffers, carry)
  output = run_forward(params, buffers, rows, carry)

  expected = _carry_after(arrays, prefix)
  for key in ("z_h", "z_l"):
    assert_kept_close(getattr(after, key), expected[key], atol=1e-4)
  np.testing.assert_array_equal(after.steps, expected["steps"])
  np.testing.assert_array_equal(after.halted, arrays[f"{prefix}/carry/halted"])
  chex.assert_trees_all_equal(after.data, expected["data"])
  out = official.at(arrays, f"{prefix}/out")
  assert_kept_close(output.logits, out["logits"], atol=1e-4)
  np.testing.assert_array_equal(jnp.argmax(output.logits, -1), out["preds"])
  np.testing.assert_allclose(output.q[:, 0], out["q_halt_logits"], atol=3e-5)
  np.testing.assert_allclose(output.q[:, 1], out["q_continue_logits"], atol=3e-5)
  np.testing.assert_allclose(loss, arrays[f"{prefix}/loss"], rtol=1e-6)
  for metric, value in official.at(arrays, f"{prefix}/metrics").items():
    np.testing.assert_allclose(metrics[metric], value, rtol=1e-5, err_msg=metric)
  stored = official.at(arrays, f"{prefix}/grad")
  expected_grads, _ = official.convert(stored, name)
  scaled = jax.tree.map(lambda g: g / 6, grads)
  for path, gradient in jax.tree_util.tree_leaves_with_path(scaled):
    where = jax.tree_util.keystr(path)
    wanted = functools.reduce(lambda tree, entry: tree[entry.key], path, expected_grads)
    assert _relative(gradient, wanted) < (3e-4 if "q_" in where else 1e-4), where
  assert _relative(row_grads / 6, arrays[f"{prefix}/puzzle_grad_rows"]) < 1e-4


@pytest.mark.parametrize("name", official.CONFIGS)
def test_evaluation_rollout_matches_the_official_code(arrays, name):
  weights = official.at(arrays, f"{name}/weights")
  params, buffers = official.convert(weights, name)
  batch = _batch(arrays, f"{name}/step0")
  table = next(v for k, v in weights.items() if k.endswith("puzzle_emb.weights"))
  rows = jnp.asarray(table)[batch["puzzle_identifiers"]]
  length = official.SEQUENCE + official.SLOTS
  latents = tuple(jnp.broadcast_to(buffers[k][None, None], (6, length, official.WIDTH)) for k in ("h_init", "l_init"))
  _, run_forward = _compiled(name)
  steps = official.CONFIGS[name]["max_steps"]
  zeros = jnp.zeros((6,), jnp.int32)
  for step in range(steps):
    output = run_forward(params, buffers, rows, Carry(*latents, zeros, zeros > 0, batch))
    latents = (output.z_h, output.z_l)
    np.testing.assert_allclose(output.q[:, 0], arrays[f"{name}/eval/q_halt_logits_step{step}"], atol=1e-3)
  assert_kept_close(output.logits, arrays[f"{name}/eval/final/logits"], atol=1e-3)


@pytest.mark.parametrize("name", ["attn_T2n2", "attn_T3n4"])
def test_every_network_call_matches_in_order(arrays, name):
  weights = official.at(arrays, f"{name}/weights")
  params, buffers = jax.tree.map(jnp.asarray, official.convert(weights, name))
  graph, _, _ = official.template(name)
  model = nnx.merge(graph, nnx.State(params), nnx.State(buffers))
  x = jnp.asarray(arrays[f"{name}/probe/input_embeddings"])[:1]
  table = next(v for k, v in weights.items() if k.endswith("puzzle_emb.weights"))
  batch = _batch(arrays, f"{name}/step0")
  rows = jnp.asarray(table)[batch["puzzle_identifiers"]]
  np.testing.assert_allclose(model.embed(batch["inputs"], rows)[:1], x, atol=1e-6)
  z_h, z_l = (jnp.broadcast_to(buffers[k][None, None], x.shape) for k in ("h_init", "l_init"))
  network = jax.jit(model.network)
  seen = []
  recursion = official.config(name).model.recursion
  for _ in range(recursion.outer):
    for _ in range(recursion.inner):
      z_l = network(z_l, z_h + x)
      seen.append(z_l[0])
    z_h = network(z_h, z_l)
    seen.append(z_h[0])
  assert_kept_close(jnp.stack(seen), arrays[f"{name}/probe/net_call_outputs_row0"], atol=1e-4)
  z_h, z_l = (jnp.broadcast_to(buffers[k][None, None], x.shape) for k in ("h_init", "l_init"))
  first = jax.jit(model.block0)(z_l + z_h + x)
  assert_kept_close(first[0], arrays[f"{name}/probe/first_block_output_row0"], atol=1e-5)


def test_rope_tables_are_the_official_ones(arrays):
  cos, sin = rope_tables(official.SEQUENCE + official.SLOTS, official.WIDTH // official.HEADS, 10000.0)
  np.testing.assert_allclose(cos, arrays["attn_T2n2/probe/rope_cos"], atol=1e-6)
  np.testing.assert_allclose(sin, arrays["attn_T2n2/probe/rope_sin"], atol=1e-6)


def test_the_network_is_called_t_times_n_plus_one_and_differentiated_n_plus_one():
  recursion = official.config("attn_T3n4").model.recursion
  calls = {"forward": 0, "backward": 0}

  def count(direction):
    calls[direction] += 1

  @jax.custom_vjp
  def network(h, injection):
    jax.debug.callback(count, "forward")
    return h + injection

  def backward(_, cotangent):
    jax.debug.callback(count, "backward")
    return cotangent, cotangent

  network.defvjp(lambda h, injection: (network(h, injection), None), backward)

  def total(x):
    return sum(jnp.sum(z) for z in supervision_step(lambda h, v, call: network(h, v), x, x, x, recursion))

  jax.block_until_ready(total(jnp.ones((1, 1, 1))))
  jax.effects_barrier()
  assert calls["forward"] == recursion.outer * (recursion.inner + 1)
  jax.block_until_ready(jax.grad(total)(jnp.ones((1, 1, 1))))
  jax.effects_barrier()
  assert calls["backward"] == recursion.inner + 1
