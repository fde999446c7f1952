"""Writers of a run's scalars: metrics.jsonl always, TensorBoard events and Weights & Biases if asked."""

from collections.abc import Mapping
import hashlib
import os
import pathlib
import platform
import re
import time
from typing import Any, Protocol, runtime_checkable

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.files import make_folder, storing, sync_file, sync_folder, to_json, write_atomically
from jpmhc_jax.core.reading import json_line, memory_limit, read_bytes
from jpmhc_jax.training.hosts import distributed


@runtime_checkable
class Writer(Protocol):
  """One place that scalars are written to."""

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Takes the scalars of a step."""

  def sync(self) -> None:
    """Returns when what was written is on the disk."""

  def close(self) -> None:
    """Ends the writing."""


class JsonLines:
  """metrics.jsonl: one object a line, `step` and scalars. What is not finite is null.

  Opened at step s, it first drops damaged lines and those of later steps, left over from a run that was killed after
  its checkpoint s. `there` names the scalars that step s has already.
  """

  def __init__(self, path: pathlib.Path, step: int):
    earlier = {line: values for line in _complete_lines(path) if (values := _values(line)) and values["step"] <= step}
    self.there = {name for values in earlier.values() if values["step"] == step for name in values}
    write_atomically(path, "".join(earlier))
    # Unbuffered: what a full disk refuses must not wait in a buffer to fail again at close.
    self._file = path.open("ab", buffering=0)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends a line."""
    rest = memoryview((to_json({"step": step, **scalars}) + "\n").encode())
    while rest:
      rest = rest[self._file.write(rest) :]

  def sync(self) -> None:
    """Returns when every line is on the disk."""
    os.fsync(self._file.fileno())

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


class TensorBoard:
  """TensorBoard event files in a folder, one a start; events after `step` of an earlier start are purged.

  One event holds all scalars of a step and is in the file when `write` returns. (tensorboardX's SummaryWriter leaves
  that to a thread: a kill loses two minutes, and on a full disk the thread dies and `add_scalar` waits for ever.)
  """

  def __init__(self, folder: pathlib.Path, step: int):
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import RecordWriter

    make_folder(folder)
    # TensorBoard reads files in the order of their names: second and host. A rollback may come within one second.
    moment = time.time_ns()
    name = f"events.out.tfevents.{moment // 10**9}.{platform.node()}.{moment}"
    self._path = folder / name
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

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _add(self, step: int, **content: Any) -> None:
    self._file.write(self._event(wall_time=time.time(), step=step, **content).SerializeToString())
    self._file.flush()


class WeightsAndBiases:
  """A W&B run that resumes under the workdir's name; its mode and project are W&B's own variables (WANDB_MODE, …).

  W&B's own counter only grows, and what is logged at a smaller step is dropped. After a rollback, and after a kill
  behind a checkpoint, steps come again: here the training step is a metric, and the axis of all others.
  """

  def __init__(self, workdir: pathlib.Path, config: schema.Config):
    try:
      import wandb
    except ImportError as error:
      raise ConfigError("logging.wandb=True: wandb is not installed; pip install 'jpmhc-jax[wandb]'") from error
    # W&B allows 64 plain characters; the digest keeps two workdirs of one name apart.
    path = workdir.resolve()
    identity = f"{re.sub(r'[^A-Za-z0-9_-]', '-', path.name)[:40]}-{hashlib.sha256(bytes(path)).hexdigest()[:16]}"
    self._run: Any = wandb.init(
      dir=str(workdir), id=identity, name=path.name, resume="allow", config=configs.to_dict(config)
    )
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Logs the scalars of a step."""
    self._run.log({"step": step, **scalars})

  def sync(self) -> None:
    """W&B keeps its files itself."""

  def close(self) -> None:
    """Finishes the W&B run."""
    self._run.finish()


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

  def sync(self) -> None:
    """Returns when all that was written is on the disk."""
    with storing(f"metrics in {self._folder}"):
      for writer in self._writers:
        writer.sync()

  def close(self) -> None:
    """Closes every writer."""
    with storing(f"metrics in {self._folder}"):
      for writer in self._writers:
        writer.close()
