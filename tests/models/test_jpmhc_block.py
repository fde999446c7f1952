"""JPmHC's TRM block by config: the hidden width split over the streams, every sub-layer on one stream's width."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.connections.interop import from_peer
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.models import connections
from jpmhc_jax.models.blocks import Block
from jpmhc_jax.training.tasks import task_of

MODEL = schema.Model(width=32, heads=1, layers=1, mlp_multiple=256, norm_epsilon=1e-5, rematerialise="none")
CONNECTION = schema.Connection(
  streams=4, segments=4, sublayer="stream", mixer="cayley_iterative", options="alpha=0.1,steps=2", read_write="softmax",
  norm_epsilon=1e-5,
)  # fmt: skip


def _linear(weight, *shape):
  """(out, in) as x @ kernel takes it."""
  return jnp.asarray(weight.T.reshape(*shape))


def test_the_published_block_comes_out(shared):
  with np.load(shared / "fixtures" / "mixers.npz") as file:
    start = "block/trm_block_jpmhc/"
    stored = {name.removeprefix(start): file[name] for name in file.files if name.startswith(start)}
  if not stored:
    pytest.skip("the committed subset of the fixtures is without this block, whose weights take 95 kB")
  weights = {name.removeprefix("params/"): value for name, value in stored.items() if name.startswith("params/")}
  with jax.enable_x64(True):
    block = Block(MODEL, CONNECTION, 11, 0, nnx.Rngs(0))
    block.tokens.qkv = nnx.Param(_linear(weights["self_attn.qkv_proj.weight"], 8, 3, 1, 8))
    block.tokens.out = nnx.Param(_linear(weights["self_attn.o_proj.weight"], 1, 8, 8))
    block.features.gate_up = nnx.Param(_linear(weights["mlp.gate_up_proj.weight"], 8, 2, 256))
    block.features.down = nnx.Param(_linear(weights["mlp.down_proj.weight"], 256, 8))
    for connection, prefix in ((block.connect_tokens, "attn_mixer."), (block.connect_features, "ffn_mixer.")):
      _, parameters = from_peer("jpmhc_rms", weights, streams=4, width=8, prefix=prefix)
      for name, value in parameters.items():
        setattr(connection, name, nnx.Param(value))
    out = nnx.jit(lambda block, h: block(h))(block, jnp.asarray(stored["x"].reshape(2, 11, 4, 8)))
    assert_allclose(out.reshape(2, 11, 32), stored["out"], rtol=1e-5, atol=1e-6)  # rotations are in float32 tables


def test_a_run_has_sub_layers_of_a_stream_and_ends_of_the_whole_width():
  split = dataclasses.replace(CONNECTION, streams=2, segments=2)
  config = tiny.config(connection=split)
  task_of(config)
  connections.check(config)
  shapes = jax.eval_shape(tiny.setup(config).create).params
  assert shapes["block0"]["tokens"]["qkv"].shape == (8, 3, 2, 4)
  assert (shapes["embedding"].shape[1], shapes["lm_head"].shape[0]) == (16, 16)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"connection": dataclasses.replace(CONNECTION, segments=1)}, "connection.segments=1: expected 2 or more"),
    ({"model": dataclasses.replace(MODEL, heads=3)}, "model.width=8: expected a multiple of model.heads=3"),
    ({"model": schema.Model(kind="vit"), "data": schema.Data(kind="images")}, "connection.sublayer='stream': expected"),
  ],
)
def test_what_does_not_fit_is_refused(changes, message):
  config = tiny.config(**{"model": MODEL, "connection": CONNECTION, **changes})
  with pytest.raises(ConfigError) as error:
    task_of(config)
    connections.check(config)
  assert message in str(error.value)
