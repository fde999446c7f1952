"""The account of time: it sums to the whole, outlives restarts, and knows which steps were lost."""

import json

import pytest

from jpmhc_jax.training.telemetry import ACTIVITIES, Goodput


class _Clock:
  """A clock that moves when told to."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now

  def wait(self, seconds):
    self.now += seconds


def _steps(goodput, clock, count, busy):
  def batches():
    for k in range(count):
      clock.wait(2.0)
      yield k

  for _ in goodput.waiting(batches(), lambda: busy):
    clock.wait(3.0)


def test_every_second_is_in_exactly_one_activity(tmp_path):
  clock = _Clock()
  goodput = Goodput(tmp_path / "goodput.json", 0, clock)
  clock.wait(4.0)
  goodput.switch("step")
  _steps(goodput, clock, 5, busy=False)
  with goodput("evaluate"):
    clock.wait(7.0)
    with goodput("save"):
      clock.wait(1.0)
    clock.wait(1.0)
  goodput.switch("step")
  expected = dict.fromkeys(ACTIVITIES, 0.0) | {"start": 4.0, "data": 10.0, "step": 15.0, "evaluate": 8.0, "save": 1.0}
  assert goodput.seconds == expected
  assert sum(goodput.scalars().values()) == pytest.approx(1.0)
  assert goodput.scalars()["goodput/step"] == pytest.approx(15 / 38)


def test_waiting_for_data_while_the_devices_work_costs_nothing(tmp_path):
  clock = _Clock()
  goodput = Goodput(tmp_path / "goodput.json", 0, clock)
  goodput.switch("step")
  _steps(goodput, clock, 5, busy=True)
  goodput.switch("step")
  assert goodput.seconds["data"] == 0.0 and goodput.seconds["step"] == 25.0


def test_steps_after_the_restored_one_are_lost(tmp_path):
  clock, path = _Clock(), tmp_path / "goodput.json"
  first = Goodput(path, 0, clock)
  first.switch("compile")
  clock.wait(10.0)
  first.switch("step")
  clock.wait(40.0)
  first.save(20)
  again = Goodput(path, 15, clock)
  assert again.seconds["step"] == 30.0 and again.seconds["lost"] == 10.0 and again.seconds["compile"] == 10.0
  untouched = Goodput(path, 20, clock)
  assert untouched.seconds["lost"] == 0.0


@pytest.mark.parametrize(
  "text",
  ["", "{", "[1]", "null", "[" * 10_000, json.dumps({"step": 3}), json.dumps({"step": 3, "seconds": {"step": 1}})],
)
def test_a_damaged_account_starts_anew(tmp_path, text):
  path = tmp_path / "goodput.json"
  path.write_text(text)
  assert sum(Goodput(path, 0).seconds.values()) == 0.0
