"""Where the wall time of a run goes, over all its starts: one stopwatch that is always in exactly one activity.

| activity | the host is |
|---|---|
| start | between the beginning of `train` and its first step: data, layout, restoring |
| compile | tracing, compiling and running the first step of this start |
| data | waiting for a batch while the devices have nothing to do |
| step | dispatching a step or waiting for its result |
| evaluate, save, diagnose | doing that; the devices do no training step |
| lost | nothing: time of steps that were repeated, because the run died after them and before their checkpoint |

The parts sum to the whole by construction. Time between the last line written before a kill and the kill is in no part.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import pathlib
import time
from typing import TypeVar

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.files import storing, to_json, write_atomically
from jpmhc_jax.core.reading import read_json
from jpmhc_jax.training.hosts import distributed

ACTIVITIES = ("start", "compile", "data", "step", "evaluate", "save", "diagnose", "lost")

_Item = TypeVar("_Item")


class Goodput:
  """Seconds by activity of one workdir, kept in a small file that outlives every start.

  Example:
    goodput = Goodput(workdir / "goodput.json", step=0)
    with goodput("evaluate"):
      ...
    goodput.scalars()["goodput/step"]          # share of the wall time that went into steps
  """

  def __init__(self, path: pathlib.Path, step: int, now: Callable[[], float] = time.monotonic):
    self._path, self._now = path, now
    self.seconds = _restored(path, step)
    self._activity, self._since = "start", now()

  def switch(self, activity: str) -> str:
    """Ends the running activity and starts another; returns the one that ended."""
    moment = self._now()
    self.seconds[self._activity] += moment - self._since
    ended, self._activity, self._since = self._activity, activity, moment
    return ended

  @contextlib.contextmanager
  def __call__(self, activity: str) -> Iterator[None]:
    """Within the block this activity, after it the earlier one again."""
    outer = self.switch(activity)
    try:
      yield
    finally:
      self.switch(outer)

  def waiting(self, items: Iterable[_Item], busy: Callable[[], bool]) -> Iterator[_Item]:
    """The items; waiting for one is `data`, unless the devices are still `busy` when it comes: then it cost nothing."""
    iterator = iter(items)
    while True:
      outer, began = self.switch("data"), self._since
      item = next(iterator, _END)
      if busy():
        self.seconds[outer] += self._since - began
        self._activity = outer
      self.switch(outer)
      if item is _END:
        return
      yield item  # type: ignore[misc]

  def scalars(self) -> dict[str, float]:
    """`goodput/<activity>`: shares of the total; the sum of all is 1."""
    self.switch(self._activity)
    total = max(sum(self.seconds.values()), 1e-9)
    return {f"goodput/{name}": seconds / total for name, seconds in self.seconds.items()}

  def save(self, step: int, durable: bool = False) -> None:
    """Writes the account after `step` finished steps; durable: also waits for the disk."""
    self.switch(self._activity)
    if distributed.is_primary():
      with storing(str(self._path)):
        write_atomically(self._path, to_json({"step": step, "seconds": self.seconds}) + "\n", durable=durable)


_END = object()


def _restored(path: pathlib.Path, step: int) -> dict[str, float]:
  """The account of earlier starts. Steps after `step` will be made again: their share of the step time is lost."""
  seconds = dict.fromkeys(ACTIVITIES, 0.0)
  try:
    earlier: Mapping = read_json(path)
    seconds |= {name: float(earlier["seconds"][name]) for name in ACTIVITIES}
    repeated = seconds["step"] * (max(earlier["step"] - step, 0) / max(earlier["step"], 1))
  except (FileNotFoundError, DataError, ValueError, KeyError, TypeError):  # none yet, or damaged: it starts anew
    return dict.fromkeys(ACTIVITIES, 0.0)
  return seconds | {"step": seconds["step"] - repeated, "lost": seconds["lost"] + repeated}
