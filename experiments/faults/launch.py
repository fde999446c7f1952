"""One start of `jpmhc` as one or several processes on this machine, CPU devices and gloo collectives."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import resource
import socket
import subprocess
import sys
import time

from jpmhc_jax.core.process import TUNABLES

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = pathlib.Path(__file__).with_name("config.py")
TIMEOUT_S = 900.0  # a hang; a start takes 5 to 10 s where the processors are free
POLL_S = 0.003


@dataclasses.dataclass(frozen=True)
class Layout:
  """processes x devices of each, written '2x4'."""

  processes: int
  devices: int

  @classmethod
  def parse(cls, text: str) -> "Layout":
    """Raises ValueError, which says what was expected."""
    if not (numbers := re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)):
      raise ValueError("processes x devices, such as 2x4, each from 1 to 99")
    return cls(*map(int, numbers.groups()))

  def __str__(self) -> str:
    return f"{self.processes}x{self.devices}"


class Start:
  """The processes of one start. Use as a context: none outlives it.

  name: of their logs, which go to the folder `logs`, by default beside the workdir. prefix: a command that becomes each
  of them, such as `unshare …`.
  """

  def __init__(
    self,
    layout: Layout,
    workdir: pathlib.Path,
    arguments: Sequence[str],
    cache: pathlib.Path,
    file_limit: int = 0,
    program: Sequence[str] = ("-m", "jpmhc_jax"),
    name: str = "",
    prefix: Sequence[str] = (),
    logs: pathlib.Path | None = None,
  ):
    self.workdir, self.layout, self.program, self.prefix = workdir, layout, program, prefix
    self.began = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    logs = logs or workdir.parent
    self._logs = [logs / f"{name or workdir.name}.process{i}.log" for i in range(layout.processes)]
    address = f"127.0.0.1:{_free_port()}"
    self.processes = [self._process(i, arguments, address, cache, file_limit, log) for i, log in enumerate(self._logs)]

  def _process(
    self, index: int, arguments: Sequence[str], address: str, cache: pathlib.Path, file_limit: int, log: pathlib.Path
  ) -> subprocess.Popen:
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={self.layout.devices}",
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
      "GLIBC_TUNABLES": TUNABLES,
      "PYTHONPATH": str(ROOT),
    }
    if self.layout.processes > 1:
      environment |= {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(self.layout.processes),
        "JAX_PROCESS_ID": str(index),
      }
    command = [*self.prefix, sys.executable, *self.program, *arguments]

    def limit() -> None:
      resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    with log.open("w") as output:
      return subprocess.Popen(
        command,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for the harness
        preexec_fn=limit if file_limit else None,
      )

  def __enter__(self) -> "Start":
    return self

  def __exit__(self, *exception: object) -> None:
    for process in self.processes:
      if process.poll() is None:
        process.kill()
      process.wait()

  def running(self) -> bool:
    """Whether no process has ended yet."""
    return all(process.poll() is None for process in self.processes)

  def wait_for(self, condition: Callable[[], bool]) -> bool:
    """Waits for the condition; False when a process ends before."""
    while self.running():
      if condition():
        return True
      if time.monotonic() - self.began > TIMEOUT_S:
        raise TimeoutError(f"{self.workdir}: nothing happened for {TIMEOUT_S:g} s\n{self.output()}")
      time.sleep(POLL_S)
    return False

  def finish(self) -> list[int]:
    """The exit codes of all processes."""
    return [process.wait(timeout=TIMEOUT_S) for process in self.processes]

  def output(self) -> str:
    """What all processes printed."""
    return "\n".join(log.read_text(errors="replace") for log in self._logs if log.is_file())


def training(steps: int, workdir: pathlib.Path) -> list[str]:
  """The command that trains the harness's config in this workdir."""
  return ["train", f"--config={CONFIG}:{steps}", f"--workdir={workdir}"]


def losses(workdir: pathlib.Path) -> dict[int, float]:
  """train/loss by step; a line that a kill cut off does not count."""
  return {record["step"]: record["train/loss"] for record in lines(workdir) if "train/loss" in record}


def lines(workdir: pathlib.Path) -> list[Mapping]:
  """The complete lines of metrics.jsonl; {} for one that cannot be read."""
  path = workdir / "metrics.jsonl"
  text = path.read_text(errors="replace") if path.is_file() else ""
  records = []
  for line in text.splitlines(keepends=True):
    with contextlib.suppress(ValueError):  # after a power failure a file may end in anything
      records.append(json.loads(line) if line.endswith("\n") else {})
  return records


def records(workdir: pathlib.Path) -> list[dict]:
  """All that was measured, a step and its losses or scores each: metrics.jsonl without times, and evaluation/."""
  measured = ("step", "train/", "evaluation/")
  kept = [{name: line[name] for name in line if name.startswith(measured)} for line in lines(workdir)]
  results = sorted((workdir / "evaluation").glob("step_*.json"))
  scores = [json.loads(path.read_text()) for path in results]
  return [record for record in kept if len(record) > 1] + scores


def checkpoints(workdir: pathlib.Path) -> list[int]:
  """Steps of the complete checkpoints."""
  return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


def fingerprints(workdir: pathlib.Path) -> list[int]:
  """One exact number for every leaf of the newest checkpoint's state."""
  bundle = workdir / "checkpoints" / str(checkpoints(workdir)[-1]) / "bundle" / "metadata"
  return json.loads(bundle.read_text())["fingerprint"]


def _free_port() -> int:
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]
