"""Mistakes seen in public code: each check passes on ours and fails on the mistake.

Elsewhere: symmetric streams and zero gradients at the start in test_connection, a transposed H in test_apply and
test_convert, frozen logits in test_diagnostics.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.connections import HyperConnection, HyperConnectionFn
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers import FAMILIES
from jpmhc_jax.models.connections import hyper_connection_fn

N, D, LENGTH = 4, 8, 5
CASES = (
  {"mixer": "cayley", "norm": "layernorm", "read_write": "softmax"},
  {"mixer": "sinkhorn", "generator": "gated", "gate_init": 1.0},
  {"mixer": "permutation", "read_write": "softmax_read"},
  {"mixer": "unconstrained", "read_write": "linear", "norm": "rmsnorm_per_stream", "activation": "tanh"},
  {"mixer": "unconstrained", "read_write": "linear", "projection": "per_stream", "transpose": True},
  {"mixer": "cayley", "generator": "static"},
  {"mixer": "cayley", "segments": 2, "read_write": "linear"},
)


class Pooled(HyperConnectionFn):
  """The mistake: logits from the mean over the sequence, which future tokens are part of (EΔ hybrid, SHC)."""

  def logits(self, parameters, streams):
    pooled = jnp.broadcast_to(jnp.mean(streams, axis=1, keepdims=True), streams.shape)
    return super().logits(parameters, pooled)


class RandomStream(HyperConnectionFn):
  """The mistake: the favoured stream is drawn when the parameters are (mhc-lite, lucidrains without layer_index)."""

  def init(self, key, layer_index=None):
    drawn = int(jax.random.randint(key, (), 0, self.streams))
    return dataclasses.replace(_plain(self), layer_index=drawn).init(key)


def _plain(rule):
  fields = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
  return HyperConnectionFn(**fields)


def _as(cls, rule):
  return cls(**{field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)})


def _check_causal(rule):
  """Changing the last token changes no output before it, not by a bit."""
  x = jax.random.normal(jax.random.key(1), (2, LENGTH, N, rule.stream_width))
  changed = x.at[:, -1].add(1.0)
  run = jax.jit(lambda x: rule(rule.init(jax.random.key(0)), x, jnp.tanh))
  before, after = run(x), run(changed)
  np.testing.assert_array_equal(before[:, :-1], after[:, :-1])
  assert float(jnp.max(jnp.abs(before[:, -1] - after[:, -1]))) > 0


@pytest.mark.parametrize("fields", CASES, ids=lambda fields: "-".join(map(str, fields.values())))
def test_no_output_sees_a_future_token(fields):
  rule = hyper_connection_fn(schema.Connection(streams=N, init_scale=1.0, **fields), D, 0)
  _check_causal(rule)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_sees_a_future_token(family):
  _check_causal(hyper_connection_fn(schema.Connection(streams=N, init_scale=1.0, mixer=family), D, 0))


def test_the_check_of_causality_catches_a_pooled_generator():
  rule = hyper_connection_fn(schema.Connection(streams=N, init_scale=1.0), D, 0)
  with pytest.raises(AssertionError):
    _check_causal(_as(Pooled, rule))


def _check_favoured(make):
  """The stream that a layer reads most is its index modulo n, whatever the key."""
  for layer in range(N + 1):
    for seed in range(3):
      rule = make(layer)
      read = rule.init(jax.random.key(seed))["bias"][:N]
      assert int(jnp.argmax(read)) == layer % N


def test_the_favoured_stream_is_the_layer_index_and_never_drawn():
  config = schema.Connection(streams=N, init="round_robin", generator="static")
  _check_favoured(lambda layer: hyper_connection_fn(config, D, layer))
  with pytest.raises(AssertionError):
    _check_favoured(lambda layer: _as(RandomStream, hyper_connection_fn(config, D, layer)))
  with pytest.raises(ConfigError, match="layer_index=None: expected the number of the layer"):
    hyper_connection_fn(config, D)
  assert (
    HyperConnection(hyper_connection_fn(schema.Connection(streams=N), D), rngs=nnx.Rngs(0)).rule.favours_a_stream
    is False
  )


@pytest.mark.parametrize("family", ["sinkhorn", "birkhoff_newton", "permutation", "kronecker"])
def test_doubly_stochastic_mixers_do_not_start_at_the_mean_matrix(family):
  """With zero biases (MaxText, Megatron) they would: the most contractive member, where the streams become one.

  (The circulant family bounds its leak by construction instead.)
  """

  def start(bias):
    config = schema.Connection(streams=N, mixer=family, generator="static", identity_bias=bias)
    rule = hyper_connection_fn(config, D, 0)
    return np.asarray(rule.coefficients(rule.init(jax.random.key(0)), jnp.ones((1, N, D))).mix)

  mean = np.full((N, N), 1 / N)
  assert np.abs(start(schema.Connection().identity_bias) - mean).max() > 0.5
  assert np.linalg.svd(start(schema.Connection().identity_bias), compute_uv=False)[-1] > 0.5
  np.testing.assert_allclose(start(0.0), mean, atol=1e-6)
