"""The lease of a workdir, which lets one run train there at a time: a file that process 0 writes and renews.

A clean end removes the file; what a killed process left is no obstacle. Where the process would be visible (same host,
boot and process namespace), it is looked up: its number and the moment it was started. One of this host before its last
boot is gone. Elsewhere (another host, another container) the file's time decides, on the file system's own clock, or
watching the file for as long. Locks of the kernel are not used: network file systems have none, or keep those of a dead
host. In an object store the file is taken, renewed and taken over by writes that fail where another came first.
"""

from collections.abc import Iterator
import contextlib
import datetime
import os
import pathlib
import secrets
import shlex
import sys
import threading
import time
from typing import Any

from jpmhc_jax.core import process
from jpmhc_jax.core.errors import WorkdirError
from jpmhc_jax.core.files import create, exchange, renew, storing, temporary_beside, to_json
from jpmhc_jax.core.reading import json_line

NAME = "running.json"
RENEW_S = 15.0
STALE_S = 90.0  # six renewals; network file systems may show a file's time a minute late
GRACE_S = 3.0  # a process that was just killed may need a moment to be gone
_POLL_S = 0.25


class Lease:
  """The right to train in one folder."""

  def __init__(self, folder: pathlib.Path):
    self.path = folder / NAME
    self._own = to_json(_describe_self())
    self._successor: str | None = None
    self._over = threading.Event()
    self._renewing = threading.Thread(target=self._keep, daemon=True)

  def take(self) -> None:
    """Returns when it is this process's. Raises WorkdirError when another process trains there."""
    while not self._create():
      with contextlib.suppress(FileNotFoundError):  # given back just now
        holder = self.path.read_text()
        self._wait_for_its_end(holder)
        if self._take_over(holder):
          break
    self._renewing.start()

  def confirm(self) -> None:
    """Raises WorkdirError when another process has taken over, having heard nothing of this one for STALE_S."""
    self._renew()
    self.check()

  def check(self) -> None:
    """Raises WorkdirError as `confirm` does, by what the last renewal found: the file is not read."""
    if self._successor is not None:
      raise WorkdirError(
        f"{self.path.parent}: {_name(self._successor)} has taken over, because this process was silent for more than "
        f"{STALE_S:g} s, or {NAME} was removed; this one stops and writes nothing more"
      )

  def give_back(self) -> None:
    """Ends the renewals, and removes the file where it is still this process's."""
    self._over.set()
    with contextlib.suppress(OSError):
      if self.path.read_text() == self._own:
        self.path.unlink()

  def _create(self) -> bool:
    with storing(str(self.path)):
      return create(self.path, self._own)

  def _take_over(self, holder: str) -> bool:
    with storing(str(self.path)):
      return exchange(self.path, holder, self._own)

  def _wait_for_its_end(self, found: str) -> None:
    """Returns when the process that `found` names is gone; FileNotFoundError when it gave the folder back."""
    holder = _read(found)
    local = process.place().items() <= holder.items()
    renewed, began = self.path.stat().st_mtime_ns, time.monotonic()
    if self._before_this_boot(holder, renewed) or _is_own(holder):
      return
    patience = GRACE_S if local else STALE_S
    if not local and self._age_s(renewed) <= STALE_S:
      print(f"jpmhc: {self.path}: {_name(found)} may be training here; looking for a sign of life", file=sys.stderr)
    while process.lives(holder["pid"], holder["started"]) if local else self._age_s(renewed) <= STALE_S:
      over = time.monotonic() - began > patience
      if self.path.stat().st_mtime_ns != renewed or (local and over):
        if self.path.read_text() != found:
          return  # another one now: it is looked at anew
        raise WorkdirError(
          f"{self.path.parent} is in use: {_name(found)} trains there. Wait for its end or stop it, or choose another "
          f"--workdir. Where it is surely gone: rm {shlex.quote(str(self.path))}"
        )
      if over:
        return
      time.sleep(_POLL_S)

  def _before_this_boot(self, holder: dict[str, Any], renewed_ns: int) -> bool:
    """Whether the holder ran on this host before its boot: another host of this name would have renewed since."""
    here = process.place()
    if holder.get("host") != here["host"] or not here["boot"] or holder.get("boot") == here["boot"]:
      return False
    return self._age_s(renewed_ns) > process.uptime_s()

  def _age_s(self, renewed_ns: int) -> float:
    """Seconds since then on the clock of the file system, which may be another machine's."""
    probe = temporary_beside(self.path)
    with storing(str(probe)):
      probe.touch()
      try:
        return (probe.stat().st_mtime_ns - renewed_ns) / 1e9
      finally:
        probe.unlink()

  def _renew(self) -> None:
    try:
      if not renew(self.path, self._own) and not self._over.is_set():
        self._successor = self.path.read_text()
    except FileNotFoundError:
      if not self._over.is_set():
        self._successor = ""
    except OSError:
      pass  # a network file system may come back; the next renewal tells

  def _keep(self) -> None:
    while not self._over.wait(RENEW_S) and self._successor is None:
      self._renew()


def is_held(folder: pathlib.Path) -> bool:
  """Whether another process trains there: looked up where it would be visible; elsewhere it has renewed of late."""
  lease = Lease(folder)
  try:
    holder, renewed = _read(lease.path.read_text()), lease.path.stat().st_mtime_ns
  except FileNotFoundError:
    return False
  if process.place().items() <= holder.items():
    return process.lives(holder["pid"], holder["started"]) and not _is_own(holder)
  return lease._age_s(renewed) <= STALE_S


_held: dict[pathlib.Path, Lease] = {}


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[float]:
  """Holds the lease of an existing folder inside the block; one that this process holds already is not taken again.

  Yields when it was last renewed, on the clock of the file system.
  """
  folder = folder.resolve()
  if folder in _held:
    yield _held[folder].path.stat().st_mtime
    return
  lease = Lease(folder)
  lease.take()
  _held[folder] = lease
  try:
    yield lease.path.stat().st_mtime
  finally:
    del _held[folder]
    lease.give_back()


def confirm() -> None:
  """Looks whether every folder that this process holds is still its own; see `Lease.confirm`."""
  for lease in _held.values():
    lease.confirm()


def check() -> None:
  """The same from memory; see `Lease.check`."""
  for lease in _held.values():
    lease.check()


def give_back_all() -> None:
  """For an end without unwinding."""
  for lease in list(_held.values()):
    lease.give_back()


def _describe_self() -> dict[str, Any]:
  return process.place() | {
    "pid": os.getpid(),
    "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "started": process.started(os.getpid()),
    "token": secrets.token_hex(8),
  }


def _read(text: str) -> dict[str, Any]:
  """Empty where it cannot be read: the holder was about to write it, or lost its power."""
  holder = json_line(text)
  return holder if {"host", "boot", "namespace", "pid", "since", "started"} <= set(holder) else {}


def _is_own(holder: dict[str, Any]) -> bool:
  """Whether it is this process, which holds the lease no more and could not give it back: its storage was away."""
  own = process.place() | {"pid": os.getpid(), "started": process.started(os.getpid())}
  return own.items() <= holder.items()


def _name(text: str) -> str:
  holder = _read(text)
  return f"process {holder['pid']} on {holder['host']} (since {holder['since']})" if holder else "another process"
