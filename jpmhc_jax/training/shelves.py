"""Where checkpoints lie, one folder a step: on a disk, or in an object store.

orbax writes onto disks; it knows gs:// by libraries of its own, and s3:// not at all. For a store of either kind
process 0 therefore writes to a folder of its own disk, uploads what is in it, and then publishes the checkpoint by one
last write, that of the manifest, which fails where there is one already. Readers count what has a manifest; they copy
it to their own disk before they read it. A save that was killed has none, and goes at the next start.
"""

import contextlib
import pathlib
import shutil
import tempfile
from typing import Any, Protocol, runtime_checkable

import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from jpmhc_jax.core import places
from jpmhc_jax.core.errors import WorkdirError
from jpmhc_jax.core.files import move_aside, to_json
from jpmhc_jax.core.objects import ObjectPath
from jpmhc_jax.training import integrity
from jpmhc_jax.training.hosts import distributed


@runtime_checkable
class Shelf(Protocol):
  """Checkpoints by their step. Every method is for all processes of a run to call together, but `steps` and `close`."""

  def steps(self) -> list[int]:
    """Those that are complete, ascending."""

  def write(self, step: int, state: dict[str, Any], names: Any, bundle: dict[str, Any]) -> None:
    """Returns when the checkpoint and its manifest are where they outlive this machine's power."""

  def here(self, step: int) -> pathlib.Path:
    """A folder of this machine that holds it, under a name that orbax takes. Raises OSError where it cannot be had."""

  def delete(self, step: int) -> None:
    """Removes one."""

  def set_aside(self, step: int) -> str:
    """Moves a damaged one to `damaged/` beside the checkpoints; returns its place."""

  def close(self) -> None:
    """Waits for what is being written and releases the rest."""


def shelf(folder: pathlib.Path, owner: bool) -> Shelf:
  """That of a folder. owner: this process trains the run, and removes what a killed save left."""
  return InStore(folder, owner) if isinstance(folder, ObjectPath) else OnDisk(folder, owner)


def alone() -> ocp.options.MultiprocessingOptions:
  """What tells orbax not to wait for the other processes: its barrier would be missed by one that fails."""
  here = jax.process_index()
  return ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})


def checkpointer() -> ocp.Checkpointer:
  """Reads and writes the items of one checkpoint, without the other processes."""
  handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone()))
  return ocp.Checkpointer(handler, multiprocessing_options=alone())


def _items(state: dict[str, Any], names: Any, bundle: dict[str, Any]) -> ocp.args.Composite:
  return ocp.args.Composite(
    state=ocp.args.StandardSave(state),
    identifiers=ocp.args.StandardSave({"names": names}),
    bundle=ocp.args.JsonSave(bundle),
  )


class OnDisk:
  """A folder of a file system that all processes see."""

  def __init__(self, folder: pathlib.Path, owner: bool):
    self._folder, self._owner, self._closing = folder, owner, contextlib.ExitStack()
    self._plain = self._closing.enter_context(places.plain(folder.parent)) / folder.name
    self.manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    # Orbax deletes nothing: it would do so before the new checkpoint is surely on disk.
    options = ocp.CheckpointManagerOptions(max_to_keep=None, cleanup_tmp_directories=self._owner)
    return ocp.CheckpointManager(self._plain, options=options)

  def steps(self) -> list[int]:
    """Those that are complete, ascending."""
    return sorted(self.manager.all_steps())

  def write(self, step: int, state: dict[str, Any], names: Any, bundle: dict[str, Any]) -> None:
    """Each process writes its shards."""
    self.manager.save(step, args=_items(state, names, bundle))
    self.manager.wait_until_finished()
    self.manager.check_for_errors()
    integrity.write(self._folder / str(step))

  def here(self, step: int) -> pathlib.Path:
    """Where it lies."""
    return self._plain / str(step)

  def delete(self, step: int) -> None:
    """Removes one."""
    self.manager.delete(step)

  def set_aside(self, step: int) -> str:
    """Moves a damaged one out of the way, so that its step can be saved again."""
    target = distributed.from_primary(lambda: str(move_aside(self._folder / str(step), self._folder.parent)))
    self.manager.close()
    self.manager = self._open()
    return target

  def close(self) -> None:
    """Waits and releases the writer."""
    self.manager.close()
    self._closing.close()


class InStore:
  """A prefix of an object store; a folder of this machine's disk holds what is being written or read."""

  def __init__(self, folder: ObjectPath, owner: bool):
    self._folder, self._stage = folder, tempfile.TemporaryDirectory(prefix="jpmhc_checkpoints_")
    if owner:
      distributed.from_primary(self._clean)

  def _clean(self) -> None:
    for path in self._folder.glob("*"):
      if path.name.isdigit() and not (path / integrity.NAME).is_file():
        path.remove_all()

  def steps(self) -> list[int]:
    """Those that have a manifest, ascending."""
    names = [path.parent.name for path in self._folder.glob(f"*/{integrity.NAME}")]
    return sorted(int(name) for name in names if name.isdigit())

  def write(self, step: int, state: dict[str, Any], names: Any, bundle: dict[str, Any]) -> None:
    """Process 0 writes all of it: the whole state, which the others hand over, goes through its memory."""
    whole = {name: _whole(leaf) for name, leaf in state.items()}
    distributed.from_primary(lambda: self._publish(step, _items(whole, names, bundle)))

  def _publish(self, step: int, items: ocp.args.Composite) -> None:
    here, there = self._local(step), self._folder / str(step)
    shutil.rmtree(here, ignore_errors=True)
    with checkpointer() as writer:
      writer.save(here, args=items)
    manifest = to_json(integrity.described(here)).encode()
    published = there / integrity.NAME
    # Looked for first: an upload would write over the files of the other.
    if not published.is_file():
      there.upload(here)
      if published.create(manifest):
        shutil.rmtree(here)
        return
    raise WorkdirError(f"{there}: another process has saved this step; this one stops and writes nothing more")

  def here(self, step: int) -> pathlib.Path:
    """A copy on this machine's disk."""
    local = self._local(step)
    if not local.is_dir():
      half = local.with_suffix(".half")
      (self._folder / str(step)).download(half)
      half.replace(local)
    return local

  def delete(self, step: int) -> None:
    """Removes one, its manifest first: what a kill leaves of it is no checkpoint."""

    def delete() -> None:
      (self._folder / str(step) / integrity.NAME).unlink(missing_ok=True)
      (self._folder / str(step)).remove_all()

    distributed.from_primary(delete)
    shutil.rmtree(self._local(step), ignore_errors=True)

  def set_aside(self, step: int) -> str:
    """Moves a damaged one out of the way, so that its step can be saved again."""
    shutil.rmtree(self._local(step), ignore_errors=True)
    return distributed.from_primary(lambda: str(move_aside(self._folder / str(step), self._folder.parent)))

  def close(self) -> None:
    """Removes the copies on this machine's disk."""
    self._stage.cleanup()

  def _local(self, step: int) -> pathlib.Path:
    return pathlib.Path(self._stage.name) / str(step)


def _whole(leaf: Any) -> Any:
  """An array of which other processes hold parts, on the host; any other as it is."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return multihost_utils.process_allgather(leaf, tiled=True)
  return leaf
