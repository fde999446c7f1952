"""What the official model is known to do, checked on ours: norms, rotary positions, puzzle slots, halting head."""

import math
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.models.blocks import Block
from jpmhc_jax.models.layers import rope_tables, rotate
from jpmhc_jax.models.losses import binary_cross_entropy
from jpmhc_jax.models.trm import supervision_step, TRM

BATCH, LENGTH, WIDTH, N = 2, 7, 16, 4


def _model(**changes):
  small = {"width": WIDTH, "heads": 2, "layers": 1, "mlp_multiple": 8, "puzzle": schema.Puzzle(WIDTH, 1)}
  return schema.Model(**(small | changes))


@pytest.mark.parametrize("mixer", ["attention", "mlp"])
@pytest.mark.parametrize("streams", [1, N])
def test_block_outputs_have_rms_one_over_the_features_without_any_learned_scale(mixer, streams):
  connection = schema.Connection(mixer="circulant", streams=streams)
  block = Block(_model(token_mixer=mixer), connection, LENGTH, 0, nnx.Rngs(0))
  shape = (BATCH, LENGTH, *((N,) if streams == N else ()), WIDTH)
  h = 5.0 * jax.random.normal(jax.random.key(1), shape) + 3.0
  out = nnx.jit(lambda block, h: block(h))(block, h)
  np.testing.assert_allclose(jnp.sqrt(jnp.mean(jnp.square(out), axis=-1)), 1.0, atol=5e-5)  # ε leaves a little less
  names = {str(path[-1]) for path, _ in jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(block)))[0]}
  assert not any("scale" in name or "norm" in name for name in names)


def test_the_parts_of_a_block_have_their_names_in_a_profile_forward_and_backward():
  graph, state = nnx.split(Block(_model(), schema.Connection(mixer="cayley"), LENGTH, 0, nnx.Rngs(0)))
  gradient = jax.jit(jax.grad(lambda state, h: jnp.sum(nnx.merge(graph, state)(h)), argnums=1))
  program = gradient.lower(state, jnp.ones((BATCH, LENGTH, N, WIDTH))).as_text(debug_info=True)
  for part in ("coefficients", "read", "attention", "mix_and_write", "norm", "swiglu"):
    assert re.search(rf"jvp\({part}\)", program), part
    assert re.search(rf"transpose\(jvp\({part}\)\)", program), part


