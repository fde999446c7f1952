"""Notices at once when a process of the run dies, and ends the others with a message instead of letting them hang.

Every process holds a TCP connection to process 0 and sends a byte now and then. A killed process's connection is closed
by its system within milliseconds; one whose host is gone falls silent and counts as dead after the heartbeat time.
Process 0 tells the rest who it was. A process that waits in a collective cannot look at such news, so a thread ends it:
with the sentence and the exit code of one that refused to go on, with 69 where one died.
"""

from collections.abc import Callable
import json
import os
import socket
import sys
import threading
import time

from jpmhc_jax.core.files import to_json
from jpmhc_jax.training import lease

EXIT_PEER_LOST = 69
_GRACE_S = 2.0  # a process with an error of its own says that one instead: all may have the same
_LONGEST = 5000  # characters of a reason
_LEADER_S = _GRACE_S + 1.0  # process 0 ends last: JAX aborts every process that loses its coordinator


def _end(message: str, code: int) -> None:
  print(f"jpmhc: {message}", file=sys.stderr, flush=True)
  lease.give_back_all()
  os._exit(code)


class PeerMonitor:
  """The connections of one process. `report` before an abnormal exit, `close` on all processes after a barrier."""

  def __init__(self, index: int, heartbeat_s: float, end: Callable[[str, int], None] = _end):
    self._index, self._heartbeat, self._end = index, heartbeat_s, end
    self._peers: dict[int, socket.socket] = {}
    self._listeners: list[threading.Thread] = []
    self._lock = threading.Lock()
    self._closing = self._lost = False

  def listen(self, token: str, processes: int, timeout_s: float) -> tuple[int, Callable[[], None]]:
    """Process 0: opens a port and returns it with the function that waits until all others have connected."""
    server = socket.create_server(("", 0), backlog=processes)
    server.settimeout(timeout_s)

    def accept() -> None:
      with server:
        while len(self._peers) < processes - 1:
          connection, _ = server.accept()
          connection.settimeout(self._heartbeat)  # whoever else finds the port may say nothing
          try:
            name, _, rest = _line(connection).partition(" ")
          except OSError:
            name = rest = ""
          if rest == token and name.isdigit():
            self._add(int(name), connection)
          else:
            connection.close()
      self._start()

    return server.getsockname()[1], accept

  def connect(self, host: str, port: int, token: str, timeout_s: float) -> None:
    """Every other process: connects to process 0."""
    connection = socket.create_connection((host, port), timeout=timeout_s)
    connection.sendall(f"{self._index} {token}\n".encode())
    self._add(0, connection)
    self._start()

  def hear_no_more(self) -> None:
    """From here on the others' reports are ignored: this process ends for a reason of its own, which it says once."""
    with self._lock:  # held by what is ending this process already
      self._closing = True

  def report(self, reason: str, code: int = EXIT_PEER_LOST) -> None:
    """Tells the others why this process stops. Any `code` but that of a death is theirs too, and `reason` all they say.

    On process 0 it returns when they have ended, because JAX aborts those that lose their coordinator.
    """
    self._closing = True
    self._send(_stopped(self._index, reason, code))
    if self._index == 0:
      deadline = time.monotonic() + 2 * _LEADER_S
      for listener in self._listeners:
        listener.join(max(deadline - time.monotonic(), 0.0))

  def close(self) -> None:
    """Ends the watch; call it where every process has done its work."""
    self._closing = True
    self._send("bye")

  def _add(self, index: int, connection: socket.socket) -> None:
    connection.settimeout(self._heartbeat)
    self._peers[index] = connection

  def _start(self) -> None:
    for index, connection in self._peers.items():
      self._listeners.append(threading.Thread(target=self._listen_to, args=(index, connection), daemon=True))
      self._listeners[-1].start()
    threading.Thread(target=self._beat, daemon=True).start()

  def _beat(self) -> None:
    while not self._closing:
      self._send("alive")
      time.sleep(self._heartbeat / 4)

  def _listen_to(self, index: int, connection: socket.socket) -> None:
    with connection:
      self._read(index, connection)

  def _read(self, index: int, connection: socket.socket) -> None:
    while True:
      try:
        line = _line(connection)
      except TimeoutError:
        return self._fail(index, f"silent for {self._heartbeat:g} s")
      except OSError:
        line = ""
      if line == "bye":
        return None
      if not line:
        return self._fail(index, "its connection closed: killed, or its host is gone")
      if line.startswith("stopped "):
        who, reason, code = json.loads(line.removeprefix("stopped "))
        return self._fail(who, reason, code, _GRACE_S)

  def _fail(self, index: int, reason: str, code: int = EXIT_PEER_LOST, grace_s: float = 0.0) -> None:
    with self._lock:
      if self._closing or self._lost:
        return
      self._lost = True
    if self._index == 0:  # the others hear of it by process 0
      self._send(_stopped(index, reason, code))
    time.sleep(max(grace_s, _LEADER_S) if self._index == 0 and len(self._peers) > 1 else grace_s)
    if code == EXIT_PEER_LOST:
      reason = (
        f"process {self._index} stops because process {index} did ({reason}). The last checkpoint is intact; start all "
        "processes again with the same command to resume"
      )
    else:
      reason = f"process {index}: {reason}"
    with self._lock:
      if not self._closing:  # meanwhile this process may have come to an end of its own
        self._end(reason, code)

  def _send(self, text: str) -> None:
    for connection in self._peers.values():
      try:
        connection.sendall(text.encode() + b"\n")
      except OSError:
        continue  # its own listener notices


def _stopped(index: int, reason: str, code: int) -> str:
  return f"stopped {to_json([index, reason[:_LONGEST], code])}"


def _line(connection: socket.socket) -> str:
  """One line; '' when the connection was closed."""
  data = b""
  while not data.endswith(b"\n"):
    byte = connection.recv(1)
    if not byte:
      return ""
    data += byte
  return data.decode(errors="replace").rstrip("\n")
