"""Progress on the terminal: a live bar, or a line now and then where there is no terminal."""

from collections.abc import Mapping
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  ProgressColumn,
  Task,
  TaskProgressColumn,
  TextColumn,
  TimeRemainingColumn,
)
from rich.text import Text

from jpmhc_jax.training.hosts import distributed

LINE_EVERY_S = 10.0
LEAST_SHARE = 0.05  # what the time left is inferred from: a first compilation says nothing of the rest


class _Scalars(ProgressColumn):
  def render(self, task: Task) -> Text:
    return Text(task.fields["scalars"], style="cyan", no_wrap=True)


def summary(scalars: Mapping[str, float]) -> str:
  """'loss 1.234  acc 56.7 %  exact 12.3 %  18 ms/step'."""
  parts = []
  if "train/loss" in scalars:
    parts.append(f"loss {scalars['train/loss']:.4g}")
  for name, label in (("train/accuracy", "acc"), ("train/exact_accuracy", "exact")):
    if name in scalars:
      parts.append(f"{label} {100 * scalars[name]:.1f} %")
  if "time/step_ms" in scalars:
    parts.append(f"{scalars['time/step_ms']:.0f} ms/step")
  if "time/mfu" in scalars:
    parts.append(f"MFU {100 * scalars['time/mfu']:.1f} %")
  return "  ".join(parts)


class Live:
  """A context in which a bar is on the screen, where there is a terminal."""

  _bar: Progress | None = None

  def __enter__(self) -> Any:
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
    if self._bar:
      self._bar.stop()


class ProgressBar(Live):
  """Live bar with loss, accuracies, step time and ETA; without a terminal, a line at most every ten seconds."""

  def __init__(self, steps: int, start: int, console: Console | None = None):
    self._console = console or Console(quiet=not distributed.is_primary())
    self._steps, self._last_line = steps, 0.0
    self._alarms: list[str] = []
    if self._console.is_terminal:
      columns = (BarColumn(bar_width=20), MofNCompleteColumn(), _Scalars(), TimeRemainingColumn())
      self._bar = Progress(*columns, console=self._console, refresh_per_second=4)
      self._task = self._bar.add_task("training", total=steps, completed=start, scalars="compiling…")

  def advance(self, step: int) -> None:
    """A step was finished."""
    if self._bar:
      self._bar.update(self._task, completed=step)

  def show(self, step: int, scalars: Mapping[str, float]) -> None:
    """New scalars to look at."""
    if self._bar:
      self._bar.update(self._task, completed=step, scalars=summary(scalars))
      return
    now = time.monotonic()
    if step >= self._steps or now - self._last_line > LINE_EVERY_S:
      self._last_line = now
      rest = f"  {scalars['time/eta_s']:.0f} s left" if "time/eta_s" in scalars else ""
      self.say(f"step {step}/{self._steps}  {summary(scalars)}{rest}")

  def warn(self, step: int, alarms: list[str]) -> None:
    """A line that stays for every alarm that was not on at the last call."""
    for alarm in alarms:
      if alarm not in self._alarms:
        self.say(f"step {step}: warning: {alarm}")
    self._alarms = alarms

  def say(self, text: str) -> None:
    """A line that stays."""
    self._console.print(Text(text), soft_wrap=True)  # not markup: it may name a folder such as x[/b]


class Waiting(Live):
  """While entered, `tick` shows how far the work is and how long the rest will take."""

  def __init__(self, console: Console | None = None):
    self._console = console or Console(stderr=True)
    self._start = self._last = time.monotonic()
    if self._console.is_terminal:
      columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn(), TimeRemainingColumn())
      # Lines of a standard output that goes elsewhere must not come out here.
      self._bar = Progress(
        *columns, console=self._console, transient=True, redirect_stdout=sys.stdout.isatty(), refresh_per_second=4
      )
      self._task = self._bar.add_task("", total=1.0)

  def tick(self, what: str, share: float) -> None:
    """`share` of the whole work is done, and `what` is being worked on."""
    now = time.monotonic()
    if self._bar:
      self._bar.update(self._task, description=what, completed=share)
    elif share and now - self._last > LINE_EVERY_S:
      self._last = now
      rest = (now - self._start) * (1 - share) / share
      estimate = f", about {rest:.0f} s left" if share >= LEAST_SHARE else ""
      self._console.print(f"{what}: {share:.0%} of all{estimate}", highlight=False, markup=False)
