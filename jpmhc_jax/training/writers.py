"""Writers of a run's scalars: metrics.jsonl always, TensorBoard events and Weights & Biases if asked."""

from collections.abc import Mapping, Sequence
import contextlib
import hashlib
import os
import pathlib
import platform
import re
import time
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.files import (
  growing,
  make_folder,
  Staged,
  storing,
  sync_file,
  sync_folder,
  to_json,
  write_atomically,
)
from jpmhc_jax.core.objects import ObjectPath
from jpmhc_jax.core.reading import json_line, memory_limit, read_bytes, read_json
from jpmhc_jax.training.hosts import distributed


@runtime_checkable
class Writer(Protocol):
  """One place that scalars are written to."""

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Takes the scalars of a step."""

  def sync(self) -> None:
    """Returns when what was written is on the disk."""

  def show(self, step: int, examples: Sequence[Mapping[str, Any]]) -> None:
    """Takes the examples of an evaluation, as evaluation/step_N.json has them."""

  def keep(self, checkpoint: pathlib.Path) -> None:
    """Takes the folder of the run's best checkpoint, at its end."""

  def close(self) -> None:
    """Ends the writing."""


class _OfScalars:
  """A writer that takes nothing else."""

  def show(self, step: int, examples: Sequence[Mapping[str, Any]]) -> None:
    """Examples have a file of their own."""

  def keep(self, checkpoint: pathlib.Path) -> None:
    """Checkpoints have folders of their own."""


class JsonLines(_OfScalars):
  """metrics.jsonl: one object a line, `step` and scalars. What is not finite is null.

  Opened at step s, it first drops damaged lines and those of later steps, left over from a run that was killed after
  its checkpoint s. `there` names the scalars that step s has already.
  """

  def __init__(self, path: pathlib.Path, step: int):
    earlier = {line: values for line in _complete_lines(path) if (values := _values(line)) and values["step"] <= step}
    self.there = {name for values in earlier.values() if values["step"] == step for name in values}
    write_atomically(path, "".join(earlier))
    self._file = growing(path)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends a line."""
    rest = memoryview((to_json({"step": step, **scalars}) + "\n").encode())
    while rest:
      rest = rest[self._file.write(rest) :]

  def sync(self) -> None:
    """Returns when every line is on the disk."""
    self._file.sync()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def _complete_lines(path: pathlib.Path) -> list[str]:
  """Lines that end in a newline; a last line cut off by a kill is dropped."""
  if not path.is_file():
    return []
  lines = read_bytes(path, memory_limit()).decode(errors="replace").split("\n")
  return [f"{line}\n" for line in lines[:-1]]


def _values(line: str) -> dict[str, Any] | None:
  """What a line says; None when a crash of the machine has damaged it."""
  values = json_line(line)
  return values if isinstance(values.get("step"), int) else None


class TensorBoard(_OfScalars):
  """TensorBoard event files in a folder, one a start; events after `step` of an earlier start are purged.

  One event holds all scalars of a step and is in the file when `write` returns. (tensorboardX's SummaryWriter leaves
  that to a thread: a kill loses two minutes, and on a full disk the thread dies and `add_scalar` waits for ever.)
  """

  def __init__(self, folder: pathlib.Path, step: int):
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import RecordWriter

    make_folder(folder)
    self._staged = Staged(folder)
    # TensorBoard reads files in the order of their names: second and host. A rollback may come within one second.
    moment = time.time_ns()
    name = f"events.out.tfevents.{moment // 10**9}.{platform.node()}.{moment}"
    self._path = self._staged.here / name
    self._file: Any = RecordWriter(str(self._path))
    self._event, self._summary = Event, Summary
    self._add(0, file_version="brain.Event:2")
    self._add(step + 1, session_log=SessionLog(status=SessionLog.START))
    sync_folder(folder)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends one event with all scalars of a step."""
    values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
    self._add(step, summary=self._summary(value=values))

  def sync(self) -> None:
    """Returns when every event is on the disk."""
    sync_file(self._path)
    self._staged.send()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()
    self._staged.close()

  def _add(self, step: int, **content: Any) -> None:
    self._file.write(self._event(wall_time=time.time(), step=step, **content).SerializeToString())
    self._file.flush()


