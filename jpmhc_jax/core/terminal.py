"""Standard output and error that outlive their reader and a full disk: no run ends because nobody keeps its log."""

import errno
import os
import sys
from typing import Any

from jpmhc_jax.core.files import is_full

_GONE = {errno.EPIPE, errno.EIO}  # the reader of the pipe, the terminal


class Forgiving:
  """A text stream that drops what cannot be written for want of room or of a reader. All else is the file's.

  `lost` says that there was no room for something; it is nobody's loss that a reader went.
  """

  def __init__(self, file: Any):
    self._file, self.lost = file, False

  def write(self, text: str) -> int:
    """Writes the text or drops it."""
    try:
      return self._file.write(text)
    except OSError as error:
      self._forgive(error)
      return len(text)

  def flush(self) -> None:
    """Flushes the file as far as it takes it."""
    try:
      self._file.flush()
    except OSError as error:
      self._forgive(error)

  def _forgive(self, error: OSError) -> None:
    if not is_full(error) and error.errno not in _GONE:
      raise error
    self.lost |= is_full(error)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._file, name)


def open_closed_streams() -> None:
  """Gives /dev/null to standard input, output and error that were closed when the process was started (`>&-`).

  Their numbers would go to the first files that the run opens, and what libraries print into a checkpoint; and Python
  has no stream to print to. Children and a restart of the process inherit them.
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    try:
      os.fstat(number)
    except OSError:
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, "w" if number else "r", closefd=False))


def leave_at_once(code: int) -> None:
  """Ends the process after what was printed: no thread goes on, and nothing is done at exit."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
