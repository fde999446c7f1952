"""Standard output and error that outlive their reader and a full disk, and take any text in any encoding."""

import codecs
import errno
import os
import sys
from typing import Any
import unicodedata

from jpmhc_jax.core.files import is_full

_GONE = {errno.EPIPE, errno.EIO}  # the reader of the pipe, the terminal
LONGEST = 5000  # characters of a message
EXIT_CTRL_C = 130  # as shells say it

# Signs that this package prints and terminals may lack; accents, superscripts and Greek letters follow from Unicode.
_SIGNS = str.maketrans(
  {
    "–": "-", "—": "-", "−": "-", "×": "x", "·": "*", "⊗": "(x)", "⊕": "(+)", "‖": "||", "“": '"', "”": '"', "‘": "'",
    "’": "'", "→": "->", "←": "<-", "⇒": "=>", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "±": "+-", "∞": "inf",
    "√": "sqrt ", "∈": "in", "⁻": "^-", "│": "|", "━": "-", "─": "-",
  }
)  # fmt: skip


def cut(message: str, longest: int = LONGEST) -> str:
  """The message, or its beginning and end with the number of characters left out between them."""
  if len(message) <= longest:
    return message
  end = longest // 5
  return f"{message[: longest - end]} … ({len(message) - longest} characters cut) … {message[-end:]}"


def duration(seconds: float | int) -> str:
  """75 -> '1 min 15 s'; 8000 -> '2 h 13 min'; 0.0123 -> '0.0123 s'."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes_left = divmod(minutes, 60)
  if hours:
    return f"{hours:,} h {minutes_left} min"
  return f"{minutes} min {rest} s" if minutes else f"{float(f'{seconds:.3g}'):g} s"


def fail(verb: str, message: object, code: int) -> int:
  """Prints why a command ends, as its last line on standard error; returns the exit code."""
  print(f"jpmhc {verb}: {cut(str(message))}", file=sys.stderr, flush=True)
  return code


def writable(text: str, encoding: str | None) -> str:
  """The text as a stream of this encoding takes it.

  A character that the encoding lacks becomes its nearest in ASCII or its number, and a byte of a file name that is no
  text becomes its number.
  """
  if text.isascii():
    return text
  return text.encode(encoding or "utf-8", _NEAREST).decode(encoding or "utf-8")


def shown(text: str) -> str:
  """The text as standard output takes it, for whoever counts its characters to lay out a table."""
  return writable(text, getattr(sys.stdout, "encoding", None))


def _nearest(error: UnicodeError) -> tuple[str, int]:
  if not isinstance(error, UnicodeEncodeError):
    raise error
  return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(character: str) -> str:
  if 0xDC80 <= ord(character) <= 0xDCFF:  # how Python keeps a byte of a file name that is no text
    return f"\\x{ord(character) - 0xDC00:02x}"
  plain = unicodedata.normalize("NFKD", character.translate(_SIGNS))
  plain = "".join(c for c in plain if not unicodedata.combining(c))
  name = unicodedata.name(plain, "") if len(plain) == 1 else ""
  if name.startswith("GREEK"):
    plain = name.rsplit(" ", 1)[-1].lower()
  return plain if plain.isascii() else character.encode("ascii", "backslashreplace").decode()


_NEAREST = "jpmhc-nearest"
codecs.register_error(_NEAREST, _nearest)


class Forgiving:
  """A text stream that drops what cannot be written for want of room or of a reader. All else is the file's.

  What its encoding has no character for is written in ASCII.

  `lost` says that there was no room for something; it is nobody's loss that a reader went.
  """

  def __init__(self, file: Any):
    self._file, self.lost = file, False

  def write(self, text: str) -> int:
    """Writes the text or drops it."""
    try:
      return self._file.write(writable(text, getattr(self._file, "encoding", None)))
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
