"""Files of users: what is no regular file, too large or too deep is refused in words before memory is taken."""

import gzip
import json
import os
import socket

import pytest

from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.reading import DEEPEST, depth, read_bytes, read_gzip, read_json, shown, size


def _pipe(path):
  os.mkfifo(path)


def _socket(path):
  with socket.socket(socket.AF_UNIX) as bound:
    bound.bind(str(path))


def _large(path):
  with path.open("wb") as file:
    file.truncate(5 * 2**30)  # takes no room on the disk


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda path: path.symlink_to("/dev/zero"), r"file\.json: is a character device; expected a regular file"),
    (_pipe, "is a pipe"),
    (_socket, "is a socket"),
    (lambda path: path.mkdir(), "is a folder"),
    (_large, r"file\.json: 5\.0 GiB; expected at most 64\.0 MiB"),
  ],
)
def test_only_a_regular_file_of_a_known_size_is_read(tmp_path, monkeypatch, make, message):
  monkeypatch.chdir(tmp_path)  # a socket's path must be short
  path = tmp_path.relative_to(tmp_path) / "file.json"
  make(path)
  for read in (read_bytes, read_json):
    with pytest.raises(DataError, match=message):
      read(path)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a file system that makes files up")
def test_a_file_without_a_size_is_read_as_far_as_the_limit(tmp_path):
  """Such as those of /proc, which say 0 and hold more."""
  path = tmp_path / "grows"
  path.symlink_to("/proc/self/maps")
  with pytest.raises(DataError, match="grows while it is read; expected at most 100 bytes"):
    read_bytes(path, limit=100)


def test_what_a_small_archive_holds_is_read_as_far_as_the_limit(tmp_path):
  path = tmp_path / "votes.gz"
  path.write_bytes(gzip.compress(b"0" * 100_000))
  assert path.stat().st_size < 200 and read_gzip(path, 100_000) == b"0" * 100_000
  with pytest.raises(DataError, match=r"votes.gz: holds more than 97\.7 KiB"):
    read_gzip(path, 99_999)
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(EOFError):
    read_gzip(path, 100_000)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nested_json_is_refused_at_one_depth_everywhere(tmp_path, opening):
  path = tmp_path / "deep.json"
  closing = {"[": "]", "{": "}"}[opening[0]]

  def nested(levels):
    path.write_text(opening * levels + "1" + closing * levels)
    return read_json(path)

  nested(DEEPEST)
  for levels in (DEEPEST + 1, 10_000):
    with pytest.raises(DataError, match=f"nested {levels:,} levels deep; expected at most {DEEPEST}; repair"):
      nested(levels)
  path.write_text(opening * 10_000)  # never closed
  with pytest.raises(DataError, match="10,000 levels"):
    read_json(path)


@pytest.mark.parametrize(
  ("value", "levels"),
  [(1, 0), ([], 1), ([[], {"a": [1]}], 3), ("[[[", 0), ({"[": '"[{', "\\": ["]]"]}, 2), ([[1], [2], [3]], 2)],
)
def test_depth_counts_brackets_outside_of_strings(value, levels):
  assert depth(json.dumps(value).encode()) == levels


def test_what_is_no_json_says_so_with_the_remedy(tmp_path):
  path = tmp_path / "a.json"
  for content in (b"{", b"\xff", b'"' + b'\\"' * 100_000, b"1" * 5000):  # the last: more digits than Python takes
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json: not readable as JSON \(.*\); ask again"):
      read_json(path, remedy="ask again")


def test_sizes_and_paths_as_they_are_shown():
  assert [size(n) for n in (0, 1023, 1024, 3 * 2**20 // 2, 2**58)] == [
    "0 bytes", "1023 bytes", "1.0 KiB", "1.5 MiB", "256.0 PiB",
  ]  # fmt: skip
  assert shown("a b/é.json") == "a b/é.json"
  assert shown(os.fsdecode(b"e\n/caf\xe9")) == r"'e\n/caf\udce9'"
