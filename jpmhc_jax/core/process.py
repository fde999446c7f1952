"""The identity of a process, and whether another one is gone, as far as the system tells.

A process is seen from the same host, boot and process namespace. There its number and the moment it was started tell
it from a later one with the same number.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
import time


@functools.cache
def place() -> dict[str, str]:
  """What processes share that see each other's numbers: `host`, `boot`, `namespace`; '' where the system is silent."""
  boot = namespace = ""
  with contextlib.suppress(OSError):
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.readlink("/proc/self/ns/pid")
  return {"host": platform.node(), "boot": boot, "namespace": namespace}


def started(pid: int) -> str | None:
  """When a process was started, in the system's own count, '' where it does not say; None when there is none."""
  try:
    state, *fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
  except OSError:
    pass
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass
  return ""


def lives(pid: int, since: str) -> bool:
  """Whether the process of this place that had this number and this `started` is still there."""
  return started(pid) in (since, "")


def uptime_s() -> float:
  """Seconds since this host was booted; infinite where it does not say."""
  clock = getattr(time, "CLOCK_BOOTTIME", None)
  return float("inf") if clock is None else time.clock_gettime(clock)


def mark() -> str:
  """This process in a file's name: number, start and a digest of the place."""
  return _mark(os.getpid())


@functools.cache
def _mark(pid: int) -> str:
  return f"{pid}-{started(pid)}-{_digest()}"


def left_behind(marked: str) -> bool | None:
  """Whether the process that made such a mark is gone; None where it cannot be seen from here."""
  pid, since, digest = marked.split("-")
  return not lives(int(pid), since) if digest == _digest() else None


def _digest() -> str:
  return hashlib.sha256(" ".join(place().values()).encode()).hexdigest()[:8]
