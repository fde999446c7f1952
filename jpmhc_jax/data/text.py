"""The text of files, by default the bytes of the standard library that runs: a corpus that every machine has.

Which files: those under the folder that fit one of `data.text.files`, in order of their POSIX paths. Of *.py, the
default, without what distributions leave out or generate (tests, site-packages, tkinter, idlelib, turtledemo,
ensurepip, lib2to3, config-* and _sysconfigdata*) and without tables that are hardly code (encodings, pydoc_data). A
*.jsonl file is a document a line, any other than *.py is cut into pieces at its lines. A document is held out when the
first 8 bytes of sha256(path) are 0 modulo `data.text.held_out`, so that it stays on its side whatever else the folder
holds. The default corpus differs between Python versions: `content`, the sha256 over the list of paths and all tokens,
is in `describe()` and can be demanded by `data.text.sha256`.

Tokens are the bytes, or 1 + those of `data.text.tokenizer`; token 0 stands in front of each document and pads its last
window. A document is cut into windows of `data.text.window` tokens, each predicted from the tokens before it in the
same window (the first of them from the token in front of the window). Held-out windows are stored in a fixed random
order, so that the first `evaluation.max_examples` of them are a fair sample.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import pathlib
import sysconfig

from jaxtyping import Float, Int, Integer
import numpy as np

from jpmhc_jax.config.schema import Data, TextData
from jpmhc_jax.core.errors import ConfigError, DataError, require
from jpmhc_jax.core.examples import IGNORED, PAD
from jpmhc_jax.core.reading import memory_limit, read_bytes, shown, size
from jpmhc_jax.data.batches import BatchPlan, Split
from jpmhc_jax.data.dataset import Batch, digest, ElementSpec
from jpmhc_jax.data.registry import register_dataset
from jpmhc_jax.data.tokenizers import Bytes, Tokenizer, tokenizer_of
from jpmhc_jax.data.tokens import TokenDataset

PIECE = 1 << 14  # characters
_PYTHON = ("**/*.py",)
_LEFT_OUT = {
  "__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test",
  "tests", "tkinter", "turtledemo",
}  # fmt: skip
Tokens = Integer[np.ndarray, "tokens"]


@dataclasses.dataclass(frozen=True)
class Document:
  """A text as tokens, and the bytes that it has as UTF-8."""

  tokens: Tokens
  bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDataset(TokenDataset):
  """Windows of documents. `tokenizer` reads prompts and writes answers.

  Where a token is no byte, batches also have `label_bytes` (b,) float32: the bytes that the row's labels stand for, at
  the mean of their document, so that bits a byte compare between tokenizers.
  """

  tokenizer: Tokenizer

  @functools.cached_property
  def element_spec(self) -> Mapping[str, ElementSpec]:
    """Those of tokens, and of `label_bytes` where a token is no byte."""
    own = {} if isinstance(self.tokenizer, Bytes) else {"label_bytes": ElementSpec((), np.dtype(np.float32))}
    return {**super().element_spec, **own}

  def read(self, split: Split, examples: Int[np.ndarray, "b"]) -> Batch:
    """The arrays of these examples; see `element_spec`."""
    batch = super().read(split, examples)
    if isinstance(self.tokenizer, Bytes):
      return batch
    counted = (batch["labels"] != IGNORED).sum(axis=-1)
    return {**batch, "label_bytes": (counted * split.encode.byte_rates(examples)).astype(np.float32)}  # type: ignore[attr-defined]

  def encoded(self, text: str) -> Tokens:
    """The tokens of a text as the model sees them, behind the one in front of a document."""
    shift = 0 if isinstance(self.tokenizer, Bytes) else 1
    return np.concatenate([[PAD], np.array([*self.tokenizer.encode(text)], np.int32) + shift]).astype(np.int32)

  def decoded(self, tokens: Tokens) -> str:
    """The text of tokens of the model; PAD is left out."""
    shift = 0 if isinstance(self.tokenizer, Bytes) else 1
    return self.tokenizer.decode((tokens[tokens != PAD] - shift).tolist())


@register_dataset("text")
def build_text(config: Data, *, batch_size: int, seed: int) -> TextDataset:
  """Reads the files (of the default corpus 10 MB, under a second) and wraps their windows in batches.

  Raises ConfigError for a folder without such files and for a tokenizer that cannot be had, DataError for a file that
  holds no text and for a corpus that is not the demanded one.
  """
  options = config.text
  folder = pathlib.Path(options.folder or sysconfig.get_path("stdlib")).expanduser()
  tokenizer = tokenizer_of(options.tokenizer)
  require(folder.is_dir(), "data.text.folder", str(folder), "a folder that is there")
  texts = _read_all(folder, options, tokenizer)
  held = [text for path, text in texts.items() if is_held_out(path, options.held_out)]
  training = [text for path, text in texts.items() if not is_held_out(path, options.held_out)]
  if not held or not training:
    raise ConfigError(
      f"data.text.folder={str(folder)!r}: {len(training)} files to train on and {len(held)} held out; expected both: "
      f"a folder with files such as {', '.join(options.files)}, or a smaller data.text.held_out={options.held_out}"
    )
  own = [] if isinstance(tokenizer, Bytes) else [tokenizer.name]
  tokens = (text.tokens for text in texts.values())
  content = digest("text", "\n".join(texts), *tokens, str(options.window), str(options.held_out), *own)
  if options.sha256 and options.sha256 != content:
    raise DataError(
      f"data.text.sha256={options.sha256}: the sources under {folder} have {content}; run the Python version that the "
      "run was made with, or set data.text.sha256='' to take what is there"
    )
  train, evaluation = _split(training, options.window), _split(held, options.window, shuffle=True)
  return TextDataset(
    kind="text",
    side=0,
    length=options.window,
    vocab_size=tokenizer.vocab_size + (0 if isinstance(tokenizer, Bytes) else 1),
    train=train,
    evaluation=evaluation,
    plan=BatchPlan(train, batch_size=batch_size, seed=seed, epochs=config.epochs_per_interval),
    content=content,
    tokenizer=tokenizer,
    notes={
      "train_files": len(training),
      "train_bytes": sum(text.bytes for text in training),
      "evaluation_files": len(held),
      "evaluation_bytes": sum(text.bytes for text in held),
    },
  )


def source_files(folder: pathlib.Path, patterns: Sequence[str] = _PYTHON) -> list[str]:
  """POSIX paths below the folder of the files that the corpus is made of, in order.

  A link to nothing is left out; one to a device or a pipe is among them, and refused where it is read.
  """
  matches = {path for pattern in patterns for path in folder.glob(pattern) if path.exists() and not path.is_dir()}
  paths = (path.relative_to(folder) for path in matches)
  return sorted(path.as_posix() for path in paths if tuple(patterns) != _PYTHON or not _left_out(path))


def _left_out(path: pathlib.PurePath) -> bool:
  generated = path.name.startswith("_sysconfigdata") or any(part.startswith("config-") for part in path.parts)
  return generated or not _LEFT_OUT.isdisjoint(path.parts)


def is_held_out(path: str, one_in: int) -> bool:
  """Whether the file of this relative POSIX path is held out."""
  return int.from_bytes(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()[:8], "big") % one_in == 0


def _read_all(folder: pathlib.Path, options: TextData, tokenizer: Tokenizer) -> dict[str, Document]:
  texts: dict[str, Document] = {}
  total, limit = 0, memory_limit()
  for path in source_files(folder, options.files):
    for name, text in _documents(folder / path, path, options.jsonl_field):
      texts[name] = _tokens(folder / path, text, tokenizer)
      total += texts[name].tokens.nbytes
      if total > limit:
        raise DataError(
          f"data.text.folder={str(folder)!r}: the files up to {shown(path)} have {size(total)}; expected at most "
          f"{size(limit)}, a quarter of this machine's memory"
        )
  return texts


def _documents(path: pathlib.Path, name: str, field: str) -> Iterator[tuple[str, bytes]]:
  """(name, text) of the documents of a file: the file, its pieces, or its lines."""
  try:
    content = read_bytes(path)
  except OSError as error:
    raise DataError(f"{shown(path)}: cannot be read ({error.strerror or error}); repair or remove the file") from error
  if path.suffix == ".py":
    yield name, content
  elif path.suffix == ".jsonl":
    for number, line in enumerate(content.splitlines(), start=1):
      if line.strip():
        yield f"{name}:{number}", _text_of(path, number, line, field).encode()
  else:
    yield from ((f"{name}:{number}", piece) for number, piece in enumerate(_pieces(content), start=1))


def _text_of(path: pathlib.Path, number: int, line: bytes, field: str) -> str:
  try:
    text = json.loads(line)[field]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    reason = f"no field {field!r}" if isinstance(error, KeyError) else "not a JSON object"
    raise DataError(
      f"{shown(path)}, line {number}: {reason}; expected an object with the text in data.text.jsonl_field={field!r}"
    ) from error
  if not isinstance(text, str):
    raise DataError(f"{shown(path)}, line {number}: {field!r} holds a {type(text).__name__}; expected a text")
  return text


def _pieces(content: bytes) -> Iterator[bytes]:
  """The content in pieces of at most PIECE bytes that end with a line, or where a line is longer, inside it."""
  start = 0
  while start < len(content):
    end = start + PIECE
    if end < len(content):
      end = content.rfind(b"\n", start, end) + 1 or end
    yield content[start:end]
    start = end


def _tokens(path: pathlib.Path, text: bytes, tokenizer: Tokenizer) -> Document:
  if isinstance(tokenizer, Bytes):
    tokens = np.frombuffer(text, np.uint8)
    if PAD in tokens:
      raise DataError(
        f"{shown(path)}: byte 0 at offset {int(np.argmax(tokens == PAD))}; texts hold none. Remove the file"
      )
    return Document(tokens, tokens.size)
  tokens = np.array([*tokenizer.encode(text.decode("utf-8", "replace"))], np.int64)
  if tokens.size and not 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size:
    raise DataError(f"{shown(path)}: token {int(tokens.max())}: expected 0 to below vocab_size={tokenizer.vocab_size}")
  return Document((tokens + 1).astype(np.int32), len(text))


@dataclasses.dataclass(frozen=True)
class Windows:
  """Example e is the window behind corpus offset starts[e]: inputs corpus[s : s + w], labels one token later.

  Labels beyond the end of the window's document (`ends[e]`) are 0, which is ignored; so are the inputs there. rates:
  bytes a token of its document.
  """

  corpus: Tokens
  starts: Int[np.ndarray, "examples"]
  ends: Int[np.ndarray, "examples"]
  rates: Float[np.ndarray, "examples"]
  window: int

  def __call__(self, examples: Int[np.ndarray, "b"]) -> tuple[Integer[np.ndarray, "b s"], Integer[np.ndarray, "b s"]]:
    """Inputs and labels of the examples, one row each."""
    offsets = self.starts[examples][:, None] + np.arange(self.window + 1)
    tokens = np.where(offsets < self.ends[examples][:, None], self.corpus[np.minimum(offsets, self.corpus.size - 1)], 0)
    tokens = tokens.astype(self.corpus.dtype)
    return tokens[:, :-1], tokens[:, 1:]

  def byte_rates(self, examples: Int[np.ndarray, "b"]) -> Float[np.ndarray, "b"]:
    """Bytes a token of the examples' documents."""
    return self.rates[examples]


def _split(texts: Sequence[Document], window: int, shuffle: bool = False) -> Split:
  """Every window is a group of its own. Token 0 stands in front of each document, so each of its tokens is a label."""
  texts = [text for text in texts if text.tokens.size]
  file_starts = np.cumsum([0] + [text.tokens.size + 1 for text in texts])
  windows = [np.arange(start, end - 1, window) for start, end in zip(file_starts, file_starts[1:], strict=False)]
  lengths = [len(of_file) for of_file in windows]
  starts, ends = np.concatenate(windows), np.repeat(file_starts[1:], lengths)
  rates = np.repeat([text.bytes / text.tokens.size for text in texts], lengths)
  corpus = np.concatenate([part for text in texts for part in (np.zeros(1, text.tokens.dtype), text.tokens)])
  order = np.random.default_rng(0).permutation(starts.size) if shuffle else np.arange(starts.size)
  return Split.of_singles(starts.size, Windows(corpus, starts[order], ends[order], rates[order], window))
