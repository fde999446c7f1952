"""Several rollouts of an example: which noise they have, which answer is chosen, and that batches and meshes agree."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.evaluation.evaluator import make_rollout
from jpmhc_jax.models.trajectories import choose, disturbed, example_keys
from jpmhc_jax.training.tasks import task_of

PREDICTIONS = np.array([[[1, 2]], [[3, 4]], [[3, 4]], [[1, 2]], [[5, 6]]], np.int32)


@pytest.mark.parametrize(
  ("choice", "q", "chosen"),
  [
    ("halting", [0.1, 0.3, 0.2, 0.0, 0.9], 4),
    ("halting", [0.5, 0.5, 0.2, 0.0, 0.1], 0),
    ("vote", [0.1, 0.3, 0.2, 0.0, 9.0], 1),  # two votes each: the surer one; one vote: never
    ("vote", [0.5, 0.3, 0.2, 0.9, -9.0], 0),
  ],
)
def test_the_surest_or_the_most_frequent_answer_is_chosen(choice, q, chosen):
  assert choose(jnp.array(q)[:, None], jnp.asarray(PREDICTIONS), choice).tolist() == [chosen]


def test_noise_has_its_size_and_depends_on_example_trajectory_and_step_alone():
  tokens, ids = jnp.array([[1, 2, 3], [3, 2, 1], [1, 2, 3]]), jnp.array([7, 7, 8])
  keys = example_keys(jax.random.key(0), tokens, ids)
  z = jnp.zeros((3, 40, 50))
  noise = lambda keys, z, *turn: np.asarray(disturbed((z, z), keys, *map(jnp.asarray, turn), 0.3)[1])  # noqa: E731
  first = noise(keys, z, 1, 0)
  assert abs(first.std() - 0.3) < 0.01 and abs(first.mean()) < 0.01
  np.testing.assert_array_equal(first[1:2], noise(example_keys(jax.random.key(0), tokens[1:2], ids[1:2]), z[:1], 1, 0))
  others = [first[0], first[1], first[2], noise(keys, z, 2, 0)[0], noise(keys, z, 1, 1)[0]]
  assert np.corrcoef([other.ravel() for other in others]) == pytest.approx(np.eye(5), abs=0.1)
  assert not noise(keys, z, 0, 0).any()  # the plain rollout
  alone, nothing = disturbed((z, None), keys, jnp.asarray(1), jnp.asarray(0), 0.3)
  np.testing.assert_array_equal(alone, first)
  assert nothing is None


def _config(**evaluation):
  return tiny.config(evaluation=schema.Evaluation(**{"trajectories": 3, "noise": 0.5} | evaluation))


@functools.cache
def _state():
  """Fresh parameters with a halting head that tells the trajectories apart."""
  state = jax.device_get(tiny.setup(tiny.config()).create())
  kernel = np.random.default_rng(0).normal(size=state.ema["q_kernel"].shape).astype(np.float32)
  return dataclasses.replace(state, ema=state.ema | {"q_kernel": kernel})


def _answers(config, batch, devices=1):
  setup, state = tiny.setup(dataclasses.replace(config, mesh=schema.Mesh(data=devices))), _state()
  return jax.device_get(make_rollout(setup)(state.ema, state.buffers, state.table, batch))


@pytest.mark.slow
def test_a_rollout_takes_the_surest_trajectory_whatever_the_batch_and_the_mesh():
  dataset = tiny.dataset(tiny.config())
  (batch,) = dataset.evaluation_batches(8, 8)
  batch = {name: batch[name] for name in dataset.element_spec}
  plain, three = (_answers(config, batch) for config in (tiny.config(), _config()))
  assert (three["q_halt"] >= plain["q_halt"]).all() and (three["q_halt"] > plain["q_halt"]).any()
  spread = _answers(_config(), batch, devices=8)
  fewer = _answers(_config(), {name: values[5:2:-1] for name, values in batch.items()})
  for name, values in three.items():
    np.testing.assert_allclose(spread[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(fewer[name], values[5:2:-1], rtol=1e-4, atol=1e-5, err_msg=name)


def test_trajectories_are_refused_where_there_is_one_rollout_and_votes_where_copies_vote():
  with pytest.raises(ConfigError, match="evaluation.trajectories=2: expected 1: an example of model.kind='decoder'"):
    task_of(schema.Config(
      data=schema.Data(kind="text"), model=schema.Model(kind="decoder"), evaluation=schema.Evaluation(trajectories=2)
    ))  # fmt: skip
  with pytest.raises(ConfigError, match="evaluation.choice='vote': expected halting, since the augmented copies"):
    task_of(schema.Config(evaluation=schema.Evaluation(choice="vote", trajectories=2)))
