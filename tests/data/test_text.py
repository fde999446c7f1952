"""The text corpus: every byte is a label once, files stay on their side, and what is no corpus is refused."""

import dataclasses
import json
import os
import sys
import types

import numpy as np
import pytest

from jpmhc_jax import data
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.data import text as corpora
from jpmhc_jax.data.text import is_held_out, source_files

SOURCES = {f"package/module{i}.py": f"# {i}\n" + "x = 1\n" * (3 * i) for i in range(12)} | {"empty.py": ""}
OTHERS = {
  "tests/a.py": "a",
  "site-packages/b.py": "b",
  "config-3.11/c.py": "c",
  "_sysconfigdata_x.py": "d",
  "e.txt": "e",
}


@pytest.fixture
def folder(tmp_path):
  for path, text in (SOURCES | OTHERS).items():
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
  return tmp_path


def _config(folder, **changes):
  options = schema.TextData(folder=str(folder), window=16, held_out=3)
  return schema.Data(kind="text", epochs_per_interval=1, text=dataclasses.replace(options, **changes))


def _build(folder, **changes):
  return data.build(_config(folder, **changes), batch_size=4, seed=0)


def _labels(split):
  inputs, labels = split.encode(np.arange(split.examples))
  return inputs, labels


def test_tests_packages_and_generated_files_are_left_out(folder):
  assert source_files(folder) == sorted(SOURCES)


def test_every_byte_of_every_file_is_a_label_once_on_the_side_of_its_file(folder):
  dataset = _build(folder)
  held = [text for path, text in sorted(SOURCES.items()) if is_held_out(path, 3)]
  kept = [text for path, text in sorted(SOURCES.items()) if not is_held_out(path, 3)]
  assert held and kept
  _, labels = _labels(dataset.train)
  assert bytes(labels[labels != 0]).decode() == "".join(kept)
  _, labels = _labels(dataset.evaluation)
  assert np.array_equal(np.bincount(labels[labels != 0]), np.bincount(np.frombuffer("".join(held).encode(), np.uint8)))
  assert dataset.notes["train_bytes"] == len("".join(kept))


def test_a_label_is_the_next_input_and_a_file_begins_behind_byte_zero(folder):
  inputs, labels = _labels(_build(folder).train)
  valid = labels[:, :-1] != 0
  np.testing.assert_array_equal(inputs[:, 1:][valid], labels[:, :-1][valid])
  assert inputs[0, 0] == 0 and bytes(labels[0, :2]) == b"# "
  batch = _build(folder).batch(1)
  assert set(batch["labels"][batch["labels"] < 1].tolist()) <= {-100}


def test_batches_are_a_function_of_the_step_and_visit_every_window_once_an_epoch(folder):
  first, second = _build(folder), _build(folder)
  np.testing.assert_array_equal(first.batch(3)["inputs"], second.batch(3)["inputs"])
  steps = first.plan.interval_steps(1)
  seen = np.concatenate([first.plan.examples(step) for step in range(steps)])
  assert seen.size == np.unique(seen).size > first.train.examples - 4


def test_a_corpus_is_pinned_by_its_content(folder):
  content = _build(folder).content
  assert _build(folder, sha256=content).content == content
  (folder / "package" / "module3.py").write_text("y = 2\n")
  with pytest.raises(DataError, match=f"data.text.sha256={content}"):
    _build(folder, sha256=content)


def test_bad_corpora_say_what_is_wrong(folder, tmp_path_factory, monkeypatch):
  with pytest.raises(ConfigError, match="data.text.window=1"):
    _build(folder, window=1)
  with pytest.raises(ConfigError, match="data.text.held_out=1"):
    _build(folder, held_out=1)
  with pytest.raises(ConfigError, match="0 files to train on"):
    _build(tmp_path_factory.mktemp("nothing"))
  path = folder / "package" / "zero.py"
  path.write_bytes(b"ab\0")
  with pytest.raises(DataError, match="zero.py: byte 0 at offset 2"):
    _build(folder)
  with path.open("wb") as file:
    file.truncate(5 * 2**30)
  with pytest.raises(DataError, match=r"zero.py: 5.0 GiB; expected at most 64.0 MiB"):
    _build(folder)
  for target, kind in {"/dev/zero": "a character device", str(folder / "pipe"): "a pipe"}.items():
    path.unlink()
    path.symlink_to(target)
    if kind == "a pipe":
      assert "package/zero.py" not in source_files(folder)  # a link to nothing holds no text
      os.mkfifo(target)
    with pytest.raises(DataError, match=f"zero.py: is {kind}; expected a regular file"):
      _build(folder)
  path.unlink()
  monkeypatch.setattr(corpora, "memory_limit", lambda: 300)
  with pytest.raises(DataError, match=r"data.text.folder=.*: the files up to .* have 414 bytes; expected at most 300"):
    _build(folder)


