"""One trainer a workdir: another is refused by name, a dead one is no obstacle, one that was overtaken stops."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny

from jpmhc_jax.core.errors import StorageError, WorkdirError
from jpmhc_jax.training import lease, loop, workdir
from jpmhc_jax.training.lease import Lease, NAME

HOLDER = """
import pathlib, sys
from jpmhc_jax.training import lease
with lease.held(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
  """Another process of this machine that holds the folder until its input ends."""
  command = [sys.executable, "-c", HOLDER, str(tmp_path)]
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()


@pytest.fixture
def hurried(monkeypatch):
  """Renewals and patience of tenths of a second."""
  for name, value in (("RENEW_S", 0.1), ("STALE_S", 0.6), ("GRACE_S", 0.1), ("_POLL_S", 0.02)):
    monkeypatch.setattr(lease, name, value)


def _elsewhere(folder, pid=1):
  """The file as a process of another host would have written it."""
  there = {"host": "gpu7", "boot": "b", "namespace": "n", "pid": pid, "since": "2026-01-01T00:00:00+00:00"}
  (folder / NAME).write_text(json.dumps(there | {"started": "5"}))


@pytest.mark.usefixtures("hurried")
def test_another_process_of_this_machine_is_named_and_left_alone(tmp_path, holder):
  message = rf"in use: process {holder.pid} on .* \(since 20.*trains there.*stop it, or choose another --workdir.*: rm "
  with pytest.raises(WorkdirError, match=message), loop.claimed(tiny.config(), tmp_path):
    pass
  assert not (tmp_path / "config.json").exists()
  holder.stdin.close()
  holder.wait()
  assert not (tmp_path / NAME).exists()  # a clean end leaves nothing
  with loop.claimed(tiny.config(), tmp_path), loop.claimed(tiny.config(), tmp_path):
    assert (tmp_path / NAME).exists()
  assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_process_of_this_machine_does_not_hold_up_the_next(reaped, tmp_path, holder):
  holder.send_signal(signal.SIGKILL)
  if reaped:
    holder.wait()
  began = time.monotonic()
  with lease.held(tmp_path):
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
  assert time.monotonic() - began < lease.GRACE_S


def test_a_process_number_that_was_given_out_again_is_another_process(tmp_path):
  there = lease._describe_self()
  (tmp_path / NAME).write_text(json.dumps(there | {"started": "1"}))
  with lease.held(tmp_path):
    assert json.loads((tmp_path / NAME).read_text())["started"] == there["started"]


@pytest.mark.parametrize(
  ("change", "uptime_s", "gone"),
  [
    ({"boot": "another"}, 10.0, True),  # the power failed, and the host is up again
    ({"boot": "another"}, 30.0, False),  # another host of the same name, which was alive since
    ({"boot": "another", "host": "gpu7"}, 10.0, False),
    ({"namespace": "another"}, 10.0, False),  # another container of this boot
  ],
)
@pytest.mark.usefixtures("hurried")
def test_a_lease_from_before_this_boot_is_not_waited_for(change, uptime_s, gone, tmp_path, monkeypatch, capsys):
  (tmp_path / NAME).write_text(json.dumps(lease._describe_self() | change))
  os.utime(tmp_path / NAME, (time.time() - 20,) * 2)
  monkeypatch.setattr(lease, "STALE_S", 20.5)
  monkeypatch.setattr(lease.process, "uptime_s", lambda: uptime_s)
  with lease.held(tmp_path):
    assert ("looking for a sign of life" in capsys.readouterr().err) is not gone


@pytest.mark.usefixtures("hurried")
def test_a_host_that_is_gone_is_waited_for_no_longer_than_its_lease(tmp_path, capsys):
  _elsewhere(tmp_path)
  began = time.monotonic()
  with lease.held(tmp_path):
    assert 0.5 < time.monotonic() - began < 30
  assert "process 1 on gpu7 (since 2026-01-01T00:00:00+00:00) may be training here" in capsys.readouterr().err


def test_a_lease_that_ran_out_long_ago_is_taken_at_once(tmp_path, capsys):
  _elsewhere(tmp_path)
  os.utime(tmp_path / NAME, (time.time() - 1000,) * 2)
  with lease.held(tmp_path):
    pass
  assert not capsys.readouterr().err


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("content", [None, "", '{"pid'])
def test_a_process_elsewhere_that_renews_is_not_disturbed(content, tmp_path, monkeypatch):
  """Also one whose file cannot be read."""
  _elsewhere(tmp_path)
  if content is not None:
    (tmp_path / NAME).write_text(content)
  monkeypatch.setattr(lease.time, "sleep", lambda seconds: os.utime(tmp_path / NAME))
  name = "process 1 on gpu7" if content is None else "another process"
  with pytest.raises(WorkdirError, match=f"in use: {name}"), lease.held(tmp_path):
    pass
  assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]


@pytest.mark.usefixtures("hurried")
def test_a_holder_renews_for_as_long_as_it_runs(tmp_path):
  with lease.held(tmp_path):
    time.sleep(0.05)
    os.utime(tmp_path / NAME, (0, 0))
    deadline = time.monotonic() + 5
    while (tmp_path / NAME).stat().st_mtime < 1 and time.monotonic() < deadline:
      time.sleep(0.02)
    assert (tmp_path / NAME).stat().st_mtime > 1
    lease.check()


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("removed", [True, False])
def test_a_process_that_was_overtaken_stops_before_it_writes(removed, tmp_path):
  with pytest.raises(WorkdirError, match="has taken over"), lease.held(tmp_path):
    (tmp_path / NAME).unlink()
    if not removed:
      _elsewhere(tmp_path)
    lease.confirm()
  assert (tmp_path / NAME).exists() != removed  # the successor's file is not touched


def test_of_two_at_once_one_wins(tmp_path):
  first, second = Lease(tmp_path), Lease(tmp_path)
  assert first._create() and not second._create()


def test_a_full_disk_leaves_no_half_of_a_file(tmp_path, monkeypatch):
  def full(descriptor, mode):
    os.close(descriptor)
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(lease.os, "fdopen", full)
  with pytest.raises(StorageError, match=r"running.json could not be written.*free space"), lease.held(tmp_path):
    pass
  assert not list(tmp_path.iterdir())


def test_only_process_0_holds_it(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir.distributed, "is_primary", lambda: False)
  monkeypatch.setattr(workdir.distributed, "from_primary", lambda compute: None)
  with loop.claimed(tiny.config(), tmp_path):
    assert not (tmp_path / NAME).exists()
