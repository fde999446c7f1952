"""Prefetch changes when a batch is built, never what is in it."""

import itertools
import threading

import numpy as np
import pytest

from jpmhc_jax import data
from jpmhc_jax.config.schema import Data, MazeData
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.data.loading import load


@pytest.fixture(scope="module")
def mazes():
  config = Data(kind="maze", epochs_per_interval=3, maze=MazeData(side=9, train_mazes=40, test_mazes=5, min_path=6))
  return data.build(config, batch_size=16, seed=1)


@pytest.mark.parametrize("prefetch", [0, 1, 3, 8])
def test_batches_come_in_order_from_any_step_whatever_the_prefetch(mazes, prefetch):
  batches = load(mazes, start=5, rows=slice(4, 12), prefetch=prefetch)
  for expected, (step, batch) in zip(range(5, 30), batches, strict=False):
    assert step == expected
    for name, value in mazes.batch(step).items():
      np.testing.assert_array_equal(batch[name], value[4:12])
  batches.close()


def test_no_thread_without_prefetch_and_none_left_after_closing(mazes):
  before = set(threading.enumerate())
  list(itertools.islice(load(mazes, prefetch=0), 3))
  assert set(threading.enumerate()) <= before
  batches = load(mazes, prefetch=2)
  next(batches)
  started = set(threading.enumerate()) - before
  assert started
  batches.close()
  for thread in started:
    thread.join(timeout=20)
  assert not any(thread.is_alive() for thread in started)


def test_an_error_in_a_batch_reaches_the_reader(mazes):
  with pytest.raises(ValueError, match="step=-3"):
    next(load(mazes, start=-3, prefetch=2))
  with pytest.raises(ConfigError, match="data.prefetch=-1"):
    load(mazes, prefetch=-1)
