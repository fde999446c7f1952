"""A process that dies, falls silent or gives up is named to all others; one that ends in good order is not."""

import queue
import socket
import threading

import pytest

from jpmhc_jax.core import schema
from jpmhc_jax.training import distributed
from jpmhc_jax.training.launches import Launch
from jpmhc_jax.training.lifeline import Lifeline

TOKEN = "secret"


class _Hub:
  """Process 0 and the port it listens on; `ended` receives the message with which it would end."""

  def __init__(self, processes, heartbeat_s=30.0):
    self.ended = queue.Queue()
    self.lifeline = Lifeline(0, heartbeat_s, self.ended.put)
    self.port, accept = self.lifeline.listen(TOKEN, processes, 10.0)
    self.ready = threading.Thread(target=accept)
    self.ready.start()

  def joined_by(self, index, heartbeat_s=30.0):
    ended = queue.Queue()
    peer = Lifeline(index, heartbeat_s, ended.put)
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
  assert "process 0 stops because process 1 did (its connection closed" in hub.ended.get(timeout=5)
  assert "process 2 stops because process 1 did" in ended.get(timeout=5)


def test_a_process_that_gives_up_says_why(trio):
  hub, [(_, ended), (failing, own)] = trio
  failing.report("DataError: no such file\nsecond line")
  for messages in (hub.ended, ended):
    assert "process 2 did (DataError: no such file second line). The last checkpoint is intact" in messages.get(
      timeout=5
    )
  assert own.empty()


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
      assert "process 1 did (silent for 0.4 s)" in hub.ended.get(timeout=5)


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
  monkeypatch.setattr(distributed.Lifeline, "listen", lambda *arguments: (5, lambda: None))
  monkeypatch.setattr(distributed.socket, "gethostbyname", lambda name: "127.0.1.1")
  distributed._watch(Launch("tpu", coordinator), schema.Processes())
  assert [message[:2] for message in messages] == [[told, 5]]
