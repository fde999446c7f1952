"""This process: its identity, whether another one is gone, and settings that only take effect before it or JAX begins.

A process is seen from the same host, boot and process namespace. There its number and the moment it was started tell
it from a later one with the same number.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
import sys
import time
import zlib


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


# XLA on the CPU takes fresh memory for the temporaries of every step. With glibc's defaults that memory goes back to
# the system after each step and is faulted in again page by page: 49,000 faults and 85 ms of system time a step for a
# small TRM, of 190 ms in all. Keeping it in the process, in huge pages, makes the step 1.7–3 times faster (73 instead
# of 192 ms for plain TRM, 112–150 instead of 330–470 ms with four streams; 2 cores, width 96, batch 64). Two arenas,
# because in one the loop's thread waits for the threads that compute: dispatching a step takes 0.6 instead of 0.8–1.4
# ms, and a step and its memory stay the same. More arenas keep more memory.
TUNABLES = ":".join(
  f"glibc.malloc.{name}={value}"
  for name, value in (("hugetlb", 1), ("mmap_max", 0), ("trim_threshold", 4_000_000_000), ("arena_max", 2))
)


# Implies deterministic kernels (no atomic sums, which make up most of what differs) and no autotuning, which may choose
# another kernel in the next run. TPUs and CPUs repeat a run bit for bit without a flag.
DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"


def add_xla_flag(flag: str) -> None:
  """Appends to XLA_FLAGS, which XLA reads once, when JAX first looks for devices."""
  flags = os.environ.get("XLA_FLAGS", "").split()
  if flag not in flags:
    os.environ["XLA_FLAGS"] = " ".join([*flags, flag])


def restart_with_fast_allocation() -> None:
  """Replaces this process by itself with GLIBC_TUNABLES set, once; does nothing off Linux or when it is set already.

  OPENBLAS_NUM_THREADS becomes 1 where it is not set: the solvers of `spectral` factorise thousands of small matrices,
  and OpenBLAS' threads wait for each other actively, up to thirty times as long where other processes compute too.
  """
  if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
    return
  sys.stdout.flush()
  environment = {"OPENBLAS_NUM_THREADS": "1"} | os.environ | {"GLIBC_TUNABLES": TUNABLES}
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def keep_compiled_programs(folder: pathlib.Path | None = None) -> pathlib.Path | None:
  """Turns JAX's persistent compilation cache on: a second start of the same step reads it instead of compiling.

  Programs live in `folder`, by default ~/.cache/jpmhc_jax/<digest of this CPU>: XLA writes CPU programs for the
  instructions of one processor, and a home folder may be shared by several kinds. JAX_COMPILATION_CACHE_DIR names
  another folder, and turns the cache off when it is empty; then nothing is done here. Returns the folder; None without
  a cache, as for a user who has no home folder or cannot write there.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return None
  import jax  # not before the process has restarted itself

  try:
    folder = folder or pathlib.Path.home() / ".cache" / "jpmhc_jax" / _processor()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # RuntimeError: no HOME, and a user that the system does not know
    return None
  if not os.access(folder, os.W_OK):
    return None
  jax.config.update("jax_compilation_cache_dir", str(folder))
  drop_damaged(folder)
  return folder


def _processor() -> str:
  """A digest of the processor's name and instruction sets, as far as the system tells them."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = [" ".join(os.uname())]
  described = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))} or set(lines[:1]))
  return hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]


STAMP = ".checked"  # its time: what is older has been looked at
_ENTRIES = "*-cache"
_BEING_WRITTEN_S = 60.0  # a younger entry may be half written by a run that goes on
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def drop_damaged(folder: pathlib.Path) -> None:
  """Removes the entries of JAX's compilation cache that cannot be unpacked; looks only at those since the last time.

  A kill or a full disk leaves such an entry. JAX writes an entry in one go and never again: of one that is cut off it
  warns at every start, and compiles anew. A folder that cannot be read or written is left as it is.
  """
  with contextlib.suppress(OSError):
    stamp, now = folder / STAMP, time.time()
    since = stamp.stat().st_mtime if stamp.exists() else 0.0
    for path in folder.glob(_ENTRIES):
      if since <= path.stat().st_mtime < now - _BEING_WRITTEN_S and not is_whole(path.read_bytes()):
        path.unlink(missing_ok=True)
    stamp.touch()
    os.utime(stamp, (now - _BEING_WRITTEN_S,) * 2)


def is_whole(entry: bytes) -> bool:
  """Whether an entry can be unpacked; True for one that is packed in a way not known here."""
  if entry.startswith(_ZSTANDARD):
    try:
      import zstandard
    except ImportError:
      return True
    try:
      return bool(zstandard.ZstdDecompressor().decompress(entry))
    except zstandard.ZstdError:
      return False
  if entry.startswith(b"\x78"):
    try:
      return bool(zlib.decompress(entry))
    except zlib.error:
      return False
  return len(entry) >= len(_ZSTANDARD)
