"""Real jobs through submitit with a stand-in for the trainer: skip, retry, stop, adopt, report."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import sys
import threading
import time

import pytest

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import UserError
from jpmhc_jax.reporting import sweep_folder
from jpmhc_jax.sweeps import executors, job, ledger, pool, search
from jpmhc_jax.sweeps.plan import Planned
from jpmhc_jax.sweeps.pool import Pool
from jpmhc_jax.sweeps.space import SweepError

FAKE = pathlib.Path(__file__).with_name("fake_trainer.py")


def planned(folder, plan, name=None):
  name = name or plan.replace("/", "-")
  return Planned(name, folder / name, (f"--plan={plan}",), schema.Config(), name)


def make_pool(folder, said=None, jobs=4, retries=1, **options):
  executor = executors.Executor("local", folder, "c.py", {}, program=(sys.executable, str(FAKE)), **options)
  return Pool(executor, ledger.Ledger(folder, {"command": ["jpmhc", "sweep"]}), jobs=jobs, retries=retries,
              say=(said if said is not None else []).append)  # fmt: skip


def run(folder, *plans, **options):
  said = []
  runs = [planned(folder, plan) for plan in plans]
  ending = pool.run_all(make_pool(folder, said, **options), runs)
  return {record.name: record for _, record in ending.runs}, ending, said


def starts(folder, name):
  return int((folder / name / "starts").read_text())


@pytest.mark.slow
def test_a_failure_is_tried_again_reported_and_stops_nobody(tmp_path):
  records, ending, said = run(tmp_path, "exit1", "exit1/exit0", "exit0", "exit2", "exit3", "die")
  states = {name: (record.state, record.attempts, record.exit_code) for name, record in records.items()}
  assert states == {
    "exit1": ("failed", 2, 1),
    "exit1-exit0": ("done", 2, 0),
    "exit0": ("done", 1, 0),
    "exit2": ("failed", 1, 2),  # bad input stays bad
    "exit3": ("diverged", 1, 3),  # and a run repeats bit for bit
    "die": ("failed", 2, -9),
  }
  assert ending.exit_code == 1
  assert (
    records["exit1"].message == "the reason for exit1"
    and sum(line.startswith("exit1: failed (exit code 1): the reason for exit1, ") for line in said) == 1
  )
  (done,) = (line for line in said if line.startswith("exit0: done"))
  assert re.fullmatch(r"exit0: done, step 4, exact_accuracy 0\.5, [\d.]+ s, \d of 6 over(, about \d.* left)?", done)
  assert [line.rpartition(" over")[0][-6:] for line in said if " over" in line] == [f"{k} of 6" for k in range(1, 7)]
  on_disk = json.loads((tmp_path / "sweep.json").read_text())
  assert {entry["name"]: entry["state"] for entry in on_disk["runs"]} == {n: state[0] for n, state in states.items()}
  assert on_disk["command"] == ["jpmhc", "sweep"]
  assert ledger.scores(tmp_path / "exit0") == ("exact_accuracy", True, [(1, 0.125), (2, 0.25), (3, 0.375), (4, 0.5)])


def test_a_restart_skips_what_is_done_and_tries_the_rest(tmp_path):
  run(tmp_path, "exit0", "exit1/exit1/exit0")
  records, ending, said = run(tmp_path, "exit0", "exit1/exit1/exit0")
  assert ending.exit_code == 0 and said[0] == "2 runs, 1 done already"
  assert starts(tmp_path, "exit0") == 1 and starts(tmp_path, "exit1-exit1-exit0") == 3
  (tmp_path / "sweep.json").unlink()  # what is done is known from the runs themselves
  _, ending, said = run(tmp_path, "exit0", "exit1/exit1/exit0")
  assert ending.exit_code == 0 and said == ["2 runs, 2 done already"]


IN_STORE = """
import sys
from jpmhc_jax.core import files, places
workdir = places.stored(dict(word.split("=", 1) for word in sys.argv[2:])["--workdir"])
files.write_atomically(workdir / "metrics.jsonl", '{"step": 4, "evaluation/exact_accuracy": 0.5}\\n')
print("trained at", workdir)
"""


def test_a_sweep_in_a_store_keeps_its_books_and_logs_there(tmp_path, bucket, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  folder, said = bucket / "sweep", []
  executor = executors.Executor("local", folder, "c.py", {}, program=(sys.executable, "-c", IN_STORE))
  for _ in range(2):
    book = ledger.Ledger(folder, {"command": ["jpmhc", "sweep"]})
    pool.run_all(Pool(executor, book, jobs=1, retries=0, say=said.append), [planned(folder, "exit0")])
  assert [line for line in said if line.startswith("1 runs")] == ["1 runs", "1 runs, 1 done already"]
  assert any(line.startswith("exit0: done, step 4, exact_accuracy 0.5") for line in said)
  assert f"trained at {folder}/exit0" in (folder / "exit0" / "log.txt").read_text()
  (run,), entries = sweep_folder.expand([folder])
  assert entries[run]["state"] == "done" and not job.is_running(run)
  with pytest.raises(SweepError, match=rf"^--workdir={folder}: a search keeps a database.*add --storage=URL"):
    search._database(folder / "search.db")


@pytest.mark.slow
def test_no_more_jobs_than_asked_for_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setenv("FAKE_PAUSE", "0.1")
  pool = make_pool(tmp_path, jobs=2)
  waiting, most = [planned(tmp_path, "exit0", f"r{i}") for i in range(4)], 0
  while waiting or pool.active:
    while waiting and pool.has_room:
      pool.start(waiting.pop())
    most = max(most, len(pool.active))
    pool.poll()
    time.sleep(0.05)
  assert most == 2 and all(starts(tmp_path, f"r{i}") == 1 for i in range(4))


@pytest.mark.slow
def test_local_jobs_see_the_gpus_of_the_sweep_or_their_own_share(tmp_path, monkeypatch):
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  run(tmp_path / "all", "exit0")
  assert "CUDA_VISIBLE_DEVICES=unset" in job.last_words(tmp_path / "all" / "exit0", 3)
  run(tmp_path / "share", "exit0", gpus_per_job=2)
  assert "CUDA_VISIBLE_DEVICES=0,1" in job.last_words(tmp_path / "share" / "exit0", 3)


def _wait_for(path):
  for _ in range(400):
    if path.exists():
      return
    time.sleep(0.05)
  raise AssertionError(f"{path} never came")


def test_ctrl_c_lets_the_runs_save_and_the_next_start_goes_on(tmp_path):
  def interrupt():
    _wait_for(tmp_path / "wait-exit0" / "pid")
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt).start()
  records, ending, said = run(tmp_path, "wait/exit0", "exit0", jobs=1)
  assert ending.exit_code == 75 and ending.signal == "SIGINT"
  assert (records["wait-exit0"].state, records["exit0"].state) == ("interrupted", "pending")
  records, ending, _ = run(tmp_path, "wait/exit0", "exit0", jobs=1)
  assert ending.exit_code == 0 and starts(tmp_path, "wait-exit0") == 2


def test_a_run_that_is_on_already_is_waited_for_not_started_twice(tmp_path):
  waiting = planned(tmp_path, "wait")
  other = make_pool(tmp_path, retries=0)
  other.start(waiting)
  _wait_for(waiting.workdir / "pid")
  said, mine = [], make_pool(tmp_path, retries=0)
  mine.say = said.append
  mine.start(waiting)
  assert said == ["wait: is running already, waiting for it"]
  assert mine.poll() == []
  os.kill(int((waiting.workdir / "pid").read_text()), signal.SIGTERM)
  while not (ended := mine.poll()):
    time.sleep(0.05)
  assert ended[0][1].state == "interrupted" and starts(tmp_path, "wait") == 1
  while other.active:
    other.poll()


def test_a_folder_of_another_config_is_refused_before_anything_starts(tmp_path):
  taken = planned(tmp_path, "exit0")
  taken.workdir.mkdir()
  configs.save(dataclasses.replace(schema.Config(), steps=7), taken.workdir / "config.json")
  with pytest.raises(UserError, match="holds another run .*steps: 7 there, 1000 now"):
    pool.run_all(make_pool(tmp_path), [planned(tmp_path, "exit0", "first"), taken])
  assert not (tmp_path / "first").exists()


@pytest.mark.parametrize(
  ("text", "reason"),
  [("{", "not readable as JSON"), ("[" * 10_000, "10,000 levels"), ('{"runs": 3}', "not a sweep's ledger")],
)
def test_a_broken_ledger_is_an_error_that_says_what_to_do(text, reason, tmp_path):
  (tmp_path / "sweep.json").write_text(text)
  with pytest.raises(UserError, match=f"sweep.json: .*{reason}.*finished runs are kept"):
    make_pool(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"exit_code": 0}', "[" * 10_000])
def test_a_damaged_outcome_is_none(text, tmp_path):
  (tmp_path / "outcome.json").write_text(text)
  assert job.outcome(tmp_path) is None


def test_damaged_lines_of_metrics_hold_no_score(tmp_path):
  damaged = ['{"evaluation/loss": 1.0}', "[" * 10_000 + '"evaluation/', '{"evaluation/']
  lines = ['{"step": 1, "evaluation/loss": 2.0}', *damaged]
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
  assert ledger.scores(tmp_path, "loss") == ("loss", False, [(1, 2.0)])


def test_commands_are_printed_as_one_types_them(tmp_path):
  run_ = Planned("a", tmp_path / "a b", ("--config.connection.options=x y",), schema.Config(), "k")
  assert executors.command("c.py:tiny", run_) == (
    f"jpmhc train --config=c.py:tiny '--workdir={tmp_path}/a b' '--config.connection.options=x y'"
  )
  assert executors.read_resources("partition=gpu, gpus_per_node=2") == {"partition": "gpu", "gpus_per_node": 2}
  with pytest.raises(UserError, match="name=value"):
    executors.read_resources("gpu")
