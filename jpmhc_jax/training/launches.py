"""Which processes make up this run: read off the environment of a launcher, without asking any device."""

from collections.abc import Mapping
import dataclasses
import importlib.util
import pathlib
import re

from jpmhc_jax.core.errors import ConfigError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_FIRST_PORT, _PORTS = 61440, 4096  # SLURM: a port from the job's number, in the range that no service owns


@dataclasses.dataclass(frozen=True)
class Launch:
  """The place of this process in a run of several. None where JAX itself finds the value out.

  source: environment, slurm, tpu or kubernetes. coordinator: host:port at which process 0 listens. local_devices: the
  device numbers this process takes; None takes all that it sees.
  """

  source: str
  coordinator: str | None = None
  processes: int | None = None
  index: int | None = None
  local_devices: tuple[int, ...] | None = None


def detect(environ: Mapping[str, str], tpu_vm: bool = False, kubernetes_client: bool = False) -> Launch | None:
  """The launch that the variables describe; None for a process on its own.

  In this order: plain variables (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID; in a Kubernetes job or
  JobSet the last may come from JOB_COMPLETION_INDEX; JAX_NUM_PROCESSES=1 is a process on its own), a SLURM step of
  several tasks, a Cloud TPU slice, an indexed Kubernetes job whose service account may be asked (`kubernetes_client`:
  that package is installed).

  Raises ConfigError for variables that are incomplete or make no sense, and for a pod of an indexed job that nothing
  tells how many it is one of: on its own, each would write the same workdir.
  """
  if any(environ.get(name) for name in VARIABLES[:2]):
    return _plain(environ)
  if int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1) > 1 and "SLURM_PROCID" in environ:
    return _slurm(environ) if environ.get("SLURM_STEP_NODELIST") else None  # a batch script is no task of a step
  if tpu_vm or "," in environ.get("TPU_WORKER_HOSTNAMES", "") or environ.get("MEGASCALE_COORDINATOR_ADDRESS"):
    return Launch("tpu")
  if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
    if not kubernetes_client:
      raise ConfigError(
        f"JOB_COMPLETION_INDEX={environ['JOB_COMPLETION_INDEX']}: a pod of an indexed Kubernetes job, which does not "
        "say how many pods there are; set JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES (scripts/gke.py does), "
        "JAX_NUM_PROCESSES=1 if every pod is a run of its own, or pip install kubernetes"
      )
    return Launch("kubernetes")
  return None


def _plain(environ: Mapping[str, str]) -> Launch | None:
  if environ.get("JAX_NUM_PROCESSES") == "1":
    return None
  values = {name: environ.get(name, "") for name in VARIABLES}
  values["JAX_PROCESS_ID"] = values["JAX_PROCESS_ID"] or environ.get("JOB_COMPLETION_INDEX", "")
  for name, value in values.items():
    if not value:
      raise ConfigError(f"{name} is not set, but {' and '.join(n for n, v in values.items() if v)} is: set all three")
  address, count, index = values.values()
  for name in VARIABLES[1:]:
    if not values[name].isdigit():
      raise ConfigError(f"{name}={values[name]!r}: expected a whole number")
  if not re.fullmatch(r".+:\d+", address):
    raise ConfigError(f"JAX_COORDINATOR_ADDRESS={address!r}: expected host:port of process 0, such as 10.0.0.1:1234")
  if int(index) >= int(count):
    raise ConfigError(f"JAX_PROCESS_ID={index}: expected 0 to JAX_NUM_PROCESSES - 1 = {int(count) - 1}")
  return Launch("environment", address, int(count), int(index))


def _slurm(environ: Mapping[str, str]) -> Launch:
  count = int(environ.get("SLURM_STEP_NUM_TASKS") or environ["SLURM_NTASKS"])
  number = 31 * int(environ.get("SLURM_JOB_ID", 0)) + int(environ.get("SLURM_STEP_ID", 0))
  host = first_host(environ["SLURM_STEP_NODELIST"])
  return Launch(
    "slurm", f"{host}:{_FIRST_PORT + number % _PORTS}", count, int(environ["SLURM_PROCID"]), _slurm_devices(environ)
  )


def _slurm_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
  """One GPU for each task where SLURM shows every task of a node all of its GPUs; else all that the task sees."""
  visible = environ.get("CUDA_VISIBLE_DEVICES", "")
  tasks = re.match(r"\d+", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
  if tasks and int(tasks[0]) > 1 and len(visible.split(",")) == int(tasks[0]):
    return (int(environ.get("SLURM_LOCALID", 0)),)
  return None


def first_host(node_list: str) -> str:
  """The first host of a SLURM node list: 'gpu[003-007,9],login' -> 'gpu003'."""
  found = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,\[]*))?", node_list)
  if not found:
    raise ConfigError(f"SLURM_STEP_NODELIST={node_list!r}: no host in it")
  return "".join(part or "" for part in found.groups())


def on_tpu_vm() -> bool:
  """A machine with TPU chips and the library to drive them."""
  chips = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*")]
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def has_kubernetes_client() -> bool:
  """Whether the package that JAX asks about the pods of a job is installed."""
  return importlib.util.find_spec("kubernetes") is not None
