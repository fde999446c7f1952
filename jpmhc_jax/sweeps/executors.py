"""Executors of runs: processes of this machine or SLURM, both through submitit; and launch lines for TPU pods."""

from collections.abc import Mapping, Sequence
import os
import pathlib
import shlex
import signal
import sys
import threading
from typing import Any

import submitit

from jpmhc_jax.core.objects import ObjectPath
from jpmhc_jax.sweeps.job import outcome, TrainJob
from jpmhc_jax.sweeps.plan import Planned
from jpmhc_jax.sweeps.space import SweepError

FOREVER_MIN = 60 * 24 * 365
# What submitit calls by one name for every cluster; anything else is a parameter of SLURM.
COMMON = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "name")


def arguments(config: str, run: Planned) -> tuple[str, ...]:
  """The arguments of `jpmhc` that train a run."""
  return ("train", f"--config={config}", f"--workdir={run.workdir}", *run.overrides)


def command(config: str, run: Planned) -> str:
  """The command of a run, as one types it."""
  return shlex.join(("jpmhc", *arguments(config, run)))


def tpu_line(config: str, run: Planned) -> str:
  """The line that asks for a TPU pod and trains a run on all its hosts; NAME, ZONE, TYPE are the reader's variables."""
  _, *training = arguments(config, run)
  pod = '--name="$NAME" --zone="$ZONE" --accelerator-type="$TYPE"'
  return f"jpmhc launch tpu {pod} -- {shlex.join(training)}"


class Executor:
  """Submits runs to local processes or to SLURM.

  Each local slot owns its share of the GPUs when `gpus_per_job` says so. `program` is what runs the arguments of a run.
  """

  def __init__(
    self,
    name: str,
    folder: pathlib.Path,
    config: str,
    resources: Mapping[str, Any],
    gpus_per_job: int = 0,
    program: tuple[str, ...] = (sys.executable, "-m", "jpmhc_jax"),
  ):
    self.program, self._group = program, folder.name
    self.name, self.config, self.gpus_per_job, self.folder = name, config, gpus_per_job, _on_disk(folder) / "jobs"
    try:
      self._submitit = submitit.AutoExecutor(folder=self.folder, cluster=name)
      self._submitit.update_parameters(**self._parameters(resources))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
      raise SweepError(f"--executor={name}: {error}") from error

  def _parameters(self, resources: Mapping[str, Any]) -> dict[str, Any]:
    named = {key if key in COMMON else f"{self.name}_{key}": value for key, value in resources.items()}
    return {"timeout_min": FOREVER_MIN, **named} if self.name == "local" else named

  def submit(self, run: Planned, slot: int) -> submitit.Job[int]:
    """Starts one run; the job lives on if this process dies, and ignores the terminal's Ctrl-C."""
    job = TrainJob(run.workdir.absolute(), (*self.program, *arguments(self.config, run)), self._environment(slot))
    if threading.current_thread() is not threading.main_thread():
      return self._submitit.submit(job)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the job's processes inherit it
    try:
      return self._submitit.submit(job)
    finally:
      signal.signal(signal.SIGINT, before)

  def queued(self, job_id: str) -> submitit.Job[int] | None:
    """The SLURM job that an earlier start of this sweep left in the queue; None when there is none any more."""
    if self.name != "slurm" or not job_id:
      return None
    job: submitit.Job[int] = submitit.SlurmJob(folder=self.folder, job_id=job_id)
    return None if job.done(force_check=True) else job

  def has_ended(self, handle: submitit.Job[int], workdir: pathlib.Path) -> bool:
    """Whether a job is over. SLURM's own accounts are slow to tell: there the outcome on disk counts as well."""
    return handle.done() or (self.name == "slurm" and outcome(workdir) is not None)

  def _environment(self, slot: int) -> dict[str, str | None]:
    group = {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", self._group)}
    return group | self._devices(slot)

  def _devices(self, slot: int) -> dict[str, str | None]:
    if self.name != "local":
      return {}
    if self.gpus_per_job:
      first = slot * self.gpus_per_job
      return {"CUDA_VISIBLE_DEVICES": ",".join(str(first + i) for i in range(self.gpus_per_job))}
    # submitit hides all GPUs from local jobs that ask for none; here a run sees what the sweep sees.
    return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}


def _on_disk(folder: pathlib.Path) -> pathlib.Path:
  """A sweep's folder, or one of this user's for a sweep in a store: submitit hands its jobs over by files of a disk."""
  if isinstance(folder, ObjectPath):
    return pathlib.Path.home().joinpath(".cache", "jpmhc_jax", "sweeps", *folder.parts[1:])
  return folder


def read_resources(text: str) -> dict[str, Any]:
  """'partition=gpu,gpus_per_node=1' -> {'partition': 'gpu', 'gpus_per_node': 1}. Raises SweepError for another form."""
  resources: dict[str, Any] = {}
  for item in filter(None, (part.strip() for part in text.split(","))):
    key, equals, value = item.partition("=")
    if not equals:
      raise SweepError(f"--resources: {item!r} is not of the form name=value, such as partition=gpu")
    resources[key] = int(value) if value.isdecimal() else value
  return resources


def free_slot(taken: Sequence[int]) -> int:
  """The lowest slot that no job holds."""
  return next(slot for slot in range(len(taken) + 1) if slot not in taken)
