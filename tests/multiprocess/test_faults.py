"""Real runs that are killed, told to stop, starved of disk and damaged, against one that was left alone."""

import contextlib
import json
import os
import pathlib
import secrets
import subprocess
import sys

import pytest

from experiments.faults import disks, launch
from jpmhc_jax.training.writers import JsonLines

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _break(tmp_path, *arguments):
  """The report of the harness on one series; its own checks must hold."""
  report = _run(tmp_path, *arguments)
  assert report["recovered"] == sum(report["injected"].values()) > 0
  return report


def _run(tmp_path, *arguments):
  out = tmp_path / "report.json"
  command = [sys.executable, "-m", "experiments.faults.run", f"--json={out}", *arguments]
  done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
  print(done.stdout)  # the counts, in the log of the tests
  assert done.returncode == 0, done.stdout + done.stderr
  return json.loads(out.read_text())


def test_a_power_failure_leaves_the_lines_that_were_synced_and_no_more(tmp_path):
  """The harness's disk, on which everything would survive if it kept what is only in memory."""
  if why := disks.why_no_power_failures(tmp_path):
    pytest.skip(why)
  with contextlib.closing(disks.PowerDisk(tmp_path)) as disk:
    lines = JsonLines(disk.path / "metrics.jsonl", 0)
    for step in range(1, 41):
      lines.write(step, {f"train/{name}": 0.1 * step for name in range(30)})
      if step == 20:
        lines.sync()
    lines.close()
    disk.cut([])
    steps = [line.get("step") for line in launch.lines(disk.path)]
  assert steps[:20] == list(range(1, 21)) and len(steps) < 40


@pytest.mark.slow
def test_every_kind_of_fault_once_with_a_fixed_seed(tmp_path):
  report = _break(tmp_path, "--seed=0", "--faults=8")
  assert len(report["injected"]) >= 7  # a start may be over before its kill
  assert (report["losses_equal"], report["leaves_equal"]) == (report["losses_all"], report["leaves_all"])
  assert report["damage_reported"] >= 1


@pytest.mark.slow
def test_kills_with_a_fresh_seed(tmp_path):
  seed = secrets.randbelow(2**32)
  report = _break(tmp_path, f"--seed={seed}", "--faults=3", "--kinds=kill,kill_save,kill_start", "--layouts=1x1")
  assert report["seed"] == seed and report["losses_equal"] == report["losses_all"]


@pytest.mark.slow
def test_one_two_and_four_processes_take_turns_and_a_dead_one_ends_the_others(tmp_path):
  report = _break(tmp_path, "--seed=1", "--faults=3", "--kinds=kill,sigterm", "--layouts=1x4,2x2,4x1")
  assert report["losses_all"] == 48 and report["largest_difference"] < 1e-5  # 5e-7 where it was measured
  assert report["peers_ended"] >= 1 and report["slowest_peer_s"] < 20


@pytest.mark.slow
def test_the_same_command_goes_on_and_adds_power_failures_and_storage_faults(tmp_path):
  common = ["--layouts=1x1", "--size=2", f"--folder={tmp_path / 'campaign'}", "--kills=2"]
  first = _run(tmp_path, *common)
  whole = _run(tmp_path, *common, "--power-failures=2", "--storage-faults=2", "--jobs=2")
  assert whole["seed"] == first["seed"] and whole["families"]["kills"] == first["families"]["kills"]
  for family, counts in whole["families"].items():
    if family not in whole["left_out"]:
      assert sum(counts["injected"].values()) >= 2
      assert (counts["losses_equal"], counts["leaves_equal"]) == (counts["losses_all"], counts["leaves_all"])
      assert counts["records_equal"] == counts["records_all"] > 0