@pytest.mark.parametrize("streams", [1, N])
def test_the_token_mlp_is_normalised_over_the_positions(streams):
  """With the second sub-layer silenced, what is left is RMS over features of RMS over positions."""
  connection = schema.Connection(mixer="identity", streams=streams, init="zero")
  block = Block(_model(token_mixer="mlp"), connection, LENGTH, 0, nnx.Rngs(0))
  block.tokens.mlp.down[...] = jnp.zeros_like(block.tokens.mlp.down[...])
  block.features.down[...] = jnp.zeros_like(block.features.down[...])
  h = jax.random.normal(jax.random.key(1), (BATCH, LENGTH, *((N,) if streams == N else ()), WIDTH)) + 2.0
  over_positions = h / np.sqrt(np.mean(np.square(h), axis=1, keepdims=True) + 1e-5)
  expected = over_positions / np.sqrt(np.mean(np.square(over_positions), axis=-1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(block(h), expected, atol=1e-5)


def test_rotary_positions_keep_norms_and_scores_depend_on_the_distance_only():
  head, length = 16, 32
  cos, sin = rope_tables(length, head, 10000.0)
  query, key = jax.random.normal(jax.random.key(0), (2, head))

  def everywhere(vector):
    return rotate(jnp.broadcast_to(vector, (1, length, 1, head)), cos, sin)[0, :, 0]

  queries, keys = everywhere(query), everywhere(key)
  np.testing.assert_allclose(jnp.linalg.norm(queries, axis=-1), jnp.linalg.norm(query), rtol=1e-5)
  np.testing.assert_array_equal(queries[0], query)
  scores = np.asarray(queries @ keys.T)
  scale = float(jnp.linalg.norm(query) * jnp.linalg.norm(key))
  spread = 0.0
  for distance in range(-length + 1, length):
    diagonal = np.diagonal(scores, distance)
    np.testing.assert_allclose(diagonal, diagonal[0], atol=3e-6 * scale)
    spread = max(spread, abs(diagonal[0] - scores[0, 0]))
  assert spread > 0.1 * scale  # and they do depend on it
  # The pair of features (i, i + head/2) turns by position · θ^(−2i/head).
  angle = 5 * 10000.0 ** (-2 / head)
  turned = math.cos(angle) * query[1] - math.sin(angle) * query[1 + head // 2]
  np.testing.assert_allclose(queries[5, 1], turned, rtol=1e-5)


@pytest.fixture(scope="module")
def official_sizes():
  """Width 512 with 16 slots, as published, but one block of it and a 3 x 3 grid."""
  model = schema.Model(layers=1, recursion=schema.Recursion(outer=1, inner=1))
  return TRM(model, schema.Connection(streams=1), vocab_size=12, sequence_length=9, rngs=nnx.Rngs(0))


def test_slot_zero_holds_the_scaled_puzzle_row_and_the_other_slots_are_zero(official_sizes):
  rows = jax.random.normal(jax.random.key(2), (BATCH, 512))
  inputs = jax.random.randint(jax.random.key(3), (BATCH, 9), 0, 12)
  x = official_sizes.embed(inputs, rows)
  assert x.shape == (BATCH, 16 + 9, 512)
  np.testing.assert_allclose(x[:, 0], math.sqrt(512) * rows, rtol=1e-6)
  np.testing.assert_array_equal(x[:, 1:16], 0)
  tokens = x[:, 16:]
  np.testing.assert_allclose(tokens, math.sqrt(512) * official_sizes.embedding[...][inputs], rtol=1e-6)
  assert float(jnp.var(tokens)) == pytest.approx(1.0, abs=0.05)


def test_the_halting_head_starts_at_minus_five_for_any_input(official_sizes):
  rows = jax.random.normal(jax.random.key(2), (BATCH, 512))
  z_h, z_l = official_sizes.initial_latents(BATCH, 25)
  inputs = jnp.array([[1] * 9, [11] * 9])
  output = nnx.jit(lambda m, *latents: m(*latents, inputs, rows))(official_sizes, z_h, z_l)
  np.testing.assert_array_equal(output.q, -5.0)
  loss = binary_cross_entropy(output.q[:, 0], jnp.zeros(BATCH))
  np.testing.assert_allclose(loss, math.log1p(math.exp(-5)), rtol=1e-5)
  assert float(loss[0]) == pytest.approx(0.006715, abs=1e-6)


def test_the_carry_gets_no_gradient():
  model = TRM(_model(), schema.Connection(streams=1), vocab_size=5, sequence_length=6, rngs=nnx.Rngs(0))
  graph, variables = nnx.split(model)
  rows, inputs = jnp.ones((BATCH, WIDTH)), jnp.ones((BATCH, 6), jnp.int32)

  def loss(latents):
    return jnp.sum(jnp.square(nnx.merge(graph, variables)(*latents, inputs, rows).logits))

  gradients = jax.jit(jax.grad(loss))(model.initial_latents(BATCH, 7))
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("streams", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_cycles_without_a_gradient_may_run_in_bfloat16(streams):
  """What they hand over is rounded, and the last cycle computes and learns in float32 as ever."""

  def outputs(dtype):
    recursion = schema.Recursion(outer=3, inner=2, no_gradient_dtype=dtype)
    model = TRM(
      _model(recursion=recursion), schema.Connection(streams=streams), vocab_size=5, sequence_length=6,
      rngs=nnx.Rngs(0),
    )  # fmt: skip
    z_h, z_l = model.initial_latents(BATCH, 7)
    x = jax.random.normal(jax.random.key(1), z_h.shape)
    step = jax.jit(lambda x: supervision_step(model.network, z_h, z_l, x, recursion))
    return step(x), step.lower(x).as_text()

  (same, program), (rounded, low) = outputs("same"), outputs("bfloat16")
  assert "bf16" not in program and "bf16" in low
  for exact, each in zip(same, rounded, strict=True):
    assert each.dtype == jnp.float32
    assert 0 < np.sqrt(np.mean((exact - each) ** 2)) < 0.03  # of entries of size one
