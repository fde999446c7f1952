"""Where scalars go while a run is on: metrics.jsonl always, TensorBoard events and Weights & Biases if asked."""

from collections.abc import Mapping
import hashlib
import json
import math
import pathlib
import re
from typing import Any, Protocol, runtime_checkable

from jpmhc_jax.core import config as configs
from jpmhc_jax.core import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.files import storing, write_atomically
from jpmhc_jax.training import distributed


@runtime_checkable
class Writer(Protocol):
  """Takes a step's scalars; `close` makes sure that they are on disk."""

  def write(self, step: int, scalars: Mapping[str, float]) -> None: ...
  def close(self) -> None: ...


class JsonLines:
  """metrics.jsonl: one object a line, `step` and scalars. Non-finite values are written as null (strict JSON).

  Opened at step s, it first drops lines of later steps, left over from a run that was killed after its checkpoint s.
  """

  def __init__(self, path: pathlib.Path, step: int):
    kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= step]
    write_atomically(path, "".join(kept))
    # Unbuffered: what a full disk refuses must not wait in a buffer to fail again at close.
    self._file = path.open("ab", buffering=0)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    values = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
    rest = memoryview((json.dumps({"step": step} | values) + "\n").encode())
    while rest:
      rest = rest[self._file.write(rest) :]

  def close(self) -> None:
    self._file.close()


def _complete_lines(path: pathlib.Path) -> list[str]:
  """Lines that end in a newline; a last line cut off by a kill is dropped."""
  lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
  return [line for line in lines if line.endswith("\n")]


class TensorBoard:
  """TensorBoard event files in a folder; events after `step` of an earlier start are purged."""

  def __init__(self, folder: pathlib.Path, step: int):
    import tensorboardX

    self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=step + 1 if step else None)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    for name, value in scalars.items():
      self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    self._writer.close()


class WeightsAndBiases:
  """A W&B run that resumes under the workdir's name; its mode and project are W&B's own variables (WANDB_MODE, …)."""

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

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    self._run.log(dict(scalars), step=step)

  def close(self) -> None:
    self._run.finish()


class Writers:
  """All writers of a run behind one; process 0 alone has any. A full disk or a closed folder is a StorageError."""

  def __init__(self, workdir: pathlib.Path, config: schema.Config, step: int):
    self._folder = workdir
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
    self._writers.append(JsonLines(workdir / "metrics.jsonl", step))
    if config.logging.tensorboard:
      self._writers.append(TensorBoard(workdir / "tensorboard", step))
    if config.logging.wandb:
      self._writers.append(WeightsAndBiases(workdir, config))

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    with storing(f"metrics in {self._folder}"):
      for writer in self._writers:
        writer.write(step, scalars)

  def close(self) -> None:
    for writer in self._writers:
      writer.close()
