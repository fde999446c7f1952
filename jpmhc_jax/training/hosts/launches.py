"""Which processes make up this run: read off the environment of a launcher, without asking any device."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import importlib.util
import itertools
import pathlib
import re
import zlib

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
  if "SLURM_PROCID" in environ and environ.get("SLURM_STEP_NODELIST"):  # a batch script is no task of a step
    tasks = next((name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if environ.get(name)), "")
    count = sum(tasks_by_node(environ, tasks)) if tasks else 1
    if count > 1:
      return _slurm(environ, count)
  if tpu_vm or "," in environ.get("TPU_WORKER_HOSTNAMES", "") or environ.get("MEGASCALE_COORDINATOR_ADDRESS"):
    return Launch("tpu")
  if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
    if not kubernetes_client:
      raise ConfigError(
        f"JOB_COMPLETION_INDEX={environ['JOB_COMPLETION_INDEX']}: a pod of an indexed Kubernetes job, which does not "
        "say how many pods there are; set JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES (`jpmhc launch gke` does), "
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
  address, count, index = values[VARIABLES[0]], _number(values, VARIABLES[1]), _number(values, VARIABLES[2])
  host, _, port = address.rpartition(":")
  if not (host and port.isdecimal() and 0 < int(port) < 2**16):
    raise ConfigError(f"JAX_COORDINATOR_ADDRESS={address!r}: expected host:port of process 0, such as 10.0.0.1:1234")
  if index >= count:
    raise ConfigError(f"JAX_PROCESS_ID={index}: expected 0 to JAX_NUM_PROCESSES - 1 = {count - 1}")
  return Launch("environment", address, count, index)


def _number(environ: Mapping[str, str], name: str) -> int:
  value = environ[name]
  if not value.isdecimal():
    raise ConfigError(f"{name}={value!r}: expected a whole number")
  return int(value)


def _slurm(environ: Mapping[str, str], count: int) -> Launch:
  job, step = (_serial(environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
  host = first_host(environ["SLURM_STEP_NODELIST"])
  index = _number(environ, "SLURM_PROCID")
  if index >= count:
    raise ConfigError(f"SLURM_PROCID={index}: expected 0 to {count - 1}, the step has {count} tasks")
  return Launch("slurm", f"{host}:{_FIRST_PORT + (31 * job + step) % _PORTS}", count, index, _slurm_devices(environ))


def _serial(text: str) -> int:
  """The number of a job or a step; where SLURM gives it a name, a number that all its processes agree on."""
  return int(text) if text.isdecimal() else zlib.crc32(text.encode())


def _slurm_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
  """One GPU for each task where SLURM shows every task of a node all of its GPUs; else all that the task sees."""
  visible, tasks = environ.get("CUDA_VISIBLE_DEVICES", ""), "SLURM_STEP_TASKS_PER_NODE"
  if not visible or not environ.get(tasks):
    return None
  node, local = (_number(environ, name) if name in environ else 0 for name in ("SLURM_NODEID", "SLURM_LOCALID"))
  here = next(itertools.islice(tasks_by_node(environ, tasks), node, None), 1)
  return (local,) if here > 1 and len(visible.split(",")) == here else None


def tasks_by_node(environ: Mapping[str, str], name: str) -> Iterator[int]:
  """The tasks on each node, from the variable `name` in SLURM's notation: '4(x2),1' gives 4, 4, 1.

  Raises ConfigError for text that is not in it.
  """
  for item in environ[name].split(","):
    match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,6})\))?", item.strip())
    if not match:
      raise ConfigError(f"{name}={environ[name]!r}: expected task counts of nodes, such as 8 or 4(x2),1")
    yield from itertools.repeat(int(match[1]), int(match[2] or 1))


def first_host(node_list: str) -> str:
  """The first host of a SLURM node list: 'rack[1-2]node[03-10],login' -> 'rack1node03'."""
  return next(hosts(node_list))


def hosts(node_list: str) -> Iterator[str]:
  """The hosts of a SLURM node list, in the order of `scontrol show hostnames`: the last bracket counts fastest.

  >>> list(hosts("gpu[008-010,12],rack[0-1]node[1-2].lan"))[2:6]
  ['gpu010', 'gpu12', 'rack0node1.lan', 'rack0node2.lan']

  Raises ConfigError for a list that SLURM does not write, when that part is reached.
  """
  for item in re.split(r",(?![^\[\]]*\])", node_list):  # commas outside brackets
    parts = re.findall(r"\[([^\[\]]*)\]|([^\[\]]+)", item.strip())
    if not parts or item.strip() != "".join(f"[{inside}]" if not text else text for inside, text in parts):
      raise ConfigError(f"SLURM_STEP_NODELIST={node_list!r}: expected host names such as gpu[001-004,7],login")
    yield from _joined(parts, node_list)


def _joined(parts: Sequence[tuple[str, str]], node_list: str) -> Iterator[str]:
  """Every name of (ranges in a bracket, plain text) parts, made as they are asked for."""
  if not parts:
    yield ""
    return
  (inside, text), *rest = parts
  for start in [text] if text else _indices(inside, node_list):
    yield from (start + end for end in _joined(rest, node_list))


def _indices(ranges: str, node_list: str) -> Iterator[str]:
  """'008-010,12' -> '008', '009', '010', '12': as wide as the first number of a range is written."""
  for part in ranges.split(","):
    match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
    if not match or int(match[2] or match[1]) < int(match[1]):
      raise ConfigError(f"SLURM_STEP_NODELIST={node_list!r}: expected ranges such as [001-004,7], not [{ranges}]")
    first, last = match[1], int(match[2] or match[1])
    yield from (f"{number:0{len(first)}d}" for number in range(int(first), last + 1))


def on_tpu_vm() -> bool:
  """A machine with TPU chips and the library to drive them."""
  chips = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*")]
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def has_kubernetes_client() -> bool:
  """Whether the package that JAX asks about the pods of a job is installed."""
  return importlib.util.find_spec("kubernetes") is not None