class WeightsAndBiases:
  """A W&B run that resumes under the workdir's name; its mode is W&B's own variable (WANDB_MODE=offline).

  Of an evaluation it has pictures of the first answers on grids (given, true, answered side by side), and a table of
  texts; at the end, if asked, the best checkpoint as an artefact.

  W&B's own counter only grows, and what is logged at a smaller step is dropped. After a rollback, and after a kill
  behind a checkpoint, steps come again: here the training step is a metric, and the axis of all others.
  """

  def __init__(self, workdir: pathlib.Path, config: schema.Config):
    try:
      import wandb
    except ImportError as error:
      raise ConfigError("logging.wandb=True: wandb is not installed; pip install 'jpmhc-jax[wandb]'") from error
    # W&B allows 64 plain characters; the digest keeps two workdirs of one name apart.
    path, self._staged = workdir.resolve(), Staged(workdir)
    digest = hashlib.sha256(os.fsencode(str(path))).hexdigest()[:16]
    identity = f"{re.sub(r'[^A-Za-z0-9_-]', '-', path.name)[:40]}-{digest}"
    fields, self._wandb, self._name = config.logging, wandb, identity
    asked = {"project": fields.wandb_project, "group": fields.wandb_group, "notes": fields.wandb_notes}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value}  # W&B's variables for the others
    if fields.wandb_tags:
      given["tags"] = list(fields.wandb_tags)
    self._keeps = fields.wandb_checkpoints
    self._run: Any = wandb.init(
      dir=str(self._staged.here), id=identity, name=path.name, resume="allow", config=configs.to_dict(config), **given
    )
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Logs the scalars of a step."""
    self._run.log({"step": step, **scalars})

  def show(self, step: int, examples: Sequence[Mapping[str, Any]]) -> None:
    """Logs pictures of the first answers, and a table of those that are texts."""
    grids = [(example, picture) for example in examples[:_SHOWN] if (picture := _picture(example)) is not None]
    images = [self._wandb.Image(picture, caption=str(example.get("task", ""))) for example, picture in grids]
    texts = [
      [example["task"], example["input"], example["truth"], example["predictions"][0]["text"]]
      for example in examples
      if example.get("kind") == "text"
    ]
    logged = {"answers": images} if images else {}
    if texts:
      logged["answers/text"] = self._wandb.Table(columns=["task", "input", "truth", "answer"], data=texts)
    if logged:
      self._run.log({"step": step, **logged})

  def keep(self, checkpoint: pathlib.Path) -> None:
    """Logs the checkpoint as a version of the run's artefact."""
    if self._keeps:
      artifact = self._wandb.Artifact(f"{self._name}-checkpoint", type="model", metadata={"step": int(checkpoint.name)})
      # What lies in a store stays there.
      (artifact.add_reference if isinstance(checkpoint, ObjectPath) else artifact.add_dir)(str(checkpoint))
      self._run.log_artifact(artifact)

  def sync(self) -> None:
    """W&B keeps its files itself."""

  def close(self) -> None:
    """Finishes the W&B run."""
    self._run.finish()
    self._staged.close()


_SHOWN, _CELL = 12, 12  # pictures; pixels of a cell's side
# Of the tokens or colours 0, 1, …: black, then ARC's colours.
_PALETTE = np.array(
  [(0, 0, 0), (0, 116, 217), (255, 65, 54), (46, 204, 64), (255, 220, 0), (170, 170, 170), (240, 18, 190),
   (255, 133, 27), (127, 219, 255), (135, 12, 37), (255, 255, 255), (90, 90, 90)], np.uint8,
)  # fmt: skip


def _picture(example: Mapping[str, Any]) -> np.ndarray | None:
  """Given, true and answered grid of an example side by side, (height, width, 3) uint8; None where it has no grids."""
  answer: Mapping[str, Any] = next(iter(example.get("predictions", ())), {})
  grids = (example.get("input"), example.get("truth"), answer.get("grid"))
  arrays = [np.asarray(grid) for grid in grids if isinstance(grid, list) and grid and isinstance(grid[0], list)]
  if not arrays or any(array.ndim != 2 or array.dtype.kind != "i" for array in arrays):
    return None
  height = max(len(array) for array in arrays)
  margins = [((0, height - len(array)), (0, 1), (0, 0)) for array in arrays]
  colours = (_PALETTE[array % len(_PALETTE)] for array in arrays)
  panels = [np.pad(panel, margin, constant_values=128) for panel, margin in zip(colours, margins, strict=True)]
  return np.concatenate(panels, axis=1).repeat(_CELL, axis=0).repeat(_CELL, axis=1)


class Writers:
  """All writers of a run behind one; process 0 alone has any. A full disk or a closed folder is a StorageError.

  What a start at step s writes again of step s, because it was killed in the middle of its evaluation, is left out.
  """

  def __init__(self, workdir: pathlib.Path, config: schema.Config, step: int):
    self._folder, self._start = workdir, step
    self._there: set[str] = set()
    self._writers: list[Writer] = []
    if distributed.is_primary():
      try:
        with storing(f"metrics in {workdir}"):
          self._open(config, step)
      except BaseException:
        self.close()
        raise

  def _open(self, config: schema.Config, step: int) -> None:
    workdir = self._folder
    lines = JsonLines(workdir / "metrics.jsonl", step)
    self._there = lines.there
    self._writers.append(lines)
    if config.logging.tensorboard:
      self._writers.append(TensorBoard(workdir / "tensorboard", step))
    if config.logging.wandb:
      self._writers.append(WeightsAndBiases(workdir, config))

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Hands the scalars of a step to every writer."""
    if step == self._start:
      scalars = {name: value for name, value in scalars.items() if name not in self._there}
    with storing(f"metrics in {self._folder}"):
      for writer in self._writers if scalars else ():
        writer.write(step, scalars)

  def show(self, step: int) -> None:
    """Hands the examples of the evaluation of a step, where it wrote some, to every writer."""
    if any(isinstance(writer, WeightsAndBiases) for writer in self._writers):
      for path in sorted((self._folder / "evaluation").glob(f"step_{step}*.json"))[:1]:
        examples = read_json(path).get("examples", [])
        for writer in self._writers:
          writer.show(step, examples)

  def keep(self, checkpoint: pathlib.Path) -> None:
    """Hands the folder of the best checkpoint to every writer."""
    for writer in self._writers:
      writer.keep(checkpoint)

  def sync(self) -> None:
    """Returns when all that was written is on the disk."""
    with storing(f"metrics in {self._folder}"):
      for writer in self._writers:
        writer.sync()

  def close(self) -> None:
    """Closes every writer, also where one of them cannot write what it has left."""
    with storing(f"metrics in {self._folder}"), contextlib.ExitStack() as stack:
      for writer in self._writers:
        stack.callback(writer.close)
