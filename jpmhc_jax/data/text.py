"""The bytes of Python sources, by default of the standard library that runs: a corpus that every machine has.

Which files: every *.py under the folder in order of its POSIX path, without what distributions leave out or generate
(tests, site-packages, tkinter, idlelib, turtledemo, ensurepip, lib2to3, config-* and _sysconfigdata*) and without
tables that are hardly code (encodings, pydoc_data). A file is held
out when the first 8 bytes of sha256(path) are 0 modulo `data.text.held_out`, so that a file stays on its side whatever
else the folder holds. The corpus differs between Python versions: `content`, the sha256 over the list of paths and all
bytes, is in `describe()` and can be demanded by `data.text.sha256`.

Tokens are the bytes; byte 0, which no Python source holds, stands in front of each file and pads its last window. A
file is cut into windows of `data.text.window` bytes, each predicted from the bytes before it in the same window (the
first of them from the byte in front of the window). Held-out windows are stored in a fixed random order, so that the
first `evaluation.max_examples` of them are a fair sample.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import pathlib
import sysconfig

from jaxtyping import Int, UInt8
import numpy as np

from jpmhc_jax.config.schema import Data
from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.core.examples import PAD
from jpmhc_jax.core.reading import memory_limit, read_bytes, shown, size
from jpmhc_jax.data.batches import BatchPlan, Split
from jpmhc_jax.data.dataset import digest
from jpmhc_jax.data.registry import register_dataset
from jpmhc_jax.data.tokens import TokenDataset

BYTES = 256
_LEFT_OUT = {
  "__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test",
  "tests", "tkinter", "turtledemo",
}  # fmt: skip


@register_dataset("text")
def build_text(config: Data, *, batch_size: int, seed: int) -> TokenDataset:
  """Reads the sources (about 10 MB, under a second) and wraps their windows in batches.

  Raises ConfigError for a folder without sources, DataError for a file with a zero byte or a
  corpus that is not the demanded one.
  """
  options = config.text
  folder = pathlib.Path(options.folder or sysconfig.get_path("stdlib")).expanduser()
  texts = _read_all(folder)
  held = [text for path, text in texts.items() if is_held_out(path, options.held_out)]
  training = [text for path, text in texts.items() if not is_held_out(path, options.held_out)]
  if not held or not training:
    raise ConfigError(
      f"data.text.folder={str(folder)!r}: {len(training)} files to train on and {len(held)} held out; expected both: "
      f"a folder with *.py files, or a smaller data.text.held_out={options.held_out}"
    )
  content = digest("text", "\n".join(texts), *texts.values(), str(options.window), str(options.held_out))
  if options.sha256 and options.sha256 != content:
    raise DataError(
      f"data.text.sha256={options.sha256}: the sources under {folder} have {content}; run the Python version that the "
      "run was made with, or set data.text.sha256='' to take what is there"
    )
  train, evaluation = _split(training, options.window), _split(held, options.window, shuffle=True)
  return TokenDataset(
    kind="text",
    side=0,
    length=options.window,
    vocab_size=BYTES,
    train=train,
    evaluation=evaluation,
    plan=BatchPlan(train, batch_size=batch_size, seed=seed, epochs=config.epochs_per_interval),
    content=content,
    notes={
      "train_files": len(training),
      "train_bytes": sum(text.size for text in training),
      "evaluation_files": len(held),
      "evaluation_bytes": sum(text.size for text in held),
    },
  )


def source_files(folder: pathlib.Path) -> list[str]:
  """POSIX paths below the folder of the files that the corpus is made of, in order.

  A link to nothing is left out; one to a device or a pipe is among them, and refused where it is read.
  """
  paths = (path.relative_to(folder) for path in folder.rglob("*.py") if path.exists() and not path.is_dir())
  return sorted(path.as_posix() for path in paths if not _left_out(path))


def _left_out(path: pathlib.PurePath) -> bool:
  generated = path.name.startswith("_sysconfigdata") or any(part.startswith("config-") for part in path.parts)
  return generated or not _LEFT_OUT.isdisjoint(path.parts)


def is_held_out(path: str, one_in: int) -> bool:
  """Whether the file of this relative POSIX path is held out."""
  return int.from_bytes(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()[:8], "big") % one_in == 0


def _read_all(folder: pathlib.Path) -> dict[str, UInt8[np.ndarray, "bytes"]]:
  texts: dict[str, np.ndarray] = {}
  total, limit = 0, memory_limit()
  for path in source_files(folder):
    texts[path] = _read(folder / path)
    total += texts[path].size
    if total > limit:
      raise DataError(
        f"data.text.folder={str(folder)!r}: the files up to {shown(path)} have {size(total)}; expected at most "
        f"{size(limit)}, a quarter of this machine's memory"
      )
  return texts


def _read(path: pathlib.Path) -> UInt8[np.ndarray, "bytes"]:
  try:
    text = np.frombuffer(read_bytes(path), np.uint8)
  except OSError as error:
    raise DataError(f"{shown(path)}: cannot be read ({error.strerror or error}); repair or remove the file") from error
  if PAD in text:
    raise DataError(
      f"{shown(path)}: byte 0 at offset {int(np.argmax(text == PAD))}; Python sources hold none. Remove the file"
    )
  return text


@dataclasses.dataclass(frozen=True)
class Windows:
  """Example e is the window behind corpus offset starts[e]: inputs corpus[s : s + w], labels one byte later.

  Labels beyond the end of the window's file (`ends[e]`) are 0, which is ignored; so are the inputs there.
  """

  corpus: UInt8[np.ndarray, "bytes"]
  starts: Int[np.ndarray, "examples"]
  ends: Int[np.ndarray, "examples"]
  window: int

  def __call__(self, examples: Int[np.ndarray, "b"]) -> tuple[UInt8[np.ndarray, "b s"], UInt8[np.ndarray, "b s"]]:
    """Inputs and labels of the examples, one row each."""
    offsets = self.starts[examples][:, None] + np.arange(self.window + 1)
    tokens = np.where(offsets < self.ends[examples][:, None], self.corpus[np.minimum(offsets, self.corpus.size - 1)], 0)
    return tokens[:, :-1].astype(np.uint8), tokens[:, 1:].astype(np.uint8)


def _split(texts: Sequence[np.ndarray], window: int, shuffle: bool = False) -> Split:
  """Every window is a group of its own. Byte 0 stands in front of each file, so each of its bytes is a label once."""
  texts = [text for text in texts if text.size]
  file_starts = np.cumsum([0] + [text.size + 1 for text in texts])
  windows = [np.arange(start, end - 1, window) for start, end in zip(file_starts, file_starts[1:], strict=False)]
  starts = np.concatenate(windows)
  ends = np.repeat(file_starts[1:], [len(of_file) for of_file in windows])
  corpus = np.concatenate([part for text in texts for part in (np.zeros(1, np.uint8), text)])
  order = np.random.default_rng(0).permutation(starts.size) if shuffle else np.arange(starts.size)
  return Split.of_singles(starts.size, Windows(corpus, starts[order], ends[order], window))