def test_names_that_are_no_utf8_count_as_the_bytes_that_they_are(folder):
  before = _build(folder)
  (folder / os.fsdecode(b"caf\xe9.py")).write_text("x = 1\n")
  after = _build(folder)
  assert after.notes["train_files"] + after.notes["evaluation_files"] == 1 + len(SOURCES)
  assert after.content != before.content


def test_the_standard_library_of_any_python_is_a_corpus():
  dataset = data.build(schema.Data(kind="text", epochs_per_interval=1), batch_size=4, seed=0)
  assert dataset.notes["train_bytes"] > 5e6 and dataset.notes["evaluation_bytes"] > 1e5
  assert dataset.sequence_length == 128 and dataset.batch(0)["inputs"].shape == (4, 128)


class Words:
  """A tokenizer of one's own: a token is a word with the space behind it."""

  name, vocab_size = "words", 7
  KNOWN = ("the ", "cat ", "sat ", "on ", "a ", "mat\n", "?")

  def encode(self, text):
    parts = text.replace("\n", "\n ").split(" ")
    words = [part if part.endswith("\n") else f"{part} " for part in parts if part]
    return [self.KNOWN.index(word) if word in self.KNOWN else 6 for word in words]

  def decode(self, tokens):
    return "".join(self.KNOWN[token] for token in tokens)


@pytest.fixture
def own(tmp_path):
  """A long text, a page and lines of JSON."""
  (tmp_path / "long.txt").write_text("the cat sat on a mat\n" * 4000)
  (tmp_path / "page.md").write_text("# A page\n")
  lines = [json.dumps({"body": f"the cat sat on a mat\n{'the cat ' * i}", "id": i}) for i in range(9)]
  (tmp_path / "many.jsonl").write_text("\n".join(lines) + "\n\n")
  return tmp_path


def test_own_files_are_cut_at_their_lines_and_read_by_the_field(own):
  changes = {"files": ("*.txt", "**/*.md", "*.jsonl"), "jsonl_field": "body", "window": 64}
  dataset = _build(own, **changes)
  assert dataset.notes["train_files"] + dataset.notes["evaluation_files"] == 6 + 1 + 9  # 84,000 bytes are six pieces
  texts = corpora._read_all(own, _config(own, **changes).text, dataset.tokenizer)
  pieces = [bytes(text.tokens) for name, text in texts.items() if name.startswith("long.txt:")]
  assert b"".join(pieces) == (own / "long.txt").read_bytes() and max(map(len, pieces)) <= corpora.PIECE
  assert all(piece.endswith(b"\n") for piece in pieces)
  assert bytes(texts["many.jsonl:3"].tokens) == b"the cat sat on a mat\nthe cat the cat "
  for line, message in (("{", "not a JSON object"), ("{}", "no field 'body'"), ('{"body": 3}', "holds a int")):
    (own / "many.jsonl").write_text(line)
    with pytest.raises(DataError, match=f"many.jsonl, line 1: .*{message}"):
      _build(own, **changes)


def test_a_tokenizer_of_ones_own_reads_and_writes_and_bits_stay_those_of_a_byte(own, monkeypatch):
  monkeypatch.setitem(sys.modules, "own_words", types.SimpleNamespace(Words=Words, none=3))
  dataset = _build(own, files=("*.txt",), tokenizer="own_words:Words")
  assert dataset.vocab_size == 8 and dataset.decoded(dataset.encoded("the cat sat ")) == "the cat sat "
  _, labels = _labels(dataset.train)
  assert set(np.unique(labels)) == {0, 1, 2, 3, 4, 5, 6}
  batches = dataset.evaluation_batches(64)
  label_bytes = sum(batch["label_bytes"][batch["valid"]].sum() for batch in batches)
  assert label_bytes == pytest.approx(dataset.notes["evaluation_bytes"], rel=1e-5)
  assert dataset.batch(0).keys() == dataset.element_spec.keys()
  assert dataset.fingerprint() != _build(own, files=("*.txt",)).fingerprint()
  for spec in ("own_words:none", "own_words:missing", "no_such_module:x", "words"):
    with pytest.raises(ConfigError, match=f"data.text.tokenizer='{spec}': expected "):
      _build(own, files=("*.txt",), tokenizer=spec)


def test_a_saved_tokenizer_is_read_by_its_package(own, monkeypatch):
  """The calls that `tokenizers` documents, by a stand-in: the package is optional."""
  words, path = Words(), own / "tokenizer.json"
  saved = types.SimpleNamespace(
    to_str=lambda: "{}",
    get_vocab_size=lambda: 7,
    encode=lambda text, add_special_tokens: types.SimpleNamespace(ids=words.encode(text)),
    decode=words.decode,
  )
  stand_in = types.SimpleNamespace(Tokenizer=types.SimpleNamespace(from_file=lambda name: saved))
  monkeypatch.setitem(sys.modules, "tokenizers", stand_in)
  assert _build(own, files=("*.txt",), tokenizer=str(path)).decoded(np.array([0, 1, 2])) == "the cat "
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(ConfigError, match="install it: pip install tokenizers"):
    _build(own, files=("*.txt",), tokenizer=str(path))
