"""What a run says: a live bar on a terminal, lines where the output goes to a file."""

from collections.abc import Iterator, Mapping
import contextlib
import html
import importlib
import sys
import threading
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  ProgressColumn,
  SpinnerColumn,
  Task,
  TaskProgressColumn,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)
from rich.text import Text

from jpmhc_jax.core.terminal import duration
from jpmhc_jax.training.hosts import distributed

LINE_EVERY_S = 10.0
LEAST_SHARE = 0.05  # what the time left is inferred from: a first compilation says nothing of the rest
_PERCENT = {"train/accuracy": "acc", "train/exact_accuracy": "exact"}
_NO_SCORE = ("train/loss", "train/gradient_norm", "train/learning_rate", "train/count", "train/skipped_steps")


class _Scalars(ProgressColumn):
  def render(self, task: Task) -> Text:
    return Text(task.fields["scalars"], style="cyan", no_wrap=True)


class _Rest(ProgressColumn):
  """The activity with the seconds that it takes so far; else the time left, counted down between two estimates."""

  def render(self, task: Task) -> Text:
    activity, since, end = task.fields["activity"], task.fields["since"], task.fields["end"]
    now = time.monotonic()
    if activity:
      return Text(f"{activity} … {duration(int(now - since))}", style="yellow", no_wrap=True)
    return Text(f"{duration(max(int(end - now), 0))} left" if end else "", style="green", no_wrap=True)


def summary(scalars: Mapping[str, float]) -> str:
  """'loss 1.234  acc 56.7 %  exact 12.3 %  18 ms/step'; of a task of one's own its first two metrics."""
  parts = [f"loss {scalars['train/loss']:.4g}"] if "train/loss" in scalars else []
  shares = [f"{label} {100 * scalars[name]:.1f} %" for name, label in _PERCENT.items() if name in scalars]
  others = [name for name in scalars if name.startswith("train/") and name not in _NO_SCORE]
  parts += shares or [f"{name.removeprefix('train/')} {scalars[name]:.4g}" for name in others[:2]]
  if "time/step_ms" in scalars:
    parts.append(f"{scalars['time/step_ms']:.3g} ms/step")
  if "time/mfu" in scalars:
    parts.append(f"MFU {100 * scalars['time/mfu']:.1f} %")
  return "  ".join(parts)


def round_interval(every: int, step_seconds: float) -> int:
  """Steps between two lines: 1, 2 or 5 times a power of ten times `every`, the fewest that take ten seconds."""
  fewest, interval = LINE_EVERY_S / max(step_seconds, 1e-9), max(every, 1)
  factors = iter(factor * 10**power for power in range(12) for factor in (1, 2, 5))
  return next((interval * factor for factor in factors if interval * factor >= fewest), interval)


def output(quiet: bool = False) -> Console:
  """Standard output, on process 0; in a notebook plain lines of it."""
  return Console(quiet=quiet or not distributed.is_primary(), force_jupyter=False)


class _Cell:
  """A line of a notebook's output that changes: a bar, and text beside it."""

  def __init__(self, total: int):
    display = importlib.import_module("IPython.display")
    self._html, self._total, self._shown = display.HTML, total, 0.0
    self._handle = display.display(self._html(""), display_id=True)

  def update(self, completed: int, text: str, last: bool = False) -> None:
    """Shows how far it is, at most four times a second."""
    now = time.monotonic()
    if last or now - self._shown >= 0.25:
      self._shown = now
      bar = f"<progress value='{completed}' max='{self._total}'></progress>"
      self._handle.update(self._html(f"{bar} {completed:,}/{self._total:,} {html.escape(text)}"))


def in_notebook() -> bool:
  """Whether a notebook's kernel runs this process."""
  shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
  return type(shell).__name__ == "ZMQInteractiveShell"


def say(console: Console, text: str) -> None:
  """A line that stays."""
  console.print(Text(text), soft_wrap=True)  # not markup: it may name a folder such as x[/b]


class _Ticker:
  """Says every ten seconds how long a piece of work takes, from a thread: the work holds this one."""

  def __init__(self, console: Console, what: str):
    self._console, self._what, self._began = console, what, time.monotonic()
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._tick, daemon=True)
    self._thread.start()

  def _tick(self) -> None:
    while not self._over.wait(LINE_EVERY_S):
      say(self._console, f"{self._what} … {duration(round(time.monotonic() - self._began))}")

  def stop(self) -> float:
    """Ends it; returns the seconds that the work took."""
    self._over.set()
    self._thread.join()
    return time.monotonic() - self._began


