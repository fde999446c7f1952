"""Files and folders are on the disk when it is said, what killed writers left goes, storage failures are sentences."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from jpmhc_jax.core import files
from jpmhc_jax.core.errors import DataError, StorageError


@pytest.fixture
def synced(monkeypatch):
  """Paths in the order in which they were synced, with the files there were then."""
  calls = []

  def sync(descriptor):
    path = pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    calls.append((path, sorted(os.listdir(path)) if path.is_dir() else path.read_bytes()))

  monkeypatch.setattr(os, "fsync", sync)
  return calls


def test_a_replaced_file_is_on_the_disk_by_content_and_by_name(synced, tmp_path):
  files.write_atomically(tmp_path / "a.json", "new")
  (temporary, content), (folder, names) = synced
  assert (temporary.parent, content, folder, names) == (tmp_path, b"new", tmp_path, ["a.json"])
  files.write_atomically(tmp_path / "a.json", "newer", durable=False)
  assert len(synced) == 2


def test_every_folder_that_is_made_is_in_the_one_above_it_on_the_disk(synced, tmp_path):
  files.make_folder(tmp_path / "a" / "b")
  assert synced == [(tmp_path, ["a"]), (tmp_path / "a", ["b"])]
  files.make_folder(tmp_path / "a" / "b")
  assert len(synced) == 2


def test_what_killed_writers_left_goes_and_what_others_are_writing_stays(tmp_path):
  path = tmp_path / "metrics.jsonl"
  write = "import sys, pathlib; from jpmhc_jax.core import files\n"
  write += "path = files.temporary_beside(pathlib.Path(sys.argv[1])); path.write_text('half'); print(path)"
  dead = subprocess.run([sys.executable, "-c", write, str(path)], capture_output=True, text=True, check=True).stdout
  mine, elsewhere = files.temporary_beside(path), tmp_path / ".a.json.12-34-0123abcd.tmp"
  others = [tmp_path / ".editor.tmp", tmp_path / ".b.tmp.tmp", path]
  for name in (mine, elsewhere, *others):
    name.write_text("half")
  assert pathlib.Path(dead.strip()).is_file()
  files.sweep(tmp_path, old=elsewhere.stat().st_mtime - 90)
  assert sorted(tmp_path.iterdir()) == sorted([mine, elsewhere, *others])
  files.sweep(tmp_path, old=elsewhere.stat().st_mtime + 90)  # nobody of another machine writes so long
  assert sorted(tmp_path.iterdir()) == sorted([mine, *others])


def test_what_is_damaged_is_moved_aside_across_file_systems_too(tmp_path, monkeypatch):
  source = tmp_path / "checkpoints" / "8"
  source.mkdir(parents=True)
  (source / "array").write_text("half")

  def other_file_system(*paths, **named):
    raise OSError(errno.EXDEV, "Invalid cross-device link")

  monkeypatch.setattr(pathlib.Path, "replace", other_file_system)
  monkeypatch.setattr(os, "rename", other_file_system)
  assert files.move_aside(source, tmp_path) == tmp_path / "damaged" / "8"
  assert (tmp_path / "damaged" / "8" / "array").read_text() == "half" and not source.exists()


@pytest.mark.parametrize(
  ("error", "words"),
  [
    (OSError(errno.EMFILE, "Too many open files", "a.json"), "raise the limit of open files"),
    (ImportError("libx.so: cannot open shared object file: Too many open files"), "raise the limit of open files"),
    (ValueError("UNKNOWN: Gloo: Too many open files"), "raise the limit of open files"),
    (ValueError("Error opening \"zarr\" driver [os_error_code='24' source=]"), "raise the limit of open files"),
    (ValueError("Error writing \"a/0\" [os_error_code='28']"), "free space"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "free space"),
  ],
)
def test_a_shortage_is_one_sentence_whoever_meets_it(error, words):
  with pytest.raises(StorageError, match=f"(Too many|No space|quota).*; .*{words}"), files.shortages():
    try:
      raise error
    except Exception as cause:
      raise RuntimeError("a thread failed") from cause


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file"), ValueError("no"), DataError("a.json: no")])
def test_any_other_error_stays_what_it_is(error):
  with pytest.raises(type(error), match=str(error)[-4:]), files.shortages():
    raise error
