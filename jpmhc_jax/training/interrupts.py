"""SIGTERM and SIGINT as a flag that the loop and the evaluator look at between two pieces of work."""

import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):
  """The process was asked to stop; the state was saved.

  The same call, or the same command, resumes.

  >>> raise jp.Interrupted("SIGTERM at step 3: saved; run the same command to resume")
  Traceback (most recent call last):
  jpmhc_jax.training.interrupts.Interrupted: SIGTERM at step 3: saved; run the same command to resume
  """


class Interrupts:
  """While entered, a first SIGTERM or SIGINT only sets a flag; a second one kills.

  With several processes a notice to any of them stops all at the same point: JAX's own handler of SIGTERM spreads it
  and agrees on a point that none has passed. So all processes must call `requested` equally often.
  """

  def __init__(self) -> None:
    self._received: signal.Signals | None = None
    self._old: dict[signal.Signals, Any] = {}
    self._points = 0

  @property
  def name(self) -> str:
    """What arrived, for the message."""
    return self._received.name if self._received else "SIGTERM to another process"

  def requested(self) -> bool:
    """Whether to save and stop here."""
    if jax.process_count() == 1:
      return self._received is not None
    self._points += 1
    return multihost_utils.reached_preemption_sync_point(self._points)

  def _note(self, number: int, frame: Any) -> None:
    self._received = signal.Signals(number)
    signal.signal(number, self._old[self._received])

  def _forward(self, number: int, frame: Any) -> None:
    self._note(number, frame)
    os.kill(os.getpid(), signal.SIGTERM)

  def __enter__(self) -> "Interrupts":
    global _current
    handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._note}
    if jax.process_count() > 1:
      handlers = {signal.SIGINT: self._forward}
    try:
      self._old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    except ValueError:  # not in the main thread: the embedding program keeps its own handlers
      self._old = {}
    _current = self
    return self

  def __exit__(self, *exception: object) -> None:
    global _current
    _current = None
    for number, handler in self._old.items():
      signal.signal(number, handler)


_current: Interrupts | None = None


def stop_requested() -> bool:
  """`requested` of the Interrupts that are entered, signals being the process's; False when none are."""
  return _current is not None and _current.requested()
