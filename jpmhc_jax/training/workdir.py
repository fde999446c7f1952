"""A run's folder, the config that it belongs to, and the one start that may write there."""

from collections.abc import Iterator
import contextlib
import pathlib

import jax

from jpmhc_jax.core import config as configs
from jpmhc_jax.core import schema
from jpmhc_jax.core.errors import ConfigError, WorkdirError
from jpmhc_jax.core.files import storing
from jpmhc_jax.training import distributed, lease

# What a resumed run may change: it moves no number by more than the order of a sum. 'mesh.' stands for the group.
FREE = (
  "mesh.",
  "processes.",
  "logging.",
  "checkpoint.",
  "data.prefetch",
  "evaluation.save_every",
  "optimizer.nonfinite",
  "optimizer.nonfinite_limit",
)


@contextlib.contextmanager
def claimed(config: schema.Config, workdir: pathlib.Path) -> Iterator[None]:
  """Inside the block the workdir is this start's alone: process 0 holds its `lease`; see also `claim_workdir`.

  What this start has claimed it may claim again. Evaluations and reports ask for nothing. Raises WorkdirError when
  another process trains there, and what `claim_workdir` raises.
  """
  with contextlib.ExitStack() as stack:

    def take() -> str:
      with storing(str(workdir / "config.json")):
        workdir.mkdir(parents=True, exist_ok=True)
      try:
        stack.enter_context(lease.held(workdir))
      except WorkdirError as error:
        return str(error)
      return ""

    if refused := distributed.from_primary(take):
      raise WorkdirError(refused)
    claim_workdir(config, workdir)
    yield


def claim_workdir(config: schema.Config, workdir: pathlib.Path) -> None:
  """Makes the workdir this run's: writes config.json, or checks that the one there is the same but for `FREE` fields.

  A start that failed before its first record leaves a config.json that binds nobody. Raises ConfigError with the
  differing fields when the workdir belongs to another config, or when processes do not see the same folder;
  StorageError when it is not writable.
  """
  path = workdir / "config.json"
  if distributed.is_primary():
    with storing(str(path)):
      workdir.mkdir(parents=True, exist_ok=True)
      if path.is_file() and _holds_a_run(workdir):
        _check_same(configs.restore(path), config, workdir)
      configs.save(config, path)
  distributed.barrier("workdir")
  if not path.is_file():
    raise ConfigError(
      f"--workdir={workdir}: process 0 wrote {path.name} there, but process {jax.process_index()} does not see "
      "it; use a folder that all processes share"
    )
  if not distributed.is_primary():
    _check_same(configs.restore(path), config, workdir)


def _holds_a_run(workdir: pathlib.Path) -> bool:
  """Whether anything was recorded or saved there, which another config must not go on with."""
  checkpoints = workdir / "checkpoints"
  metrics = workdir / "metrics.jsonl"
  return (metrics.is_file() and metrics.stat().st_size > 0) or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def _check_same(there: schema.Config, now: schema.Config, workdir: pathlib.Path) -> None:
  changed = [row for row in configs.differences(there, now) if not _free(row[0])]
  if changed:
    rows = "\n".join(f"  {name}: {old!r} there, {new!r} now" for name, old, new in changed)
    raise ConfigError(f"{workdir} holds a run with another config; use a new --workdir or undo these fields:\n{rows}")


def _free(name: str) -> bool:
  return any(name == free or (free.endswith(".") and name.startswith(free)) for free in FREE)
