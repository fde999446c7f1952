"""SLURM through submitit, against a stand-in cluster of four shell scripts: submit, queue, finish, adopt, cancel."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import UserError
from jpmhc_jax.sweeps import executors, ledger, pool
from jpmhc_jax.sweeps.job import TrainJob
from jpmhc_jax.sweeps.plan import Planned
from jpmhc_jax.sweeps.pool import Pool

FAKE = pathlib.Path(__file__).with_name("fake_trainer.py")
SCRIPTS = {
  # Jobs wait in the queue until the file `open` exists.
  "sbatch": """
    id=$((1000 + $(ls $CLUSTER | grep -c '^[0-9]')))
    for script; do :; done
    cp $script $CLUSTER/$id; grep '^#SBATCH' $script >> $CLUSTER/directives
    (while [ ! -e $CLUSTER/open ]; do [ -e $CLUSTER/cancelled_$id ] && exit; sleep 0.05; done
     SLURM_JOB_ID=$id SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 bash $CLUSTER/$id) > $CLUSTER/log_$id 2>&1 &
    echo "Submitted batch job $id"
  """,
  "srun": """
    while [ "${1#-}" != "$1" ]; do case $1 in --output|--error) shift;; esac; shift; done
    exec "$@"
  """,
  "sacct": """
    echo 'JobID|State|NodeList'
    for id in $(ls $CLUSTER | grep '^[0-9]'); do
      if [ -e $CLUSTER/cancelled_$id ]; then echo "$id|CANCELLED|n"; else echo "$id|PENDING|n"; fi
    done
  """,
  "scancel": "touch $CLUSTER/cancelled_$1",
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  """A folder with a queue; jobs start once it holds a file `open`."""
  folder, scripts = tmp_path / "cluster", tmp_path / "bin"
  folder.mkdir()
  scripts.mkdir()
  for name, body in SCRIPTS.items():
    (scripts / name).write_text(f"#!/bin/bash\n{body}")
    (scripts / name).chmod(0o755)
  monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
  monkeypatch.setenv("CLUSTER", str(folder))
  return folder


def make_pool(folder):
  resources = executors.read_resources("partition=gpu,gpus_per_node=2,timeout_min=90")
  executor = executors.Executor("slurm", folder, "c.py", resources, program=(sys.executable, str(FAKE)))
  return Pool(executor, ledger.Ledger(folder, {}), jobs=0, retries=0, say=lambda _: None)


def planned(folder, plan):
  return Planned(plan, folder / plan, (f"--plan={plan}",), schema.Config(), plan)


def test_jobs_go_through_the_queue_with_their_resources(cluster, tmp_path):
  (cluster / "open").touch()
  ending = pool.run_all(make_pool(tmp_path / "s"), [planned(tmp_path / "s", plan) for plan in ("exit0", "exit2")])
  assert {record.name: record.state for _, record in ending.runs} == {"exit0": "done", "exit2": "failed"}
  directives = (cluster / "directives").read_text()
  for expected in ("--partition=gpu", "--gpus-per-node=2", "--time=90", "--nodes=1"):
    assert expected in directives


def test_a_queued_job_is_adopted_by_the_next_start_and_can_be_cancelled(cluster, tmp_path):
  run = planned(tmp_path / "s", "exit0")
  make_pool(tmp_path / "s").start(run)  # and then this sweep is killed
  again = make_pool(tmp_path / "s")
  pool.refresh(again, run)
  again.start(run)
  assert [path.name for path in cluster.iterdir() if path.name.isdigit()] == ["1000"]
  again.stop_all()
  assert again.book.records["exit0"].state == "interrupted" and (cluster / "cancelled_1000").exists()
  (cluster / "open").touch()
  assert pool.run_all(make_pool(tmp_path / "s"), [run]).exit_code == 0


def test_a_preempted_job_saves_and_is_queued_again(tmp_path, monkeypatch):
  monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
  workdir = tmp_path / "run"
  workdir.mkdir()
  command = (sys.executable, str(FAKE), "train", f"--workdir={workdir}", "--plan=wait/exit0")
  job = TrainJob(workdir, command, {})
  job._process = subprocess.Popen(command)
  while not (workdir / "pid").exists():
    time.sleep(0.02)
  queued = job.checkpoint()
  assert job._process.returncode == 75
  assert queued.function.command == command and queued.function() == 0


def test_without_slurm_the_error_says_so(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(UserError, match="--executor=slurm: .*srun"):
    make_pool(tmp_path)
