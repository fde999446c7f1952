"""Losses, halting and the carry: checks 4, 5, 7, 9 and 12 of the recipe."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.models.deep_supervision import halt, initial_carry, refresh
from jpmhc_jax.models.losses import IGNORED, softmax_cross_entropy, stablemax_cross_entropy
from jpmhc_jax.training.tasks.trm import objective, summarise

RECURSION = schema.Recursion(max_steps=16, exploration=0.0)


def test_stablemax_of_the_worked_example():
  logits = jnp.tile(jnp.array([[2.0, 0.0, -1.0]]), (3, 1))
  np.testing.assert_allclose(stablemax_cross_entropy(logits, jnp.arange(3)), [0.405465, 1.504077, 2.197225], rtol=1e-6)


def test_losses_match_the_official_vectors(shared):
  import official

  arrays = official.load(shared / "fixtures" / "trm_model.npz")
  logits, labels = jnp.asarray(arrays["loss_vectors/logits"]), jnp.asarray(arrays["loss_vectors/labels"], jnp.int32)
  np.testing.assert_allclose(
    stablemax_cross_entropy(logits, labels), arrays["loss_vectors/stablemax_nll"], rtol=2e-6, atol=1e-30
  )
  gradient = jax.grad(lambda x: jnp.sum(stablemax_cross_entropy(x, labels)))(logits)
  np.testing.assert_allclose(gradient, arrays["loss_vectors/stablemax_grad"], rtol=2e-5, atol=1e-7)
  np.testing.assert_allclose(
    softmax_cross_entropy(logits, labels), arrays["loss_vectors/softmax_nll"], rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_stablemax_gradient_is_finite_where_a_naive_where_is_not(value):
  gradient = jax.grad(lambda x: jnp.sum(stablemax_cross_entropy(x, jnp.array([0]))))(jnp.full((1, 3), value))
  assert bool(jnp.all(jnp.isfinite(gradient)))


@pytest.mark.parametrize("gap", [1e2, 1e3, 1e4, 1e5])
def test_stablemax_keeps_the_digits_of_tiny_losses(gap):
  logits = np.array([[gap, -gap, -gap]])
  terms = np.where(logits >= 0, logits + 1, 1 / (1 - np.minimum(logits, 0)))
  exact = np.log1p((terms.sum() - terms[0, 0]) / terms[0, 0])
  loss = stablemax_cross_entropy(jnp.asarray(logits, jnp.float32), jnp.array([0]))
  np.testing.assert_allclose(loss, [exact], rtol=1e-6)


def test_an_unlabelled_row_adds_no_token_loss():
  labels = jnp.full((2,), IGNORED)
  assert float(jnp.sum(jnp.abs(stablemax_cross_entropy(jnp.ones((2, 3)), labels)))) == 0


def _carry(rows=6):
  latents = (jnp.arange(rows, dtype=jnp.float32)[:, None, None], jnp.ones((rows, 1, 1)))
  return initial_carry(latents, {"inputs": jnp.zeros((rows, 2), jnp.int32)})


def test_a_fresh_carry_takes_every_row_and_a_running_one_only_the_halted():
  fresh = (jnp.full((6, 1, 1), 7.0), jnp.full((6, 1, 1), 8.0))
  batch = {"inputs": jnp.ones((6, 2), jnp.int32)}
  first = refresh(_carry(), fresh, batch)
  assert bool(jnp.all(first.data["inputs"] == 1)) and bool(jnp.all(first.z_h == 7)) and not bool(jnp.any(first.halted))

  halted = jnp.array([True, False] * 3)
  running = dataclasses.replace(_carry(), halted=halted, steps=jnp.full((6,), 5, jnp.int32))
  after = refresh(running, fresh, batch)
  np.testing.assert_array_equal(after.steps, [0, 5] * 3)
  np.testing.assert_array_equal(after.data["inputs"][:, 0], [1, 0] * 3)
  np.testing.assert_array_equal(after.z_h[:, 0, 0], [7, 1, 7, 3, 7, 5])


@pytest.mark.parametrize(
  ("steps", "q", "expected"), [(16, -5.0, True), (15, -5.0, False), (1, 10.0, True), (1, 0.0, False)]
)
def test_training_halts_at_the_last_step_or_when_q_says_so(steps, q, expected):
  halted = halt(jnp.array([steps]), jnp.array([q]), RECURSION, jax.random.key(0))
  assert bool(halted[0]) is expected


def test_full_exploration_never_halts_before_two_steps_and_always_at_the_last():
  recursion = schema.Recursion(max_steps=16, exploration=1.0)
  eager = jnp.full((1000,), 10.0)
  stops = [
    halt(jnp.full((1000,), steps), eager, recursion, jax.random.key(steps)).mean().item() for steps in (1, 2, 9, 16)
  ]
  assert stops[0] == 0 and 0.02 < stops[1] < 0.12 and 0.4 < stops[2] < 0.65 and stops[3] == 1


def test_evaluation_ignores_q():
  steps, q = jnp.array([15, 16]), jnp.array([10.0, -10.0])
  np.testing.assert_array_equal(halt(steps, q, RECURSION, None), [False, True])


def test_the_head_says_no_before_training_and_the_carry_gets_no_gradient():
  config = tiny.config()
  setup, dataset = tiny.setup(config), tiny.dataset(config)
  state = setup.create()
  batch = jax.tree.map(jnp.asarray, dataset.batch(0))
  model_latents = (state.carry.z_h, state.carry.z_l)
  carry = refresh(state.carry, model_latents, batch)
  rows = state.table[batch["puzzle_identifiers"]]

  def loss(z_h, rows):
    moved = dataclasses.replace(carry, z_h=z_h)
    model = setup.model(state.params, state.buffers)
    value, (_, metrics) = objective(model, rows, moved, config, jax.random.key(0))
    return value, metrics

  (_, metrics), (to_carry, to_rows) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(carry.z_h, rows)
  assert float(jnp.max(jnp.abs(to_carry))) == 0.0
  assert float(jnp.max(jnp.abs(to_rows))) > 0.0
  np.testing.assert_allclose(metrics["q_halt_loss"], 16 * 0.006715, rtol=1e-3)  # log(1 + e^−5) per row, target 0


def test_summaries_divide_by_the_halted_rows_and_by_all_rows():
  sums = {"count": 4.0, "accuracy": 3.0, "exact_accuracy": 1.0, "q_halt_accuracy": 2.0, "steps": 12.0}
  means = summarise(sums | {"lm_loss": 32.0, "q_halt_loss": 8.0}, rows=16)
  assert (means["accuracy"], means["steps"], means["lm_loss"], means["loss"]) == (0.75, 3.0, 2.0, 2.25)
