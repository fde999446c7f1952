"""Several processes as one run: joining, leaving, and the few things that they must agree on.

Process 0 is the primary: it alone writes metrics, evaluations and reports. Everything here does nothing, or answers for
one process, in a run that has only one.
"""

from collections.abc import Callable, Mapping
import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from typing import Any
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np

from jpmhc_jax.config import schema
from jpmhc_jax.core import errors
from jpmhc_jax.core.errors import ConfigError, UserError
from jpmhc_jax.core.terminal import cut
from jpmhc_jax.training.hosts import launches
from jpmhc_jax.training.hosts.monitor import EXIT_PEER_LOST, PeerMonitor

PATIENCE_S = 5.0
_ANYWHERE = "192.0.2.1"  # of a network that nobody has (RFC 5737): the way there is that of the default route

_MARGIN_S = 30.0
_REFUSAL_S = 60.0  # for so long one that refuses before it has joined waits for the others, to tell them

_joined = False
_lifeline: PeerMonitor | None = None


def join(settings: schema.Processes) -> None:
  """Joins the run that the environment describes (see `launches.detect`), before anything touches a device.

  Collectives between CPU processes go over gloo. Raises ConfigError when the variables make no sense or the others do
  not come within `processes.start_timeout_s`.
  """
  global _joined, _lifeline
  launch = launches.detect(os.environ, launches.on_tpu_vm(), launches.has_kubernetes_client())
  if launch is None or _joined:
    return
  _joined = True
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  explicit = launch.coordinator is not None
  failure = (
    f"{launch.source}: could not join {launch.processes or 'the'} processes at {launch.coordinator or 'the slice'} "
    f"within processes.start_timeout_s={settings.start_timeout_s:g}"
  )
  # JAX aborts where another does not come in time. So JAX has more time, and this ends the process in words.
  late = threading.Timer(
    settings.start_timeout_s, _end, [f"{failure}; start all of them at once", ConfigError.exit_code]
  )
  late.daemon = True
  late.start()
  try:
    jax.distributed.initialize(
      coordinator_address=launch.coordinator,
      num_processes=launch.processes,
      process_id=launch.index,
      local_device_ids=launch.local_devices,
      cluster_detection_method="deactivate" if explicit else None,
      initialization_timeout=int(settings.start_timeout_s + _MARGIN_S),
      heartbeat_timeout_seconds=int(settings.heartbeat_s),
      shutdown_timeout_seconds=int(settings.heartbeat_s),
    )
  except (RuntimeError, ValueError) as error:
    raise ConfigError(f"{failure} ({error}); start all of them at once") from error
  finally:
    late.cancel()
  if jax.process_count() > 1:
    try:
      _lifeline = _watch(launch, settings)
    except OSError as error:
      raise ConfigError(
        f"{launch.source}: process {jax.process_index()} of {jax.process_count()} could not reach process 0 within "
        f"processes.start_timeout_s={settings.start_timeout_s:g} ({error}); let them reach each other's ports"
      ) from error


def _watch(launch: launches.Launch, settings: schema.Processes) -> PeerMonitor:
  """Connects every process to process 0, whose address travels by a collective."""
  lifeline = PeerMonitor(jax.process_index(), settings.heartbeat_s)
  addresses = gather(_address_facing(_ANYWHERE))
  if is_primary():
    host = launch.coordinator.rsplit(":", 1)[0] if launch.coordinator else _address_facing(addresses[-1])
    token = secrets.token_hex(16)
    port, accept = lifeline.listen(token, jax.process_count(), settings.start_timeout_s)
    from_primary(lambda: [host, port, token])
    accept()
  else:
    host, port, token = from_primary(lambda: None)
    lifeline.connect(host, port, token, settings.start_timeout_s)
  return lifeline


