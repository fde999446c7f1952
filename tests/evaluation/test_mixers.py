"""Mixer diagnostics of a run: which connections are seen, and that they are those of the carry."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.connections.diagnostics import alarms
from jpmhc_jax.evaluation.mixers import make_diagnose


def _setup(**connection):
  return tiny.setup(tiny.config(connection=schema.Connection(streams=2, **connection)))


def _with_separate_streams(setup):
  """The initial state with a carry and connections that are no copies of each other, on the host."""
  state, rng = jax.device_get(setup.create()), np.random.default_rng(0)

  def noisy(leaf):
    return leaf + rng.normal(size=leaf.shape).astype(leaf.dtype)

  carry = dataclasses.replace(state.carry, z_h=noisy(state.carry.z_h), z_l=noisy(state.carry.z_l))
  return dataclasses.replace(state, carry=carry, params=jax.tree.map(noisy, state.params))


def test_every_connection_is_measured_on_the_streams_that_enter_it():
  setup = _setup(mixer="cayley", options="alpha=1.0")
  state = _with_separate_streams(setup)
  values = make_diagnose(setup)(state)
  state = jax.tree.map(jnp.asarray, state)
  model = nnx.merge(setup.graph, nnx.State(state.params), nnx.State(state.buffers))
  carry = state.carry
  x = model.embed(carry.data["inputs"], state.table[carry.data["puzzle_identifiers"]])[:, :, None, :]
  streams = carry.z_l + carry.z_h + x
  measured = {name.removeprefix("mixer/").rsplit("/", 1)[0] for name in values}
  assert measured == {"block0.tokens", "block0.features", "composite"}
  assert all(np.isfinite(value) for value in values.values())
  assert not alarms(values)

  flat = np.asarray(streams).reshape(-1, 2, streams.shape[-1])
  centred = flat - flat.mean(axis=1, keepdims=True)
  energy = ((centred**2).sum(axis=(1, 2)) / (flat**2).sum(axis=(1, 2))).mean()
  assert values["mixer/block0.tokens/difference_energy"] == pytest.approx(energy, rel=1e-4)

  first = np.asarray(model.block0.connect_tokens.coefficients(streams).mix)
  # A 2 x 2 rotation: the cosine of its angle is on the diagonal.
  angles = np.degrees(np.arccos(np.clip(first[0, 0].ravel(), -1, 1)))
  sampled = angles[:: -(-angles.size // 256)]
  assert values["mixer/block0.tokens/max_angle_deg"] == pytest.approx(sampled.mean(), rel=1e-3)
  for where in ("block0.tokens", "block0.features", "composite"):
    assert values[f"mixer/{where}/smallest_singular_value"] == pytest.approx(1.0, abs=1e-5)
    assert values[f"mixer/{where}/largest_singular_value"] == pytest.approx(1.0, abs=1e-5)


def test_a_network_without_streams_has_no_diagnostics():
  assert make_diagnose(tiny.setup(tiny.config(connection=schema.Connection(streams=1)))) is None


def test_the_streams_of_a_network_that_expands_inside_a_call_are_measured_too():
  setup = _setup(mixer="permutation", scope="call")
  values = make_diagnose(setup)(setup.create())
  # Copies enter the first connection; doubly stochastic mixers keep row and column sums.
  assert values["mixer/block0.tokens/difference_energy"] == pytest.approx(0.0, abs=1e-5)
  assert values["mixer/composite/forward_gain"] == pytest.approx(1.0, abs=1e-5)
  assert values["mixer/composite/backward_gain"] == pytest.approx(1.0, abs=1e-5)


def test_streams_that_are_copies_everywhere_set_the_alarm_off():
  symmetric = _setup(mixer="cayley", init="zero", read_write="softmax")
  values = make_diagnose(symmetric)(symmetric.create())
  assert values["mixer/composite/equal_streams"] == 1 and values["mixer/block0.tokens/frozen_gradient"] == 0
  (line,) = alarms(values)
  assert "break the symmetry with connection.init=random" in line
