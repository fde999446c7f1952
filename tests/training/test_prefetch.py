"""The next batch comes from a thread, begun when the loop says so, in order, and with the errors of its own turn."""

import itertools
import threading

import jax
import numpy as np
import pytest

from jpmhc_jax.data.loading import DevicePrefetcher


def _stream(seen, broken=None):
  for step in itertools.count(3):
    seen.append((step, threading.current_thread().name.split("_")[0]))
    if step == broken:
      raise OSError("gone")
    yield step, {"inputs": np.full(2, step)}


def _placed(batch):
  return jax.device_put({name: value + 100 for name, value in batch.items()})


@pytest.mark.parametrize("begun", [0, 1, 2])
def test_every_batch_comes_once_however_often_it_was_begun(begun):
  seen = []
  ahead = DevicePrefetcher(_stream(seen), _placed, threads=True)
  for expected, (step, batch) in zip(range(3, 9), ahead, strict=False):
    assert step == expected and batch["inputs"].tolist() == [100 + step] * 2
    for _ in range(begun):
      ahead.begin()
  ahead.close()
  assert [step for step, _ in seen][:6] == list(range(3, 9)) and len(seen) <= 7  # the last one may be cancelled
  assert {name for _, name in seen[1:]} == ({"ahead"} if begun else {"MainThread"})
  assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_without_threads_nothing_is_taken_before_its_turn():
  seen = []
  ahead = DevicePrefetcher(_stream(seen), _placed, threads=False)
  assert next(ahead)[0] == 3
  ahead.begin()
  ahead.close()
  assert seen == [(3, "MainThread")]


def test_an_error_waits_for_the_turn_of_its_batch():
  ahead = DevicePrefetcher(_stream([], broken=4), _placed, threads=True)
  assert next(ahead)[0] == 3
  ahead.begin()  # fails in the thread; step 3 can still be finished and saved
  with pytest.raises(OSError, match="gone"):
    next(ahead)
  ahead.close()