def _address_facing(target: str) -> str:
  """This machine's address on the way to another. Its own name may stand for 127.0.1.1 in /etc/hosts. Sends nothing."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect((target, 9))
      return probe.getsockname()[0]
    except OSError:  # no way there
      return socket.gethostbyname(socket.gethostname())


def leave() -> None:
  """The end of a process of several: waits until all have got here."""
  global _lifeline
  if _lifeline is None:
    return
  barrier("leave")
  _lifeline.close()
  _lifeline = None
  jax.distributed.shutdown()


def refuse(error: UserError) -> None:
  """Tells the others of a launch that this process, which has not joined them and has said why, does not come.

  They end with its sentence and code, and so does it. Returns in a run of one process.
  """
  if _joined:
    return
  alone = threading.Timer(_REFUSAL_S, os._exit, [error.exit_code])
  alone.daemon = True
  alone.start()
  with contextlib.suppress(UserError):
    join(schema.Processes())
  if _lifeline is not None:
    _lifeline.report(str(error), error.exit_code)
    os._exit(error.exit_code)
  alone.cancel()


def _end(sentence: str, code: int) -> None:
  print(f"jpmhc: {sentence}", file=sys.stderr, flush=True)
  os._exit(code)


def abandon(error: BaseException) -> None:
  """Ends this process of several with an error, and the others with it. Returns in a run of one process.

  A UserError ends all of them with its sentence and exit code; after any other, this one prints the traceback and exits
  with 1. JAX's own shutdown is left out: it would wait for processes that may be stuck in a collective.
  """
  if _lifeline is None:
    return
  name = f"process {jax.process_index()}"
  if isinstance(error, UserError):
    code = error.exit_code
    _lifeline.hear_no_more()
    print(f"jpmhc: {name}: {cut(str(error))}", file=sys.stderr, flush=True)
    _lifeline.report(str(error), code)
  else:
    # A failed collective, in whatever words, is how a process often first hears of another's end: the lifeline says
    # whose it was, and ends this one.
    time.sleep(PATIENCE_S)
    code = 1
    traceback.print_exception(error)
    print(f"jpmhc: {name} stops", file=sys.stderr, flush=True)
    _lifeline.report(f"{type(error).__name__}: {error}", EXIT_PEER_LOST)
  sys.stdout.flush()
  os._exit(code)


def is_primary() -> bool:
  """Whether this process writes what a run writes once."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits for every process."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
  """The plain JSON value of every process, in their order, on every process."""
  if jax.process_count() == 1:
    return [value]
  # Bytes, because collectives would round float64 to float32; padded to one length.
  data = np.frombuffer(zlib.compress(json.dumps(value).encode()), np.uint8)
  sizes = np.ravel(multihost_utils.process_allgather(np.array([data.size], np.int32)))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: data.size] = data
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [
    json.loads(zlib.decompress(row[:size].tobytes()))
    for row, size in zip(rows.reshape(len(sizes), -1), sizes, strict=True)
  ]


def agree(values: Mapping[str, Any]) -> None:
  """Raises ConfigError, on every process, unless all have the same plain JSON values; it names each that differs."""
  everyone = gather(dict(values))
  rows = []
  for name in values:
    holders: dict[str, list[int]] = {}
    for index, theirs in enumerate(everyone):
      holders.setdefault(repr(theirs.get(name)), []).append(index)
    if len(holders) > 1:
      rows.append(f"{name} is " + ", ".join(f"{value} on {_processes(indices)}" for value, indices in holders.items()))
  if rows:
    raise ConfigError(f"{'; '.join(rows)}: expected the same on every process of a run; start all with one command")


def _processes(indices: list[int]) -> str:
  more = f" and {len(indices) - 3} more" if len(indices) > 3 else ""
  return f"process{'es' if len(indices) > 1 else ''} {', '.join(map(str, indices[:3]))}{more}"


def from_primary(compute: Callable[[], Any]) -> Any:
  """What `compute` returns on process 0, on every process; only process 0 calls it. A plain JSON value.

  A UserError that it raises there is raised on every process.
  """
  outcome, refusal = None, None
  if is_primary():
    try:
      outcome = [compute(), "", ""]
    except UserError as error:
      outcome, refusal = [None, type(error).__name__, str(error)], error
  value, kind, text = gather(outcome)[0]
  if kind:
    raise refusal or getattr(errors, kind, UserError)(text)
  return value
