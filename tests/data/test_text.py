"""The text corpus: every byte is a label once, files stay on their side, and what is no corpus is refused."""

import dataclasses
import os

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
