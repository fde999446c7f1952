"""Conventions of others: equal block outputs on their own numbers and on the live package, round trips, layouts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.connections import StreamExpansionFn
from jpmhc_jax.connections.conventions import CONVENTIONS
from jpmhc_jax.connections.interop import (
  from_layout,
  from_peer,
  head_from_deepseek,
  head_to_deepseek,
  LAYOUTS,
  to_layout,
  to_peer,
)
from jpmhc_jax.core.errors import CheckpointError, ConfigError

N, D, TOKENS = 4, 8, (2, 3)


def _random(convention, seed=0):
  rng = np.random.default_rng(seed)
  return {name: rng.normal(size=shape) for name, shape in CONVENTIONS[convention].shapes(N, D).items()}


def _block(convention, arrays, x, kernel, n=N, **fields):
  rule, parameters = from_peer(convention, arrays, streams=n, width=D)
  rule = dataclasses.replace(rule, **fields)
  assert parameters.keys() == rule.init(jax.random.key(0)).keys()
  return jax.jit(lambda p, x: rule(p, x, lambda u: u @ kernel))(parameters, jnp.asarray(x))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_there_and_back_is_the_identity(convention):
  with jax.enable_x64(True):
    arrays = _random(convention)
    _, ours = from_peer(convention, arrays, streams=N, width=D)
    back = to_peer(convention, ours, streams=N, width=D)
    _, again = from_peer(convention, back, streams=N, width=D)
    for name, value in ours.items():
      np.testing.assert_array_equal(again[name], value, err_msg=name)
    for name, value in back.items():
      assert value.shape == arrays[name].shape
      if "norm.gamma" not in arrays:  # γ is folded into the projections
        np.testing.assert_array_equal(value, arrays[name], err_msg=name)


@pytest.mark.parametrize(
  ("family", "convention", "fields"),
  [
    ("jpmhc_layernorm", "jpmhc", {}),
    ("hc_lucidrains", "lucidrains_hc", {}),
    ("hc_lucidrains_notanh", "lucidrains_hc", {"activation": "none"}),
    ("mhc_lucidrains", "lucidrains_mhc", {}),
    ("jpmhc_rmsnorm", "jpmhc_rms", {}),
    ("mhc_mhclite", "mhc_lite_mhc", {}),
    ("lite", "mhc_lite", {}),
    ("kromhc", "kromhc", {}),
    ("tbp", "tbp", {}),
    ("s2hc", "s2hc", {}),
  ],
)
def test_the_published_block_comes_out(shared, family, convention, fields):
  with np.load(shared / "fixtures" / "mixers.npz") as file:
    start = f"block/{family}/n4/"
    block = {name.removeprefix(start): file[name] for name in file.files if name.startswith(start)}
  with jax.enable_x64(True):
    arrays = {name.removeprefix("params/"): value for name, value in block.items() if name.startswith("params/")}
    out = _block(convention, arrays, block["x"], jnp.asarray(block["W_F"]), **fields)
    np.testing.assert_allclose(out, block["out"], rtol=1e-11, atol=1e-11)


def test_the_published_coefficients_of_deepseek_come_out(shared):
  with np.load(shared / "fixtures" / "mixers.npz") as file:
    start = "block/coefficients_deepseek/n4/"
    stored = {name.removeprefix(start): file[name] for name in file.files if name.startswith(start)}
  scale = np.concatenate([stored[f"alpha_{part}"] for part in ("pre", "post", "res")])
  arrays = {"layers.0.hc_attn_fn": stored["phi"].T, "layers.0.hc_attn_base": stored["b"]}
  with jax.enable_x64(True):
    rule, parameters = from_peer(
      "deepseek", arrays | {"layers.0.hc_attn_scale": scale}, streams=N, width=D, prefix="layers.0.hc_attn_"
    )
    read, mix, write = jax.jit(rule.coefficients)(parameters, jnp.asarray(stored["x"]))
    np.testing.assert_allclose(np.moveaxis(read, 0, -1), stored["H_pre"], atol=1e-12)
    np.testing.assert_allclose(np.moveaxis(write, 0, -1), stored["H_post"], atol=1e-12)
    # Applied transposed: out[n] = Σ_m H[m, n] x[m].
    np.testing.assert_allclose(np.moveaxis(mix, (0, 1), (-1, -2)), stored["H_res_raw"], atol=1e-12)


def test_the_deepseek_block_is_its_formula_and_not_the_transposed_one():
  with jax.enable_x64(True):
    arrays, rng = _random("deepseek", 1), np.random.default_rng(2)
    x, kernel = rng.normal(size=(*TOKENS, N, D)), rng.normal(size=(D, D)) / 3
    flat = x.reshape(*TOKENS, -1)
    mixes = (flat @ arrays["fn"].T) / np.sqrt((flat**2).mean(axis=-1, keepdims=True) + 1e-6)
    logits = mixes * np.repeat(arrays["scale"], [N, N, N * N]) + arrays["base"]
    pre, post = (1 / (1 + np.exp(-part)) for part in (logits[..., :N], logits[..., N : 2 * N]))
    pre, post = pre + 1e-6, 2 * post
    comb = np.exp(logits[..., 2 * N :].reshape(*TOKENS, N, N))
    comb = comb / comb.sum(axis=-1, keepdims=True) + 1e-6
    comb = comb / (comb.sum(axis=-2, keepdims=True) + 1e-6)
    for _ in range(19):
      comb = comb / (comb.sum(axis=-1, keepdims=True) + 1e-6)
      comb = comb / (comb.sum(axis=-2, keepdims=True) + 1e-6)
    written = post[..., None] * (np.einsum("...n,...nd->...d", pre, x) @ kernel)[..., None, :]
    out = _block("deepseek", arrays, x, jnp.asarray(kernel))
    np.testing.assert_allclose(out, np.einsum("...mk,...md->...kd", comb, x) + written, atol=1e-10)
    wrong = _block("deepseek", arrays, x, jnp.asarray(kernel), transpose=False)
    assert float(jnp.max(jnp.abs(wrong - out))) > 0.1


def test_the_head_of_deepseek_is_our_head():
  rng = np.random.default_rng(0)
  arrays = {
    "hc_head_fn": rng.normal(size=(N, N * D)),
    "hc_head_base": rng.normal(size=N),
    "hc_head_scale": np.array([0.7]),
  }
  x = rng.normal(size=(*TOKENS, N, D))
  flat = x.reshape(*TOKENS, -1)
  mixes = flat @ arrays["hc_head_fn"].T / np.sqrt((flat**2).mean(axis=-1, keepdims=True) + 1e-6)
  weights = 1 / (1 + np.exp(-(0.7 * mixes + arrays["hc_head_base"]))) + 1e-6
  with jax.enable_x64(True):
    ends = StreamExpansionFn(streams=N, width=D, reduction="head")
    parameters = head_from_deepseek(arrays, streams=N, width=D)
    out = ends.reduce(parameters, jnp.asarray(x))
    np.testing.assert_allclose(out, np.einsum("...n,...nd->...d", weights, x), atol=1e-12)
    again = head_from_deepseek(head_to_deepseek(parameters), streams=N, width=D)
    np.testing.assert_array_equal(again["head_kernel"], parameters["head_kernel"])


@pytest.mark.parametrize("convention", ["lucidrains_hc", "lucidrains_mhc"])
def test_the_installed_lucidrains_package_computes_the_same_and_takes_the_arrays_back(convention):
  torch = pytest.importorskip("torch")
  package = pytest.importorskip("hyper_connections")
  cls = package.HyperConnections if convention == "lucidrains_hc" else package.ManifoldConstrainedHyperConnections
  kernel = np.random.default_rng(3).normal(size=(D, D)).astype(np.float32) / 3
  module = cls(N, dim=D, branch=lambda u: u @ torch.tensor(kernel), layer_index=1)
  with torch.no_grad():
    for seed, parameter in enumerate(module.parameters()):
      parameter.copy_(torch.tensor(np.random.default_rng(seed).normal(size=parameter.shape), dtype=torch.float32))
  x = np.random.default_rng(4).normal(size=(*TOKENS, N, D)).astype(np.float32)
  folded = torch.tensor(np.array(to_layout(jnp.asarray(x), "folded")))
  state = {name: value.numpy() for name, value in module.state_dict().items()}
  expected = from_layout(jnp.asarray(module(folded).detach().numpy()), "folded", N)
  np.testing.assert_allclose(_block(convention, state, x, jnp.asarray(kernel)), expected, atol=2e-5)

  _, parameters = from_peer(convention, state, streams=N, width=D)
  module.load_state_dict({k: torch.tensor(v) for k, v in to_peer(convention, parameters, streams=N, width=D).items()})
  np.testing.assert_allclose(
    from_layout(jnp.asarray(module(folded).detach().numpy()), "folded", N), expected, atol=2e-5
  )


def test_what_does_not_fit_is_refused():
  arrays = _random("deepseek")
  with pytest.raises(CheckpointError, match="no array 'hc_attn_fn' among 3; set prefix.*Did you mean"):
    from_peer(
      "deepseek", {f"hc_atn_{name}": value for name, value in arrays.items()}, streams=N, width=D, prefix="hc_attn_"
    )
  with pytest.raises(CheckpointError, match=r"fn has shape \(24, 32\); 4 streams of width 16 need \(24, 64\)"):
    from_peer("deepseek", arrays, streams=N, width=16)
  with pytest.raises(ConfigError, match="convention='deepsek'.*Did you mean 'deepseek'"):
    from_peer("deepsek", arrays, streams=N, width=D)
  _, parameters = from_peer("lucidrains_hc", _random("lucidrains_hc"), streams=N, width=D)
  joint = {"projection": jnp.zeros((N, D, 2 * N + N * N))}
  with pytest.raises(CheckpointError, match=rf"'projection' is \(4, {D}, 24\), expected \(1, {D}, 6\).*`from_peer`"):
    to_peer("lucidrains_hc", parameters | joint, streams=N, width=D)
  with pytest.raises(CheckpointError, match="'bias' is missing"):
    to_peer("deepseek", joint, streams=N, width=D)
  _, tbp = from_peer("tbp", _random("tbp"), streams=N, width=D)
  with pytest.raises(CheckpointError, match="tbp: δ depends on the token"):
    to_peer("tbp", tbp | {"projection": tbp["projection"] + 1}, streams=N, width=D)
  _, s2hc = from_peer("s2hc", _random("s2hc"), streams=N, width=D)
  with pytest.raises(CheckpointError, match="s2hc: γ depends on the token"):
    to_peer("s2hc", s2hc | {"projection": s2hc["projection"] + 1}, streams=N, width=D)
  with pytest.raises(CheckpointError, match="one number for read and mixer"):
    to_peer("lucidrains_hc", parameters | {"gate": jnp.arange(3.0)}, streams=N, width=D)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_the_streams_where_they_say_and_come_back(layout):
  x = jnp.arange(2 * 3 * N * D, dtype=jnp.float32).reshape(2, 3, N, D)
  there = to_layout(x, layout)
  np.testing.assert_array_equal(from_layout(there, layout, N), x)
  b, t, stream, feature = 1, 2, 3, 5
  where = {
    "streams": (b, t, stream, feature), "first": (stream, b, t, feature), "packed": (b, t, stream * D + feature),
    "last": (b, t, feature, stream), "folded": (b * N + stream, t, feature),
  }  # fmt: skip
  assert there[where[layout]] == x[b, t, stream, feature]


def test_layouts_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="axis -1 of .* is 10, expected a multiple of n=4"):
    from_layout(jnp.zeros((2, 10)), "packed", 4)
  with pytest.raises(ValueError, match=r"expected at least 3 for \(b, …, n, d\)"):
    to_layout(jnp.zeros((4, 8)), "folded")
  with pytest.raises(ConfigError, match="layout='laste'.*Did you mean 'last'"):
    to_layout(jnp.zeros((4, 8)), "laste")
