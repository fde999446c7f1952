"""From text to tokens: bytes, a tokenizer.json of the package `tokenizers`, or an object of one's own."""

from collections.abc import Sequence
import importlib
import pathlib
from typing import Any, Protocol, runtime_checkable

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.files import first_line

BYTES = 256


@runtime_checkable
class Tokenizer(Protocol):
  """Text as whole numbers from 0 to below vocab_size, and back. name: tells tokenizers apart in a run's fingerprint."""

  name: str
  vocab_size: int

  def encode(self, text: str) -> Sequence[int]:
    """The tokens of a text."""
    ...

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of tokens."""
    ...


class Bytes:
  """UTF-8: a token is a byte. Byte 0 stands in front of a text and for nothing behind it, so that no text holds it."""

  name, vocab_size = "bytes", BYTES

  def encode(self, text: str) -> Sequence[int]:
    """The bytes of a text, surrogates for bytes that are no UTF-8 as they were."""
    return text.encode("utf-8", "surrogateescape")

  def decode(self, tokens: Sequence[int]) -> str:
    """Text; halves of characters become U+FFFD."""
    return bytes(tokens).decode("utf-8", "replace")


class _Json:
  """A tokenizer that the package `tokenizers` has saved."""

  def __init__(self, path: pathlib.Path):
    try:
      from tokenizers import Tokenizer as Saved
    except ImportError as error:
      raise ConfigError(
        f"data.text.tokenizer={str(path)!r}: expected the package that reads it; install it: pip install tokenizers"
      ) from error
    try:
      self._saved: Any = Saved.from_file(str(path))
    except Exception as error:  # tokenizers raises plain exceptions for all that is wrong with a file
      raise ConfigError(f"data.text.tokenizer={str(path)!r}: not a saved tokenizer ({first_line(error)})") from error
    self.name, self.vocab_size = self._saved.to_str(), self._saved.get_vocab_size()

  def encode(self, text: str) -> Sequence[int]:
    """The tokens of a text, without those that a model of its own would put around it."""
    return self._saved.encode(text, add_special_tokens=False).ids

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of tokens."""
    return self._saved.decode(list(tokens))


def tokenizer_of(spec: str) -> Tokenizer:
  """The tokenizer that `data.text.tokenizer` names: 'bytes', 'path/to/tokenizer.json', or 'module:name' of one's own.

  Raises ConfigError for one that cannot be read or imported, or that is none.
  """
  if spec in ("", "bytes"):
    return Bytes()
  if spec.endswith(".json"):
    return _Json(pathlib.Path(spec).expanduser())
  module, _, name = spec.partition(":")
  try:
    made = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise ConfigError(
      f"data.text.tokenizer={spec!r}: expected bytes, a tokenizer.json, or module:name of your own ({error})"
    ) from error
  tokenizer = made() if callable(made) else made
  if not isinstance(tokenizer, Tokenizer):
    raise ConfigError(f"data.text.tokenizer={spec!r}: expected name, vocab_size, encode(text) and decode(tokens)")
  return tokenizer
