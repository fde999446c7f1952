"""Files of an object store do what files of a disk do, and what they cannot do they say."""

import concurrent.futures
import os
import pathlib
import pickle
import sys

import numpy as np
import pytest

from jpmhc_jax.core import files, objects, places
from jpmhc_jax.core.errors import ConfigError, StorageError
from jpmhc_jax.core.objects import ObjectPath
from jpmhc_jax.core.reading import read_bytes, read_json


def test_an_address_has_parts_like_a_path_and_survives_pickling():
  path = places.stored("s3://bucket/runs/first") / "evaluation" / "step_4.json"
  assert str(path) == "s3://bucket/runs/first/evaluation/step_4.json"
  assert (path.name, path.stem, path.suffix, path.key) == (
    "step_4.json", "step_4", ".json", "runs/first/evaluation/step_4.json",
  )  # fmt: skip
  assert path.parent.with_name("checkpoints") == ObjectPath("s3://bucket/runs/first/checkpoints")
  assert str(path.relative_to(path.parents[1])) == "evaluation/step_4.json"
  assert path == path.resolve() == path.absolute() == pickle.loads(pickle.dumps(path)) and path.is_absolute()
  assert len({path, pickle.loads(pickle.dumps(path)), pathlib.Path(path.name)}) == 2
  assert isinstance(path.parent, ObjectPath) and f"{path.parent}".startswith("s3://")
  assert sorted([path, path.parent]) == [path.parent, path]


@pytest.mark.parametrize("text", ["az://bucket/run", "s3://", "gs:///run", "http://bucket/run"])
def test_any_other_address_is_refused_with_those_there_are(text):
  with pytest.raises(ValueError, match="a path on this machine, s3://bucket/… or gs://bucket/…"):
    places.stored(text)


@pytest.mark.parametrize("use", [open, os.stat, os.listdir, np.load, os.fspath], ids=lambda use: use.__name__)
def test_what_goes_past_the_door_is_refused(use):
  with pytest.raises(TypeError, match="s3://bucket/run is no file of this machine"):
    use(ObjectPath("s3://bucket/run"))


def _told(folder):
  """What a workdir's readers and writers see of a folder, step by step."""
  path = folder / "a.json"
  yield [folder.exists(), folder.is_dir(), path.is_file(), list(folder.glob("*"))]
  files.make_folder(folder)
  files.write_atomically(path, "ä")
  files.write_atomically(folder / "b" / "c" / "step_1.json" if isinstance(folder, ObjectPath) else _made(folder), b"{}")
  yield [folder.exists(), folder.is_dir(), path.is_file(), path.is_dir(), (folder / "b").is_dir(), path.exists()]
  yield [path.read_text(encoding="utf-8"), path.read_bytes(), path.stat().st_size, read_bytes(path)]
  yield read_json(folder / "b" / "c" / "step_1.json")
  with path.open(encoding="utf-8", errors="replace") as lines:
    yield list(lines)
  for pattern in ("*", "*/*", "*.json", "b/*", "b/c/step_*.json", "*/c/*", "no/*", "[ab]*"):
    yield pattern, sorted(str(found.relative_to(folder)) for found in folder.glob(pattern))
  yield sorted(found.name for found in folder.iterdir())
  yield str(files.move_aside(folder / "b", folder).relative_to(folder))
  yield [(folder / "b").exists(), (folder / "damaged" / "b" / "c" / "step_1.json").read_bytes()]
  path.unlink()
  path.unlink(missing_ok=True)
  for action in (path.unlink, path.read_bytes, path.stat, lambda: read_json(path)):
    with pytest.raises(FileNotFoundError):
      action()
  yield [files.create(path, "one"), files.create(path, "two"), path.read_text()]
  yield [files.renew(path, "one"), files.renew(path, "two"), files.exchange(path, "one", "three"), path.read_text()]
  yield [files.exchange(path, "one", "four"), path.read_text()]


def _made(folder):
  files.make_folder(folder / "b" / "c")
  return folder / "b" / "c" / "step_1.json"


def test_a_folder_of_a_store_is_told_like_one_of_a_disk(tmp_path, bucket):
  for here, there in zip(_told(tmp_path / "run"), _told(bucket / "deep" / "run"), strict=True):
    assert here == there


def test_of_many_who_take_a_file_at_once_one_has_it(bucket):
  path = bucket / "running.json"
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    assert sum(pool.map(lambda k: files.create(path, f"holder {k}"), range(16))) == 1
    holder = path.read_text()
    taken = list(pool.map(lambda k: files.exchange(path, holder, f"heir {k}"), range(16)))
  assert sum(taken) == 1 and path.read_text() == f"heir {taken.index(True)}"


def test_lines_are_added_in_parts_that_readers_join(bucket, monkeypatch):
  monkeypatch.setattr(objects, "MOST_PARTS", 3)
  path, written = bucket / "run" / "metrics.jsonl", ""
  files.write_atomically(path, "")
  lines = files.growing(path)
  for k in range(9):
    lines.write(f"{k}\n".encode())
    lines.sync()
    written += f"{k}\n"
    assert (path.read_text(), path.stat().st_size) == (written, len(written))
    assert len(list(path.parent.glob("metrics.jsonl.parts/*"))) < 3
  lines.write(b"9\n")
  assert path.read_text() == written  # sent every FLUSH_S, at a checkpoint and at the end
  lines.close()
  assert path.read_text() == written + "9\n"
  assert [found.name for found in path.parent.iterdir()] == ["metrics.jsonl"]  # one object at the end
  files.growing(path).write(b"more\n")  # killed
  files.write_atomically(path, "anew\n")
  assert path.read_text() == "anew\n" and [found.name for found in path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_large_file_comes_back_whole(bucket, tmp_path):
  content = np.random.default_rng(0).bytes(13 * 2**20)
  (tmp_path / "from" / "d").mkdir(parents=True)
  (tmp_path / "from" / "d" / "array").write_bytes(content)
  (tmp_path / "from" / "empty").write_bytes(b"")
  (bucket / "checkpoint").upload(tmp_path / "from")
  (bucket / "checkpoint").download(tmp_path / "to")
  assert (tmp_path / "to" / "d" / "array").read_bytes() == content
  assert (tmp_path / "to" / "empty").read_bytes() == b""


def test_what_keeps_a_file_from_being_written_is_a_sentence_with_the_way_out(server, bucket):
  path = bucket / "run" / "config.json"
  files.write_atomically(path, "kept")

  def refused(path, words):
    with pytest.raises(StorageError, match=words), files.storing(str(path)):
      files.write_atomically(path, "new")

  with server.denying():
    refused(path, rf"^{path} could not be written: .*credentials that may read, write, list and delete there")
    with pytest.raises(OSError):
      path.read_bytes()
  server.stop()
  try:
    refused(path, rf"^{path} could not be written: .*see that the store can be reached")
    refused(path, "see that the store can be reached")
  finally:
    server.start()
  assert path.read_text() == "kept"
  refused(ObjectPath("s3://nobody-made-this-one/run/config.json"), "could not be written: .*[Bb]ucket")


def test_without_the_extra_the_address_names_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "obstore", None)
  objects._library.cache_clear()
  with pytest.raises(
    ConfigError, match=r"^s3://bucket/run: obstore is not installed; pip install 'jpmhc-jax\[cloud\]'"
  ):
    ObjectPath("s3://bucket/run").exists()
  objects._library.cache_clear()
