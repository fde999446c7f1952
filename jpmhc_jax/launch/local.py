"""Several processes of one run on this machine, as on several hosts.

  jpmhc launch local --processes=2 --devices=4 -- --config=sudoku:tiny --workdir=runs/two
  jpmhc launch local --gpus=8 -- --config=arc1:cayley --workdir=runs/arc1 --config.mesh.fsdp=2

Every process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, which `jpmhc train` looks for.
--gpus=8 starts eight, each with one GPU and XLA's flags for them (`jpmhc train` alone is one process with all GPUs).
Their output is shown with the process number in front. SIGTERM and Ctrl-C go to all; when one fails, the others are
stopped. The exit code is that of the first that ended with another than 0.
"""

import argparse
from collections.abc import Mapping, Sequence
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from jpmhc_jax.core.arguments import whole
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.launch import commands, xla_flags

GRACE_S = 60.0  # after SIGTERM a process saves; after this it is killed


def plan(
  processes: int, devices: int, port: int, train: Sequence[str], environment: Mapping[str, str], gpus: bool = False
) -> list[commands.Command]:
  """One command a process; `devices` > 0 makes the host look like so many CPU devices to each, `gpus` gives it one."""
  host = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"} if devices else {}
  if gpus:
    host = xla_flags.gpu_environment()
  return [
    commands.Command(
      why=f"process {rank} of {processes}",
      argv=(sys.executable, "-m", "jpmhc_jax", "train", *train),
      environment={
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(rank),
        **({"JAX_LOCAL_DEVICE_IDS": str(rank)} if gpus else {}),
        **host,
        **environment,
      },
    )
    for rank in range(processes)
  ]


def start(planned: Sequence[commands.Command]) -> int:
  """Starts all, shows their output, and waits; see the module for what ends them."""
  started = [
    subprocess.Popen(
      command.argv,
      env=os.environ | {"PYTHONUNBUFFERED": "1", **command.environment},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors="replace",
    )
    for command in planned
  ]
  readers = [threading.Thread(target=_show, args=(rank, process)) for rank, process in enumerate(started)]
  for reader in readers:
    reader.start()
  earlier = {number: signal.signal(number, lambda *_: _stop(started)) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    return _wait(started)
  finally:
    for reader in readers:
      reader.join()
    for number, handler in earlier.items():
      signal.signal(number, handler)


def _wait(started: Sequence[subprocess.Popen]) -> int:
  """Until all have ended; the exit code of the first that failed."""
  code, killed_at = 0, float("inf")
  while True:
    ended = [process.poll() for process in started]
    failed = [code for code in ended if code]
    if failed and not code:
      code, killed_at = failed[0], time.monotonic() + GRACE_S
      _stop(started)
    if None not in ended:
      return code
    if time.monotonic() > killed_at:
      for process in started:
        process.kill()
    time.sleep(0.1)


def _show(rank: int, process: subprocess.Popen) -> None:
  assert process.stdout is not None
  with process.stdout as lines:
    for line in lines:
      print(f"[{rank}] {line}", end="", flush=True)


def _stop(started: Sequence[subprocess.Popen]) -> None:
  for process in started:
    if process.poll() is None:
      process.terminate()


def free_port() -> int:
  """A port that nothing listens on now."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  parser.add_argument("--processes", type=whole(1), default=None, help="2 by default")
  parser.add_argument("--gpus", type=whole(0), default=0, help="as many processes as GPUs, one for each")
  parser.add_argument(
    "--devices", type=whole(0, 4096), default=0, help="CPU devices a process; 0 leaves what the machine has"
  )
  parser.add_argument("--port", type=whole(0, 65535), default=0, help="port of the coordinator; 0 takes a free one")


def run(options: argparse.Namespace) -> int:
  """Runs all processes to their end; the exit code of the first that ended with another than 0."""
  if options.gpus and (options.devices or options.processes):
    raise ConfigError(f"--gpus={options.gpus}: expected neither --devices nor --processes beside it: each GPU is one")
  # A variable without a value is inherited as it is.
  environment = {name: value for name, value in commands.variables(options.env).items() if value is not None}
  processes, port = options.gpus or options.processes or 2, options.port or free_port()
  planned = plan(processes, options.devices, port, options.train, environment, gpus=bool(options.gpus))
  return commands.execute(planned, dry_run=True) if options.dry_run else start(planned)
