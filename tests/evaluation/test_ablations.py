"""Causal ablations: what replaces which mixer, computed by hand; results that no one takes for the evaluation's."""

import dataclasses
import functools
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.connections import HyperConnection
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.evaluation.ablations import ablate, Ablation
from jpmhc_jax.evaluation.evaluator import Evaluator
from jpmhc_jax.models.connections import hyper_connection_fn
from jpmhc_jax.models.layers import rms_norm
from jpmhc_jax.reporting.workdir import read_runs

N, WIDTH = 4, 8
BY_HAND = {
  "identity": np.eye(N),
  "mean": np.full((N, N), 1 / N),
  "permutation": np.array([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]]),
}


@functools.cache
def _setup(mixer="cayley"):
  return tiny.setup(tiny.config(connection=schema.Connection(mixer=mixer, streams=2, options="")))


@pytest.fixture(scope="module")
def state():
  """Parameters that mix the streams strongly, on the host."""
  state, rng = jax.device_get(_setup().create()), np.random.default_rng(0)
  noisy = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(leaf.dtype), state.ema)
  return dataclasses.replace(state, ema=noisy)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
  """Setup and state of a language model of three layers, whose mixers mix strongly."""
  folder = tmp_path_factory.mktemp("sources")
  for i in range(12):
    (folder / f"module{i}.py").write_text(f"def f{i}(x):\n  return x + {i}\n" * 8)
  config = tiny.config(
    data=schema.Data(kind="text", prefetch=0, text=schema.TextData(folder=str(folder), window=16, held_out=4)),
    model=schema.Model(kind="decoder", width=16, heads=2, layers=3, mlp_multiple=8, loss="softmax"),
    connection=schema.Connection(mixer="cayley", streams=2, options="alpha=2.0", init_scale=2.0),
  )
  setup = tiny.setup(config)
  return setup, setup.create()


@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("fields", [{}, {"parameterisation": "manifold"}, {"generator": "static", "transpose": True}])
def test_a_connection_applies_the_replacement_and_keeps_its_read_and_write(kind, fields):
  module = HyperConnection(hyper_connection_fn(schema.Connection(init_scale=2.0, **fields), WIDTH, 0), rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (3, N, WIDTH))
  read, mix, write = module.coefficients(x)
  module.rule = dataclasses.replace(module.rule, ablation=kind)
  u = np.einsum("j...,...jd->...d", read, x)
  expected = np.einsum("ij,tjd->tid", BY_HAND[kind], x) + np.einsum("i...,...d->...id", write, np.tanh(u))
  np.testing.assert_allclose(module(x, jnp.tanh), expected, atol=1e-5)


def test_only_the_chosen_connection_is_replaced_and_the_parameters_still_fit(state):
  setup, replaced = ablate(_setup(), Ablation("mean", "block0.tokens"))
  assert replaced == ["block0.tokens"]
  params, buffers = jax.tree.map(jnp.asarray, (state.ema, state.buffers))
  before, after = (nnx.merge(s.graph, nnx.State(params), nnx.State(buffers)) for s in (_setup(), setup))
  h = jax.random.normal(jax.random.key(2), (2, 5, 2, 16))
  block = before.block0
  read, _, write = block.connect_tokens.coefficients(h)
  u = jnp.einsum("jbl,bljd->bld", read, h)
  mixed = jnp.mean(h, axis=2, keepdims=True) + jnp.einsum("ibl,bld->blid", write, block.tokens(u))
  expected = rms_norm(mixed, block.epsilon)
  expected = rms_norm(block.connect_features(expected, block.features), block.epsilon)
  np.testing.assert_allclose(after.block0(h), expected, atol=1e-5)
  assert float(jnp.max(jnp.abs(before.block0(h) - expected))) > 0.1


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "mean")) for kind in BY_HAND])
def test_single_layers_of_a_scanned_decoder_are_replaced(kind, decoder):
  setup, state = decoder
  replaced, names = ablate(setup, Ablation(kind, "block1.tokens,block2.*"))
  assert names == ["block2.features", "block1.tokens", "block2.tokens"]
  before, after = (tiny.model_of(s, state) for s in (setup, replaced))
  h = start = jax.random.normal(jax.random.key(2), (2, 4, 2, 16))
  for k in range(3):
    layer = jax.tree.map(lambda leaf, k=k: leaf[k], before.layers)
    for name, connect in (("tokens", layer.connect_tokens), ("features", layer.connect_features)):
      if f"block{k}.{name}" in names:
        connect.rule = dataclasses.replace(connect.rule, ablation=kind)
    h = layer(h)
  run = jax.jit(lambda model: model.run(start)[0])
  np.testing.assert_allclose(run(after), h, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(h))))
  assert float(jnp.max(jnp.abs(run(before) - h))) > 0.1


def test_replacing_identity_mixers_by_the_identity_changes_nothing_and_by_others_does(tmp_path):
  setup = _setup("identity")
  state = jax.device_get(setup.create())
  rng = np.random.default_rng(0)
  state = dataclasses.replace(
    state, ema=jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(leaf.dtype), state.ema)
  )
  dataset = tiny.dataset(setup.config)
  losses = {
    kind: Evaluator(setup, dataset, tmp_path, Ablation(kind))(state, 3)["lm_loss"]
    for kind in ("none", "identity", "permutation")
  }
  assert losses["none"] == losses["identity"]
  assert abs(losses["none"] - losses["permutation"]) > 1e-3


def test_results_go_to_a_folder_of_their_own_and_the_report_does_not_take_them_for_the_evaluation(state, tmp_path):
  setup = _setup()
  metrics = Evaluator(setup, tiny.dataset(setup.config), tmp_path, Ablation("mean", "block0.*"))(state, 5)
  written = tmp_path / "evaluation" / "ablation_mean_block0.x" / "step_5.json"
  content = json.loads(written.read_text())
  assert content["metrics"] == metrics
  assert content["ablation"] == {"mixer": "mean", "connections": ["block0.features", "block0.tokens"]}
  assert not list((tmp_path / "evaluation").glob("step_*"))
  configs.save(setup.config, tmp_path / "config.json")
  assert not read_runs([tmp_path])[0].evaluations


def test_a_name_that_no_connection_has_is_refused_with_the_nearest(tmp_path):
  with pytest.raises(
    ConfigError, match="no connection 'block0.token'.*block0.features, block0.tokens. Did you mean 'block0.tokens'"
  ):
    ablate(_setup(), Ablation("mean", "block0.features,block0.token"))
  with pytest.raises(ConfigError, match="at most 120 characters"):
    Ablation("mean", "b" * 121).folder(tmp_path)
  with pytest.raises(ConfigError, match="ablation='men': expected one of none, .*Did you mean 'mean'"):
    Ablation("men")
  with pytest.raises(ConfigError, match=r"layers='block0.\*': expected an ablation of them beside it"):
    Ablation(layers="block0.*")


def test_permuted_puzzles_need_a_network_that_sees_them(decoder):
  with pytest.raises(ConfigError, match="wrong_puzzle=True: expected a network with puzzle embeddings.*'decoder'"):
    ablate(decoder[0], Ablation(wrong_puzzle=True))
