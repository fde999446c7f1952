"""What a run says: lines at round steps, how long a piece of work takes, and a forecast that does not jump."""

import io
import sys
import time
import types

import pytest
from rich.console import Console

from jpmhc_jax.core.terminal import duration
from jpmhc_jax.training import progress
from jpmhc_jax.training.progress import ProgressBar, round_interval
from jpmhc_jax.training.telemetry import Forecast


def _file():
  return Console(file=io.StringIO(), width=80)


@pytest.mark.parametrize(
  ("every", "seconds", "interval"), [(10, 0.11, 100), (10, 0.02, 500), (50, 0.5, 50), (7, 0.5, 35), (1, 60.0, 1)]
)
def test_lines_are_ten_seconds_apart_at_round_steps(every, seconds, interval):
  assert round_interval(every, seconds) == interval


def test_a_file_gets_lines_at_round_steps_and_the_last(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
  console = _file()
  bar = ProgressBar(1234, 0, console, every=10)
  for step in [*range(10, 1234, 10), 1234]:
    clock[0] = 0.03 * step
    bar.show(step, {"train/loss": 1.0, "time/step_ms": 30.0, "time/eta_s": 0.03 * (1234 - step)})
  assert console.file.getvalue().splitlines() == [
    "step 500/1234  loss 1  30 ms/step  22 s left",
    "step 1000/1234  loss 1  30 ms/step  7 s left",
    "step 1234/1234  loss 1  30 ms/step",
  ]


def test_the_interval_follows_a_pace_that_was_first_misjudged(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
  console = _file()
  bar = ProgressBar(1000, 0, console)
  for step in range(1, 61):
    clock[0] += 1.0
    bar.show(step, {"time/step_ms": 10_000.0 if step < 5 else 1000.0})
  steps = [int(line.split("/")[0].removeprefix("step ")) for line in console.file.getvalue().splitlines()]
  assert steps == [1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 60]


def test_metrics_of_a_task_of_ones_own_are_shown():
  scalars = {"train/loss": 2.0, "train/squared_error": 0.5, "train/learning_rate": 0.1, "time/step_ms": 0.5}
  assert progress.summary(scalars) == "loss 2  squared_error 0.5  0.5 ms/step"
  assert progress.summary({"train/loss": 2.0, "train/accuracy": 0.25, "train/q": 1.0}) == "loss 2  acc 25.0 %"


@pytest.mark.parametrize("shown", ["working", "during"])
def test_a_file_hears_how_long_a_piece_of_work_takes(shown, monkeypatch):
  monkeypatch.setattr(progress, "LINE_EVERY_S", 0.02)
  console = _file()
  bar = ProgressBar(10, 0, console)
  with progress.working(console, "compiling") if shown == "working" else bar.during("compiling"):
    while console.file.getvalue().count("\n") < 2:  # the thread's lines; the test ends by them
      time.sleep(0.005)
  said = console.file.getvalue()
  time.sleep(0.05)
  assert console.file.getvalue() == said and "\r" not in said
  assert all(line.startswith("compiling … ") for line in said.splitlines())


def test_a_terminal_shows_the_activity_and_the_time_left():
  console = Console(file=io.StringIO(), width=120, force_terminal=True)
  with ProgressBar(10, 0, console) as bar:
    bar.begin("compiling")
    bar._bar.refresh()
    bar.end()
    bar.show(4, {"train/loss": 1.0, "time/eta_s": 75.4})
    bar._bar.refresh()
  said = console.file.getvalue()
  assert "compiling … 0 s" in said and " 4/10" in said and "1 min 15 s left" in said


def test_a_notebook_has_a_bar_in_its_output(monkeypatch):
  shown = []
  handle = types.SimpleNamespace(update=shown.append)
  display = types.SimpleNamespace(HTML=str, display=lambda page, display_id: handle)
  kernel = type("ZMQInteractiveShell", (), {})
  monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=kernel))
  monkeypatch.setitem(sys.modules, "IPython.display", display)
  console = _file()
  with ProgressBar(10, 0, console) as bar:
    bar.show(10, {"train/loss": 1.0})
    bar.say("done")
  assert shown == ["<progress value='10' max='10'></progress> 10/10 loss 1"]
  assert console.file.getvalue() == "done\n"


def test_a_forecast_counts_evaluations_and_is_not_moved_by_one_slow_window():
  forecast = Forecast(steps=1000, evaluate_every=300)
  assert forecast.after(100, 0.1) == pytest.approx(90.0)
  forecast.evaluated(30.0)  # it compiled
  forecast.evaluated(5.0)
  assert forecast.after(400, 0.1) == pytest.approx(60.0 + 3 * 5.0)  # at 600, 900 and 1000
  for step in range(410, 500, 10):
    forecast.after(step, 0.1)
  assert forecast.after(500, 0.4) == pytest.approx(500 * 0.13 + 15.0)
  assert Forecast(1000, 0).after(1000, 1.0) == 0.0


@pytest.mark.parametrize(
  ("seconds", "words"), [(75.0, "1 min 15 s"), (8000.4, "2 h 13 min"), (0.01234, "0.0123 s"), (0.0, "0 s")]
)
def test_durations_are_in_the_units_that_people_say(seconds, words):
  assert duration(seconds) == words
