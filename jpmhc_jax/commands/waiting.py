"""What a command shows of work that takes minutes: a bar on a terminal, else a line on stderr now and then."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from jpmhc_jax.training.progress import LINE_EVERY_S, Live

LEAST_SHARE = 0.05  # what the time left is inferred from: a first compilation says nothing of the rest


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
      left = f", about {rest:.0f} s left" if share >= LEAST_SHARE else ""
      self._console.print(f"{what}: {share:.0%} of all{left}", highlight=False, markup=False)
