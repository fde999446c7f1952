"""Compiled programs are kept by default, under this processor's own name, and the environment can turn that off."""

import os

import jax
import pytest

from jpmhc_jax.core import launch


@pytest.fixture
def configured():
  """The cache folder that JAX was told; put back afterwards."""
  before = jax.config.jax_compilation_cache_dir
  yield lambda: jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", before)


def test_the_default_folder_is_of_the_user_and_the_processor(configured, monkeypatch, tmp_path):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  monkeypatch.setenv("HOME", os.fspath(tmp_path))
  folder = launch.keep_compiled_programs()
  assert folder.parent == tmp_path / ".cache" / "jpmhc_jax" and configured() == os.fspath(folder)
  assert launch.keep_compiled_programs() == folder  # the digest of one processor does not change


@pytest.mark.parametrize("value", ["", "/elsewhere"])
def test_the_environment_decides_where_it_speaks(configured, monkeypatch, value):
  before = configured()
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", value)
  assert launch.keep_compiled_programs() is None and configured() == before
