"""Disks that fill up, refuse and lose their power, and the limits of a process. Most of it needs root on Linux.

A power failure: the workdir lies on an ext4 image behind a loop device, mounted with commit=300 and data=writeback, so
that what nobody syncs stays in memory for minutes. All processes are stopped, the image is copied between two writes to
the device, and the run goes on from the copy: the kernel recovers its journal as it would after the cut. What was only
in memory is lost. What the device had taken counts as kept (a disk may lose some of that too, unless it was flushed).
"""

from collections.abc import Iterable
import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import time

OPTIONS = "loop,commit=300,data=writeback"
IMAGE_MIB = 96
SMALL_MIB = 64
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def run(*command: str | os.PathLike) -> str:
  """The output of a system command; RuntimeError with what it said."""
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
  return done.stdout.strip()


def why_no_power_failures(folder: pathlib.Path) -> str:
  """Why images cannot be mounted here; '' when they can."""
  if os.geteuid():
    return "mounting an image needs root"
  try:
    with contextlib.closing(PowerDisk(folder / "probe")):
      return ""
  except (OSError, RuntimeError) as error:
    return str(error)


class PowerDisk:
  """A mounted image; `path` is on it."""

  def __init__(self, folder: pathlib.Path):
    folder.mkdir(parents=True, exist_ok=True)
    self.image, self.path = folder / "disk.img", folder / "disk"
    self.path.mkdir(exist_ok=True)
    run("truncate", f"--size={IMAGE_MIB}M", self.image)
    run("mkfs.ext4", "-q", "-F", self.image)
    self._mount()

  def _mount(self) -> None:
    run("mount", "-o", OPTIONS, self.image, self.path)
    self._device = pathlib.Path("/sys/block", pathlib.Path(run("findmnt", "-no", "SOURCE", self.path)).name, "stat")

  def cut(self, processes: Iterable[subprocess.Popen]) -> None:
    """Takes the power from the disk and from the processes that write to it; the disk is there again, as it was."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
      process.send_signal(signal.SIGSTOP)
    while not all(_stopped(process.pid) for process in running):
      time.sleep(0.001)
    copy = self.image.with_suffix(".cut")
    while True:
      before = self._writes()
      shutil.copyfile(self.image, copy)
      if before == self._writes():
        break
    for process in running:
      process.kill()
      process.wait()
    run("umount", self.path)  # writes the rest to the old image, which is forgotten
    copy.replace(self.image)
    self._mount()

  def _writes(self) -> tuple[int, int]:
    """(requests in flight, writes finished), when none is in flight."""
    while True:
      fields = self._device.read_text().split()
      if fields[8] == "0":
        return 0, int(fields[4])
      time.sleep(0.001)

  def close(self) -> None:
    with contextlib.suppress(RuntimeError):
      run("umount", "--lazy", self.path)
    self.image.unlink(missing_ok=True)


def _stopped(pid: int) -> bool:
  """Whether every thread of a process stands still."""
  states = []
  for status in pathlib.Path(f"/proc/{pid}/task").glob("*/stat"):
    with contextlib.suppress(OSError):
      states.append(status.read_text().rpartition(")")[2].split()[0])
  return all(state in "TtZX" for state in states)


def rebooted(folder: pathlib.Path, number: int) -> list[str]:
  """A prefix for `launch.Start`: the processes are of another boot of this host, which was a moment ago."""
  boot = folder / f"boot-{number}"
  boot.write_text(f"boot-{number}\n")
  up = int(time.clock_gettime(time.CLOCK_BOOTTIME))
  script = f'mount --bind {boot} {BOOT_ID} && exec "$@"'
  return ["unshare", "--mount", "--time", f"--boottime=-{up}", "sh", "-c", script, "sh"]


class SmallDisk:
  """A file system of a few MiB in memory, which `fill` leaves no room on; `path` is on it."""

  def __init__(self, folder: pathlib.Path):
    self.path = folder / "small"
    self.path.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m", "jpmhc-faults", self.path)

  def fill(self, rest: int) -> None:
    """Leaves `rest` bytes free, at most."""
    with (self.path / "ballast").open("wb") as file:
      while (size := shutil.disk_usage(self.path).free - rest) > 0:
        with contextlib.suppress(OSError):  # a run has just taken some of it
          os.posix_fallocate(file.fileno(), 0, size)
          return

  def empty(self) -> None:
    (self.path / "ballast").unlink(missing_ok=True)

  def close(self) -> None:
    run("umount", "--lazy", self.path)


def forbid(folder: pathlib.Path) -> None:
  """Takes the right to write into a folder, from root too."""
  if os.geteuid():
    folder.chmod(0o555)
  else:
    run("chattr", "+i", folder)


def allow(folder: pathlib.Path) -> None:
  """Undoes `forbid`."""
  if os.geteuid():
    folder.chmod(0o755)
  else:
    run("chattr", "-i", folder)


def no_more_files(pid: int, more: int) -> None:
  """A running process may open only so many more files."""
  with contextlib.suppress(OSError):  # it has just ended
    used = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    lowest = next(number for number in range(len(used) + 1) if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest + more, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
