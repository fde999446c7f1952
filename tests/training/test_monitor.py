"""A process that dies, falls silent or gives up is named to all others; one that ends in good order is not."""

import contextlib
import json
import queue
import socket
import threading

import pytest

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError, WorkdirError
from jpmhc_jax.training import workdir
from jpmhc_jax.training.hosts import distributed
from jpmhc_jax.training.hosts.launches import Launch
from jpmhc_jax.training.hosts.monitor import PeerMonitor

TOKEN = "secret"


class _Hub:
  """Process 0 and the port it listens on; `ended` receives the message with which it would end."""

  def __init__(self, processes, heartbeat_s=30.0):
    self.ended = queue.Queue()
    self.lifeline = PeerMonitor(0, heartbeat_s, lambda *end: self.ended.put(end))
    self.port, accept = self.lifeline.listen(TOKEN, processes, 10.0)
    self.ready = threading.Thread(target=accept)
    self.ready.start()

  def joined_by(self, index, heartbeat_s=30.0):
    ended = queue.Queue()
    peer = PeerMonitor(index, heartbeat_s, lambda *end: ended.put(end))
    peer.connect("127.0.0.1", self.port, TOKEN, 10.0)
    return peer, ended


@pytest.fixture
def trio():
  hub = _Hub(3)
  peers = [hub.joined_by(1), hub.joined_by(2)]
  hub.ready.join(10.0)
  yield hub, peers
  for lifeline in (hub.lifeline, peers[0][0], peers[1][0]):
    lifeline.close()


def test_a_killed_process_is_named_to_all_others(trio):
  hub, [(dying, _), (_, ended)] = trio
  for connection in dying._peers.values():  # what the system does for a killed process
    connection.shutdown(socket.SHUT_RDWR)
  assert "process 0 stops because process 1 did (its connection closed" in hub.ended.get(timeout=5)[0]
  assert "process 2 stops because process 1 did" in ended.get(timeout=5)[0]


@pytest.mark.parametrize("code", [69, 2])
def test_one_that_crashes_is_named_to_all_and_one_that_refuses_ends_them_with_its_own_words_and_code(code, trio):
  hub, [(_, ended), (failing, own)] = trio
  failing.report("no such file\nsecond line", code)
  for index, messages in ((0, hub.ended), (1, ended)):
    message, ending = messages.get(timeout=5)
    assert ending == code
    if code == 2:
      assert message == "process 2: no such file\nsecond line"
    else:
      assert f"process {index} stops because process 2 did (no such file\nsecond line). The last checkpoint" in message
  assert own.empty()


def test_process_0_that_refuses_ends_last(trio):
  """JAX aborts a process whose coordinator is gone, before it has said anything."""
  hub, peers = trio

  hub.lifeline.report("in use", 2)
  assert not any(thread.is_alive() for thread in hub.lifeline._listeners)
  assert [messages.get(timeout=0) for _, messages in peers] == [("process 0: in use", 2)] * 2


def test_a_stranger_that_finds_the_port_keeps_no_process_waiting():
  hub = _Hub(2, heartbeat_s=0.3)
  with socket.create_connection(("127.0.0.1", hub.port)):  # and says nothing
    peer, _ = hub.joined_by(1)
    hub.ready.join(5.0)
    assert not hub.ready.is_alive()
  for lifeline in (hub.lifeline, peer):
    lifeline.close()


def test_the_end_of_all_is_no_death(trio):
  hub, peers = trio
  for lifeline, _ in peers:
    lifeline.close()
  hub.lifeline.close()
  for ended in (hub.ended, peers[0][1], peers[1][1]):
    with pytest.raises(queue.Empty):
      ended.get(timeout=0.2)


def test_a_silent_process_counts_as_dead_and_a_stranger_does_not_count():
  hub = _Hub(2, heartbeat_s=0.4)
  with socket.create_connection(("127.0.0.1", hub.port)) as stranger:
    stranger.sendall(b"1 guess\n")
    with socket.create_connection(("127.0.0.1", hub.port)) as silent:
      silent.sendall(f"1 {TOKEN}\n".encode())
      assert "process 1 did (silent for 0.4 s)" in hub.ended.get(timeout=5)[0]


@pytest.mark.parametrize(
  ("other", "message"),
  [
    ({"checkpoint.every": 7}, "checkpoint.every is 4 on process 0, 7 on process 1: expected the same on every process"),
    ({"seed": 1, "--step": None}, "seed is 0 on process 0, 1 on process 1; --step is 8 on process 0, None on proc"),
    ({}, ""),
  ],
)
def test_processes_that_were_started_differently_all_refuse_by_the_names_that_differ(other, message, monkeypatch):
  own = {"checkpoint.every": 4, "seed": 0, "--step": 8}
  monkeypatch.setattr(distributed, "gather", lambda values: [values, values | other])
  with pytest.raises(ConfigError, match=message) if message else contextlib.nullcontext():
    distributed.agree(own)


def test_every_field_but_those_a_process_may_set_alone_is_agreed_on():
  config = schema.Config()
  assert set(dict(configs.leaves(config))) - set(workdir.agreed(config)) == set(workdir.OWN)
  json.dumps(workdir.agreed(config))


def test_what_process_0_refuses_all_refuse(monkeypatch):
  def refuse():
    raise WorkdirError("in use")

  with pytest.raises(WorkdirError, match="^in use$"):
    distributed.from_primary(refuse)
  monkeypatch.setattr(distributed, "is_primary", lambda: False)
  monkeypatch.setattr(distributed, "gather", lambda own: [[None, "WorkdirError", "in use"], own])
  with pytest.raises(WorkdirError, match="^in use$"):
    distributed.from_primary(refuse)


@pytest.mark.parametrize(("coordinator", "told"), [(None, "127.0.0.1"), ("10.0.0.1:1234", "10.0.0.1")])
def test_where_jax_finds_the_coordinator_process_0_tells_the_address_that_faces_the_others(
  coordinator, told, monkeypatch
):
  """Its host name would do harm: many systems write it beside 127.0.1.1 in /etc/hosts."""
  addresses, messages = ["", "127.0.0.1"], []

  def gather(own):
    if isinstance(own, str):
      return addresses
    messages.append(own)
    return [own]

  monkeypatch.setattr(distributed, "gather", gather)
  monkeypatch.setattr(distributed.PeerMonitor, "listen", lambda *arguments: (5, lambda: None))
  monkeypatch.setattr(distributed.socket, "gethostbyname", lambda name: "127.0.1.1")
  distributed._watch(Launch("tpu", coordinator), schema.Processes())
  assert [message[0][:2] for message in messages] == [[told, 5]]
