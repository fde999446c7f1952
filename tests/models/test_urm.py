"""The Universal Reasoning Model: its loops and their gradient by hand, its convolution, every mixer, a whole run."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest
import tiny

import jpmhc_jax as jp
from jpmhc_jax.config import schema
from jpmhc_jax.config.variants import VARIANTS
from jpmhc_jax.evaluation.spectra.networks import network_of
from jpmhc_jax.models.layers import ConvSwiGLU, SwiGLU
from jpmhc_jax.models.urm import URM
from jpmhc_jax.training.header import next_command
from jpmhc_jax.training.tasks.urm import UniversalReasoning

MODEL = schema.Model(
  kind="urm", width=8, heads=2, layers=2, mlp_multiple=8, convolution=2, rematerialise="none",
  recursion=schema.Recursion(outer=2, inner=2, call_embedding=True), puzzle=schema.Puzzle(width=8, slots=1),
)  # fmt: skip
INPUTS, ROWS = jnp.arange(8).reshape(2, 4) % 5, jnp.ones((2, 8)) / 3


def _model(connection=schema.Connection(streams=1), **fields):  # noqa: B008 (frozen)
  return URM(dataclasses.replace(MODEL, **fields), connection, vocab_size=5, sequence_length=4, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_a_supervision_step_is_four_loops_of_which_the_last_two_have_a_gradient():
  graph, parameters, rest = nnx.split(_model(), nnx.Param, ...)
  rng = np.random.default_rng(0)
  parameters = jax.tree.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(leaf.dtype), parameters)

  def step(parameters):
    model = nnx.merge(graph, parameters, rest)
    output = model(*model.initial_latents(2, 5), INPUTS, ROWS)
    assert output.z_l is None
    return jnp.sum(jnp.sin(output.logits)), output.logits

  def by_hand(parameters):
    model = nnx.merge(graph, parameters, rest)
    x, (z, _) = model.embed(INPUTS, ROWS), model.initial_latents(2, 5)
    for turn in range(4):
      z = jax.lax.stop_gradient(z) if turn == 2 else z
      z = z + x + model.call_embedding[...][turn % 2][None, None]
      z = model.block1(model.block0(z))
    logits = z[:, 1:] @ model.lm_head[...]
    return jnp.sum(jnp.sin(logits)), logits

  (_, logits), gradient = jax.jit(jax.value_and_grad(step, has_aux=True))(parameters)
  (_, expected), wanted = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(parameters)
  assert_allclose(logits, expected, rtol=2e-4, atol=1e-5)
  scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(wanted))
  for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
    assert_allclose(ours, theirs, atol=1e-4 * scale)


@pytest.mark.parametrize("taps", [1, 2, 3])
def test_the_convolution_sees_the_positions_around_and_nothing_outside(taps):
  layer = ConvSwiGLU(4, 6, taps, rngs=nnx.Rngs(0))
  plain = SwiGLU(4, 6, rngs=nnx.Rngs(0))
  x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
  gate, up = np.einsum("bld,dpi->pbli", x, layer.gate_up[...])
  h = gate / (1 + np.exp(-gate)) * up
  kernel, mixed = np.asarray(layer.taps[...])[:, 0], np.zeros_like(h) + np.asarray(layer.bias[...])
  for t in range(5):
    for j in range(taps):
      if 0 <= (source := t + j - taps // 2) < 5:
        mixed[:, t] += kernel[j] * h[:, source]
  expected = mixed / (1 + np.exp(-mixed)) @ np.asarray(layer.down[...])
  assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)
  assert np.all(np.abs(kernel) <= taps**-0.5) and plain.gate_up.shape == layer.gate_up.shape


@pytest.mark.parametrize("mixer", [name for name in VARIANTS if name not in ("trm", "grassmann")])
def test_every_mixer_takes_its_place_in_the_loops(mixer):
  model = _model(schema.Connection(mixer=mixer, streams=4), layers=1, recursion=schema.Recursion(outer=1, inner=1))
  output = jax.eval_shape(lambda model: model(*model.initial_latents(2, 5), INPUTS, ROWS), model)
  assert output.z_h.shape == (2, 5, 4, 8) and output.logits.shape == (2, 4, 5)


@pytest.mark.parametrize("fields", [{"scope": "call"}, {"sharing": "per_call"}, {"sharing": "none"}], ids=str)
def test_streams_live_in_a_call_or_in_the_carry_and_loops_may_have_connections_of_their_own(fields):
  model = _model(schema.Connection(mixer="cayley", streams=2, **fields), rematerialise="call", layers=1)
  output = jax.eval_shape(lambda model: model(*model.initial_latents(2, 5), INPUTS, ROWS), model)
  assert output.z_h.shape == ((2, 5, 8) if "scope" in fields else (2, 5, 2, 8))
  assert model.connections_of_its_own == (1 if "scope" in fields else 2)


@functools.cache
def _config(**fields):
  model = dataclasses.replace(tiny.config().model, kind="urm", convolution=2)
  return tiny.config(model=model, mesh=schema.Mesh(), logging=schema.Logging(every=1, tensorboard=False), **fields)


def test_spectra_of_its_loops_are_refused_and_not_proposed(tmp_path):
  setup = tiny.setup(tiny.config(model=_config().model))
  assert next_command(setup, tmp_path).startswith("jpmhc evaluate")
  with pytest.raises(jp.UserError, match="model.kind='urm': spectra are measured of TRM's two latents"):
    network_of(UniversalReasoning(), setup)


@pytest.mark.slow
def test_a_run_trains_diagnoses_evaluates_and_resumes(tmp_path):
  often = {"checkpoint.every": 2, "logging.diagnostics_every": 2, "logging.every": 1}
  jp.train(_config(), tmp_path, overrides=often | {"steps": 2}, quiet=True)
  resumed = jp.train(_config(), tmp_path, overrides=often | {"steps": 4}, quiet=True)
  assert resumed.step == 4 and resumed.metrics["train/loss"].steps.tolist() == [1, 2, 3, 4]
  assert resumed.state.carry.z_l is None and "mixer/block0.tokens/" in " ".join(resumed.metrics)
  assert resumed.evaluations[-1].metrics["examples"] == 20
