"""Strict numerics for every test, 8 host devices, one compilation cache a session, and the folder of golden arrays."""

import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jpmhc-jax-cache-"))

# Its import shuts down all logging handlers; absl's, if there is one by then, closes the stderr that pytest captures.
import submitit  # noqa: F401, I001
import jax
from jaxtyping import install_import_hook
import pytest

install_import_hook("jpmhc_jax", "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of golden arrays and data beside the project; a user's clone has none."""
  folder = pathlib.Path(os.environ.get("JPMHC_SHARED", ROOT.parent / "shared"))
  if not (folder / "fixtures").is_dir():
    pytest.skip(f"no golden arrays at {folder}; set JPMHC_SHARED to a folder with fixtures/ and data/")
  return folder
