"""A run whose workdir is an address is the run of a folder, bit for bit, whatever happens to it or to the store."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import chex
import pytest
import tiny

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError, StorageError, WorkdirError
from jpmhc_jax.main import main
from jpmhc_jax.runs import run as runs
from jpmhc_jax.training import inherit, lease, loop
from jpmhc_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("compiled_once")


def _config(**changes):
  checkpoint = schema.Checkpoint(every=4, keep=2)
  logging = schema.Logging(every=1, tensorboard=True)
  return tiny.config(
    **{"checkpoint": checkpoint, "evaluation": schema.Evaluation(every=4), "logging": logging, **changes}
  )


class _Evaluation:
  """Counts, and does `then` at its first call."""

  main_metric, higher_is_better = "exact_accuracy", True

  def __init__(self, then=lambda: None):
    self._then = [then]

  def __call__(self, state, step):
    while self._then:
      self._then.pop()()
    return {"exact_accuracy": step / 100}


def _run(workdir, config=None, evaluate=None):
  config = config or _config()
  return loop.Run(tiny.setup(config), tiny.dataset(config), workdir, evaluate or _Evaluation(), None)


def _losses(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def _steps(workdir):
  with contextlib.closing(Checkpoints(workdir / "checkpoints", owner=False)) as checkpoints:
    return checkpoints.steps()


@pytest.fixture(scope="module")
def whole(compiled_once, tmp_path_factory):
  """(the workdir on a disk, its final state) of a run that nothing happened to."""
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, loop.train(_run(workdir), ["train"])


def _names(workdir, pattern):
  return sorted(path.name for path in workdir.glob(pattern))


def test_a_run_in_a_store_is_the_run_of_a_folder(whole, bucket, capsys):
  workdir = bucket / "runs" / "first"
  state = loop.train(_run(workdir), ["train"])
  chex.assert_trees_all_equal(state, whole[1])
  assert _losses(workdir) == _losses(whole[0]) and len(_losses(workdir)) == 8
  assert _names(workdir, "*") == _names(whole[0], "*")
  assert _names(workdir, "checkpoints/*") == _names(whole[0], "checkpoints/*") == ["4", "8", "scores.json"]
  assert len(_names(workdir, "tensorboard/*")) == 1 and len(_names(workdir, "checkpoints/8/state/*")) > 1
  assert configs.restore(workdir / "config.json") == configs.restore(whole[0] / "config.json")
  assert f"{workdir}/checkpoints/8" in " ".join(capsys.readouterr().out.split())  # the best, by its address
  with pytest.raises(ConfigError, match=f"^{workdir} holds a run with another config"):
    loop.train(_run(workdir, dataclasses.replace(_config(), seed=1)), ["train"])


def test_a_connection_that_is_lost_ends_the_run_and_the_same_command_resumes(whole, server, bucket):
  workdir = bucket / "run"
  with pytest.raises(StorageError, match=rf"{workdir}.*see that the store can be reached.*run the same command"):
    loop.train(_run(workdir, evaluate=_Evaluation(server.stop)), ["train"])
  server.start()
  assert _steps(workdir) == [4]
  chex.assert_trees_all_equal(loop.train(_run(workdir), ["train"]), whole[1])
  assert _losses(workdir) == _losses(whole[0])


def test_a_bucket_that_denies_is_a_sentence_before_and_in_the_middle_of_a_run(server, bucket):
  workdir = bucket / "run"
  with server.denying(), pytest.raises(StorageError, match="running.json could not be written: .*credentials"):
    loop.train(_run(workdir), ["train"])
  loop.train(_run(workdir), ["train"])
  with contextlib.closing(Checkpoints(workdir / "checkpoints", owner=False)) as checkpoints:
    with (
      server.denying(),
      pytest.raises(StorageError, match=f"^{workdir}/checkpoints: could not be read .*credentials"),
    ):
      checkpoints.restore(_run(workdir).setup, _run(workdir).dataset, 8)
  assert _steps(workdir) == [4, 8] and not list(workdir.glob("damaged/*"))


@pytest.mark.parametrize("seen", ["in use", "has saved this step"])
def test_one_trainer_at_a_time(seen, bucket, monkeypatch):
  """The lease refuses the second; where both believe to have it, the manifest of a step can be written once."""
  workdir = bucket / "run"
  if seen == "in use":
    code = "import sys, pathlib\nfrom jpmhc_jax.core import places\nfrom jpmhc_jax.training import lease\n"
    code += "with lease.held(places.stored(sys.argv[1])):\n  print('held', flush=True)\n  sys.stdin.read()\n"
    command = [sys.executable, "-c", code, str(workdir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
      assert other.stdout.readline() == "held\n" and lease.is_held(workdir)
      with pytest.raises(WorkdirError, match=rf"^{workdir} is in use: process {other.pid} on .*rm "):
        loop.train(_run(workdir), ["train"])
      other.kill()
      other.wait()
    assert not lease.is_held(workdir)
    with lease.held(workdir):  # what a killed one left is no obstacle
      assert json.loads((workdir / lease.NAME).read_text())["pid"] == os.getpid()
    assert not (workdir / lease.NAME).exists()
  else:

    def publish():
      (workdir / "checkpoints" / "8" / "manifest.json").write_text("{}")

    with pytest.raises(WorkdirError, match=f"{workdir}/checkpoints/8: another process has saved this step"):
      loop.train(_run(workdir, evaluate=_Evaluation(publish)), ["train"])
    assert [path.name for path in (workdir / "checkpoints" / "8").glob("*")] == [
      "manifest.json"
    ]  # nothing else written


def test_a_holder_renews_and_one_that_was_overtaken_stops(bucket, monkeypatch):
  with pytest.raises(WorkdirError, match="has taken over"), lease.held(bucket / "run"):
    renewed = (bucket / "run" / lease.NAME).stat().st_mtime_ns
    lease.confirm()
    assert (bucket / "run" / lease.NAME).stat().st_mtime_ns >= renewed
    (bucket / "run" / lease.NAME).write_text('{"pid": 1}')
    lease.confirm()


def test_a_damaged_checkpoint_is_set_aside_and_half_a_save_is_none(whole, bucket):
  workdir = bucket / "run"
  loop.train(_run(workdir), ["train"])
  step = workdir / "checkpoints" / "8"
  largest = max(step.glob("state/d/*"), key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:-10])
  (workdir / "checkpoints" / "10" / "state" / "half").write_text("a save that was killed")
  assert _steps(workdir) == [4, 8]
  chex.assert_trees_all_equal(loop.train(_run(workdir), ["train"]), whole[1])
  assert _names(workdir, "checkpoints/*") == ["4", "8", "scores.json"] and _names(workdir, "damaged/*") == ["8"]
  assert inherit.read_source(workdir).step == 8


def test_a_run_is_read_by_its_address(bucket, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  workdir = bucket / "runs" / "one"
  loop.train(_run(workdir), ["train"])
  assert main(["report", str(workdir), "--out=page.html"]) == 0 and "one" in (tmp_path / "page.html").read_text()
  assert main(["report", str(bucket / "runs")]) == 2
  assert f"jpmhc report {workdir}" in capsys.readouterr().err
  run = runs.load(str(workdir))
  assert len(run.metrics["train/loss"].steps) == 8 and run.config == _config()
  assert str(run.report()) == f"{workdir}/report.html"
  assert (workdir / "report.html").read_text().lower().startswith("<!doctype html>")
  assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
  with pytest.raises(ConfigError, match=f"{bucket}/none/config.json: no such file; is {bucket}/none a workdir"):
    runs.load(f"{bucket}/none")


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[1:3]
import test_store_runs as here
from jpmhc_jax.core import places
from jpmhc_jax.core.objects import ObjectPath
upload = ObjectPath.upload
def dies(self, folder):
  if self.name == "8":
    names = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in names[len(names) // 2:]:
      path.unlink()
    upload(self, folder)
    os.kill(os.getpid(), signal.SIGKILL)
  upload(self, folder)
ObjectPath.upload = dies
here.loop.train(here._run(places.stored(sys.argv[3])), ["train"])
"""


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_a_save_resumes_bit_for_bit(whole, bucket):
  workdir, here = bucket / "run", pathlib.Path(__file__).parent
  command = [sys.executable, "-c", KILLED, str(here), str(here.parents[1]), str(workdir)]
  killed = subprocess.run(command, check=False, capture_output=True)
  assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
  assert _names(workdir, "checkpoints/8/*") and _steps(workdir) == [4]
  assert (workdir / lease.NAME).is_file() and not lease.is_held(workdir)
  chex.assert_trees_all_equal(loop.train(_run(workdir), ["train"]), whole[1])
  assert _losses(workdir) == _losses(whole[0])
  assert main(["evaluate", f"--workdir={workdir}"]) == 0 and (workdir / "evaluation" / "step_8.json").is_file()
