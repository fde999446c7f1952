"""A window of steps under the profiler: `jpmhc train --profile=START:STOP` writes workdir/profile for xprof."""

import contextlib
import pathlib

import jax

from jpmhc_jax.core.errors import ConfigError


def parse_window(text: str, steps: int) -> range:
  """'100:105' is the steps 100 to 104, from 0. Raises ConfigError for anything else, or behind the last step."""
  first, colon, last = text.partition(":")
  if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
    raise ConfigError(f"--profile={text}: expected START:STOP with START < STOP, such as --profile=100:105")
  if int(first) >= steps:
    raise ConfigError(f"--profile={text}: expected START below steps={steps}")
  return range(int(first), int(last))


class Profiler:
  """Traces the steps of a window that this start makes. View: `tensorboard --logdir=workdir/profile` with xprof.

  A short window is best, away from the first step, which compiles: a trace of a hundred steps can fill a disk.
  """

  def __init__(self, folder: pathlib.Path, window: range):
    self._folder, self._window, self._on = folder, window, False

  def step(self, step: int) -> contextlib.AbstractContextManager[object]:
    """What the dispatch of `step` runs in: starts the trace at the first step inside the window."""
    if step not in self._window:
      return contextlib.nullcontext()
    if not self._on:
      jax.profiler.start_trace(self._folder)
      self._on = True
    return jax.profiler.StepTraceAnnotation("train", step_num=step)

  def finish(self, step: int, result: object) -> None:
    """After the dispatch of `step`: at the window's last, waits for its result and writes the trace."""
    if self._on and step + 1 >= self._window.stop:
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    """Writes a trace that is still on, as when the run ends inside the window."""
    if self._on:
      jax.profiler.stop_trace()
      self._on = False
