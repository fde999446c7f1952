"""Compiled programs are kept by default, under this processor's own name, and the environment can turn that off."""

import os
import time
import warnings
import zlib

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import pytest

from jpmhc_jax.core import process


@pytest.fixture
def configured():
  """The cache folder that JAX was told; put back afterwards."""
  before = jax.config.jax_compilation_cache_dir
  yield lambda: jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", before)


def test_the_default_folder_is_of_the_user_and_the_processor(configured, monkeypatch, tmp_path):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  monkeypatch.setenv("HOME", os.fspath(tmp_path))
  folder = process.keep_compiled_programs()
  assert folder.parent == tmp_path / ".cache" / "jpmhc_jax" and configured() == os.fspath(folder)
  assert process.keep_compiled_programs() == folder  # the digest of one processor does not change


def test_without_a_home_folder_there_is_no_cache_and_no_complaint(configured, monkeypatch, tmp_path):
  def unknown(uid):
    raise KeyError(uid)

  before = configured()
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  (tmp_path / "file").touch()
  monkeypatch.setenv("HOME", os.fspath(tmp_path / "file"))  # a home that is no folder, as /dev/null
  assert process.keep_compiled_programs() is None and configured() == before
  monkeypatch.delenv("HOME")
  monkeypatch.setattr("pwd.getpwuid", unknown)  # as in a container with any user
  assert process.keep_compiled_programs() is None and configured() == before


@pytest.mark.parametrize("value", ["", "/elsewhere"])
def test_the_environment_decides_where_it_speaks(configured, monkeypatch, value):
  before = configured()
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", value)
  assert process.keep_compiled_programs() is None and configured() == before


@pytest.mark.slow
def test_an_entry_that_a_kill_cut_off_is_written_anew(configured, tmp_path):
  """JAX warns of such an entry at every start and leaves it there."""
  settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = [getattr(jax.config, name) for name in settings]

  def compile_one():
    jax.clear_caches()
    compilation_cache.reset_cache()
    for name, value in zip(settings, (str(tmp_path), 0.0), strict=True):
      jax.config.update(name, value)
    with warnings.catch_warnings(record=True) as said:
      warnings.simplefilter("always")
      jax.jit(lambda x: jnp.sin(x) + 1)(jnp.ones(3)).block_until_ready()
    return len([warning for warning in said if "compilation cache" in str(warning.message)])

  try:
    compile_one()
    entries = list(tmp_path.glob("*-cache"))
    assert entries and all(process.is_whole(path.read_bytes()) for path in entries)
    long_ago = time.time() - 1000
    for path in entries:
      path.write_bytes(path.read_bytes()[:100])
      os.utime(path, (long_ago, long_ago))
    assert compile_one() == len(entries)
    process.drop_damaged(tmp_path)
    assert compile_one() == 0 and compile_one() == 0
    assert all(process.is_whole(path.read_bytes()) for path in entries)
  finally:
    for name, value in zip(settings, before, strict=True):
      jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_only_damaged_entries_go_and_each_is_looked_at_once(tmp_path, monkeypatch):
  whole, now = zlib.compress(b"a program"), time.time()
  kept = {"whole-cache": whole, "other": b"", "unknown-cache": b"some other form"}
  for name, content in (kept | {"cut-cache": whole[:5], "empty-cache": b"", "young-cache": b""}).items():
    (tmp_path / name).write_bytes(content)
    age = 0 if name.startswith("young") else 500
    os.utime(tmp_path / name, (now - age, now - age))
  process.drop_damaged(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {*kept, "young-cache", process.STAMP}
  looked = []
  monkeypatch.setattr(process, "is_whole", lambda entry: looked.append(entry) or True)
  monkeypatch.setattr(time, "time", lambda: now + 100)
  process.drop_damaged(tmp_path)
  assert looked == [b""]  # the young one
  process.drop_damaged(tmp_path / "nowhere")
