"""Paths as people write them, and folders under names that libraries would read as something else."""

import os
import pathlib

import pytest

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core import places
from jpmhc_jax.core.errors import ConfigError

# Markup, patterns, escapes, URL parts and a byte that is no text.
ODD = ["[b]x[/b]", "*", "a?b=1", "p%41#", "br{a}ce", "back\\slash", "new\nline", "größe", os.fsdecode(b"byte\xff")]


@pytest.fixture
def here(tmp_path, monkeypatch):
  """The current folder, with a home folder in it."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  return tmp_path


def test_a_path_is_absolute_and_expanded_and_keeps_its_links(here):
  (here / "real").mkdir()
  (here / "link").symlink_to("real")
  expected = {"runs/a": "runs/a", "./a": "a", "~/a": "home/a", "~": "home", "link/a": "link/a", ".": "", "gs:a": "gs:a"}
  assert {text: places.local(text) for text in expected} == {text: here / path for text, path in expected.items()}
  assert places.local(str(here)) == here
  for name in ODD:
    assert places.local(name) == here / name


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("gs://bucket/run", "not a URL"),
    ("s3://bucket/run", "not a URL"),
    ("file:///tmp/run", "not a URL"),
    ("~nobody-of-this-name/run", "without ~"),
    ("x" * 300, "File name too long"),
    ("loop", "symbolic links"),
    ("a\0b", "null byte"),
  ],
)
def test_what_is_no_usable_path_is_refused_in_words(here, text, expected):
  (here / "loop").symlink_to("loop")
  with pytest.raises(ValueError, match=expected):
    places.local(text)
  with pytest.raises(ConfigError, match=r"^data.text.folder=.*: expected .*" + expected):
    configs.from_dict({"data": {"text": {"folder": text}}})
  with pytest.raises(ConfigError, match="^--config="):
    configs.load(text)


def test_a_relative_path_in_a_folder_that_was_removed_is_refused(here):
  gone = here / "gone"
  gone.mkdir()
  os.chdir(gone)
  gone.rmdir()
  with pytest.raises(ValueError, match="the current folder was removed"):
    places.local("runs/a")
  assert places.local(str(here)) == here
  assert configs.load("sudoku:tiny").data.sudoku.side == 4  # of the package: no folder is asked for


def test_every_path_of_a_config_is_made_absolute_when_it_is_read(here):
  paths = [name for name, value, _, _ in configs.documentation() if name.endswith((".folder", "_folder", ".file"))]
  assert len(paths) == 6
  config = configs.load_default([f"--config.{name}=~/{name}" for name in paths])
  assert {name: dict(configs.leaves(config))[name] for name in paths} == {n: str(here / "home" / n) for n in paths}
  configs.save(config, here / "config.json")
  assert configs.restore(here / "config.json") == config
  assert all(dict(configs.leaves(schema.Config()))[name] == "" for name in paths)
  assert configs.load_default() == schema.Config()


def test_a_config_file_is_found_wherever_it_lies(here):
  for folder in ("home", "with:colon", "a.py:b"):
    (here / folder).mkdir()
    path = here / folder / "c.py"
    path.write_text("from jpmhc_jax.config import load\ndef get_config(v=''):\n  c = load.default()\n  c.steps = 7\n")
    path.write_text(path.read_text() + "  c.seed = len(v)\n  return c\n")
    for spec in (str(path), f"{folder}/c.py"):
      assert configs.load(spec).steps == 7 and configs.load(f"{spec}:abc").seed == 3
  assert configs.load("~/c.py").steps == 7


@pytest.mark.parametrize("name", ["plain", "with space", "größe"])
def test_a_folder_with_a_plain_name_stays_itself(here, name):
  folder = here / name
  folder.mkdir()
  with places.plain(pathlib.Path(name)) as plain:
    assert plain == folder


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no numbered folders on this system")
@pytest.mark.parametrize("name", [name for name in ODD if set(name) & set("*?[\\\udcff")])
def test_a_folder_that_libraries_would_misread_is_known_by_a_number(here, name):
  folder = here / name
  folder.mkdir(parents=True)
  before = set(os.listdir("/proc/self/fd"))
  with places.plain(folder) as plain:
    assert str(plain).startswith("/proc/self/fd/") and plain.samefile(folder)
    (plain / "file").write_text("here")
  assert (folder / "file").read_text() == "here" and set(os.listdir("/proc/self/fd")) == before