@contextlib.contextmanager
def working(console: Console, what: str) -> Iterator[None]:
  """Inside the block the output says what is being done, and for how long: live, or a line every ten seconds."""
  if console.is_terminal and not console.quiet:
    columns = (SpinnerColumn(), TextColumn("{task.description} …"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as live:
      live.add_task(what)
      yield
    return
  ticker = _Ticker(console, what)
  try:
    yield
  finally:
    ticker.stop()


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
  """Live bar with loss, accuracies, step time and the time left; without a terminal, lines at round steps.

  every: steps between two calls of `show`. The lines come at a round multiple of it, about ten seconds apart.
  """

  def __init__(self, steps: int, start: int, console: Console | None = None, every: int = 1):
    self._console = console or output()
    self._steps, self._every, self._interval, self._last_line = steps, every, 0, time.monotonic()
    self._alarms: list[str] = []
    self._ticker: _Ticker | None = None
    self._cell = _Cell(steps) if in_notebook() and not self._console.quiet else None
    self._text = ""
    if self._console.is_terminal and not self._console.quiet:
      columns = (BarColumn(bar_width=20), MofNCompleteColumn(), _Scalars(), _Rest())
      self._bar = Progress(*columns, console=self._console, refresh_per_second=4)
      self._task = self._bar.add_task(
        "training", total=steps, completed=start, scalars="", activity="", since=0.0, end=0.0
      )

  def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
    self.end()
    super().__exit__(kind, error, trace)

  def begin(self, activity: str) -> None:
    """From here on the work is no step: it is shown with the seconds that it takes."""
    if self._bar:
      self._bar.update(self._task, activity=activity, since=time.monotonic())
    else:
      self._ticker = _Ticker(self._console, activity)

  def end(self) -> None:
    """What `begin` named is done."""
    if self._bar:
      self._bar.update(self._task, activity="")
    if self._ticker:
      self._ticker.stop()
      self._ticker = None

  @contextlib.contextmanager
  def during(self, activity: str) -> Iterator[None]:
    """`begin` and `end` around a block."""
    self.begin(activity)
    try:
      yield
    finally:
      self.end()

  def advance(self, step: int) -> None:
    """A step was finished."""
    if self._bar:
      self._bar.update(self._task, completed=step)
    if self._cell:
      self._cell.update(step, self._text)

  def show(self, step: int, scalars: Mapping[str, float]) -> None:
    """New scalars to look at."""
    rest = scalars.get("time/eta_s")
    if self._bar:
      end = time.monotonic() + rest if rest is not None else 0.0
      self._bar.update(self._task, completed=step, scalars=summary(scalars), end=end)
    elif self._cell:
      self._text = summary(scalars) + (f"  {duration(round(rest))} left" if rest else "")
      self._cell.update(step, self._text, last=step >= self._steps)
    elif self._is_round(step, scalars.get("time/step_ms", 0.0) / 1e3) or step >= self._steps:
      ending = f"  {duration(round(rest))} left" if rest else ""
      self.say(f"step {step}/{self._steps}  {summary(scalars)}{ending}")

  def _is_round(self, step: int, step_seconds: float) -> bool:
    """Whether a line is due. The interval is chosen once, and again where lines come far too often or too seldom."""
    if not self._interval and step_seconds:
      self._interval = round_interval(self._every, step_seconds)
    if not self._interval or step % self._interval:
      return False
    now = time.monotonic()
    if not LINE_EVERY_S / 4 < now - self._last_line < 4 * LINE_EVERY_S and step_seconds:
      self._interval = round_interval(self._every, step_seconds)
    self._last_line = now
    return True

  def warn(self, step: int, alarms: list[str]) -> None:
    """A line that stays for every alarm that was not on at the last call."""
    for alarm in alarms:
      if alarm not in self._alarms:
        self.say(f"step {step}: warning: {alarm}")
    self._alarms = alarms

  def say(self, text: str) -> None:
    """A line that stays."""
    say(self._console, text)


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
      estimate = f", about {duration(rest)} left" if share >= LEAST_SHARE else ""
      self._console.print(f"{what}: {share:.0%} of all{estimate}", highlight=False, markup=False)
