"""Every mixer family trains in the tiny recipe: the loss falls and the streams separate. Real model, step and data."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.config.variants import VARIANTS
from jpmhc_jax.mixers import FAMILIES
from jpmhc_jax.training.step import make_train_step

FIELDS = {
  "circulant": {"generator": "static"},
  "permutation": {"generator": "static"},
  "transport": {"generator": "gated"},
  "cayley": {"generator": "gated"},
  "unconstrained": {"projection": "per_stream", "activation": "tanh", "transpose": True},  # HC
}


def test_every_family_is_a_variant_of_the_recipes():
  assert set(VARIANTS) == {"trm", *FAMILIES} - {"birkhoff"}  # another name of sinkhorn


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "birkhoff"])
def test_loss_falls_and_streams_separate(family):
  connection = schema.Connection(mixer=family, streams=4, init_scale=0.1, **FIELDS.get(family, {}))
  if connection.generator == "static":
    connection = dataclasses.replace(connection, init="round_robin")
  model = tiny.config().model
  recursion = dataclasses.replace(model.recursion, outer=1, inner=1)
  config = tiny.config(connection=connection, model=dataclasses.replace(model, recursion=recursion))
  setup = tiny.setup(config)
  step, examples, state = make_train_step(setup), tiny.dataset(config), setup.create()
  losses, first = [], jax.tree.map(np.asarray, state.params)
  for k in range(20):
    state, metrics = step(state, jax.device_put(examples.batch(k % 4)))
    losses.append(metrics.scalars()["lm_loss"])
  assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4]), losses
  streams = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in separations(state.carry)])
  assert streams.max() > 1e-3
  moved = [
    np.abs(np.asarray(a) - b).max() for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(first), strict=True)
  ]
  assert min(moved) > 0  # no parameter is frozen


def separations(carry):
  """Largest deviation of a stream from the mean of the four, of every leaf (…, 4, width) of the carry."""
  for leaf in jax.tree.leaves(carry):
    if leaf.ndim >= 4 and leaf.shape[-2] == 4:
      yield np.abs(leaf - leaf.mean(axis=-2, keepdims=True)).max()
