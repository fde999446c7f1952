"""`jpmhc sweep`: what it prints, and one real sweep that is killed, goes on, and ends with a report."""

import functools
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import optuna
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core import process
from jpmhc_jax.main import main
from jpmhc_jax.sweeps import estimate, executors

FAKE = pathlib.Path(__file__).with_name("fake_trainer.py")
ROOT = pathlib.Path(__file__).resolve().parents[2]
SWEEP = """
from jpmhc_jax.sweeps import cases, chain, seeds, sweep

def get_sweep():
  missing = {"data.kind": "arc", "data.arc.dataset": "folder", "data.arc.folder": "/no/such/folder"}
  return chain(sweep("connection.mixer", ["cayley", "identity"]), cases(missing))
"""


@pytest.fixture
def arguments(tmp_path, monkeypatch):
  """The command line of a sweep over two mixers of a 6-step run and one run without its data.

  A dry run measures the fake trainer's steps.
  """
  faked = functools.partial(estimate.measured, program=(sys.executable, str(FAKE)))
  monkeypatch.setattr(estimate, "measured", faked)
  config = tiny.config(
    steps=6,
    mesh=schema.Mesh(data=-1),
    checkpoint=schema.Checkpoint(every=2),
    evaluation=schema.Evaluation(every=3),
    logging=schema.Logging(every=1, tensorboard=False, diagnostics_every=3),
  )
  tiny.write_config(tmp_path / "config.py", config)
  (tmp_path / "sweep.py").write_text(SWEEP)
  return [
    "sweep", f"--config={tmp_path / 'config.py'}", f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={tmp_path / 's'}",
  ]  # fmt: skip


def test_a_dry_run_prints_every_command_and_touches_nothing(arguments, tmp_path, capsys):
  assert main([*arguments, "--dry-run", "--config.seed=3"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == (
    f"jpmhc train --config={tmp_path / 'config.py'} --workdir={tmp_path / 's' / 'mixer=cayley'} "
    "--config.seed=3 --config.connection.mixer=cayley"
  )
  assert len(lines) == 3 and not (tmp_path / "s").exists()
  assert main([*arguments, "--dry-run", "--seeds=2"]) == 0
  ended = capsys.readouterr()
  assert "6 of 6 runs to train; mixer=cayley,seed=0 came to no second step in 5 min 0 s" in ended.err
  seeded = [line.partition(str(tmp_path / "s"))[2] for line in ended.out.splitlines()]
  assert len(seeded) == 6 and "--config.connection.mixer=cayley --config.seed=1" in seeded[1]
  assert main([*arguments, "--search=optuna", "--seeds=2"]) == 2


def test_a_dry_run_tells_the_time_by_the_steps_that_were_measured(arguments, tmp_path, capsys):
  folder = tmp_path / "s" / "mixer=cayley"
  folder.mkdir(parents=True)
  lines = [{"step": 1, "time/elapsed_s": 30.0}, {"step": 4, "time/elapsed_s": 40.0}, {"step": 5, "train/loss": 1.0}]
  (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  assert main([*arguments, "--dry-run"]) == 0
  words = "sweep: 3 of 3 runs to train, about 3 min 0 s one after the other: 10 s a step, measured in 1 of them\n"
  assert capsys.readouterr().err == words
  assert main([*arguments, "--dry-run", "--jobs=3"]) == 0
  assert "about 1 min 0 s 3 at a time" in capsys.readouterr().err


def test_a_dry_run_measures_the_first_steps_of_the_first_run(arguments, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("FAKE_PLAN", "steps")
  monkeypatch.setenv("FAKE_PID", str(tmp_path / "pid"))
  assert main([*arguments, "--dry-run", "--jobs=0"]) == 0
  first, words = capsys.readouterr().err.splitlines()
  assert first == "measuring the first steps of mixer=cayley …"
  found = re.fullmatch(
    r"sweep: 3 of 3 runs to train, about (.+) s 3 at a time: 0.2 s a step, measured in mixer=cayley; evaluations come "
    "on top",
    words,
  )
  assert float(found[1]) >= 1.2  # six steps, and what the start took beside the ten that came at once
  number, *command = (tmp_path / "pid").read_text().split()
  assert command[-1] == "--config.budget_seconds=300.0" and "--config.logging.every=1" in command
  with pytest.raises(ProcessLookupError):
    os.kill(int(number), 0)
  assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
  ("plan", "more", "words"),
  [
    ("exit2", [], "3 of 3 runs to train; the reason for exit2"),
    ("steps", ["--executor=tpu"], "no step has been recorded in this --workdir, and they train elsewhere"),
  ],
)
def test_a_dry_run_says_why_it_knows_no_time(plan, more, words, arguments, monkeypatch, capsys):
  monkeypatch.setenv("FAKE_PLAN", plan)
  assert main([*arguments, "--dry-run", *more]) == 0
  assert words in capsys.readouterr().err


def test_every_run_has_an_absolute_folder(arguments, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert main([*arguments[:-1], "--workdir=s", "--dry-run"]) == 0
  assert f"--workdir={tmp_path / 's' / 'mixer=cayley'} " in capsys.readouterr().out


def test_the_tpu_executor_prints_launch_lines(arguments, tmp_path, capsys):
  assert main([*arguments, "--executor=tpu"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("#") and len(lines) == 4
  launched = shlex.split(lines[1].replace("$NAME", "pod").replace("$ZONE", "z").replace("$TYPE", "v5litepod-16"))
  printed = subprocess.run(
    [sys.executable, "-m", "jpmhc_jax", *launched[1:3], "--dry-run", *launched[3:]], cwd=ROOT, capture_output=True,
    text=True, check=True,
  ).stdout  # fmt: skip
  assert "--worker=all" in printed and "train" in printed and "mixer=cayley" in printed
  assert not (tmp_path / "s").exists()


def test_bad_input_is_named_before_anything_starts(arguments, tmp_path, capsys):
  (tmp_path / "sweep.py").write_text(SWEEP.replace('"identity"', '"identitty"'))
  assert main(arguments) == 2
  error = capsys.readouterr().err
  assert "identitty" in error and "Did you mean 'identity'" in error and "Traceback" not in error
  assert main([*arguments, "--config.steps=many"]) == 2
  assert main([*arguments, "--search=optuna", "--dry-run"]) == 2
  assert "there is no list of commands" in capsys.readouterr().err
  assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("more", [["--dry-run"], ["--search=optuna", "--trials=2"], []])
def test_a_metric_that_the_runs_will_not_record_is_refused_before_the_first(more, arguments, tmp_path, capsys):
  (tmp_path / "sweep.py").write_text(
    "from jpmhc_jax.sweeps import Sweep, sweep\n\n\n"
    "def get_sweep():\n  return Sweep(sweep('optimizer.learning_rate', [1e-3, 1e-2]), metric='exact_acuracy')\n"
  )
  assert main([*arguments, *more]) == 2
  error = capsys.readouterr().err
  assert "Sweep.metric='exact_acuracy': expected one of loss, lm_loss" in error
  assert "Did you mean 'exact_accuracy'?" in error and "Traceback" not in error
  assert not list(tmp_path.glob("s/*/metrics.jsonl"))
  (tmp_path / "sweep.py").write_text((tmp_path / "sweep.py").read_text().replace("acuracy", "accuracy"))
  assert main([*arguments, "--dry-run"]) == 0


def test_a_sweep_in_a_relative_folder_goes_on_from_another_one(arguments, tmp_path, monkeypatch, capsys):
  """The runs and what is known of them stay where the first start put them; what a killed sweep left goes."""
  (tmp_path / "sweep.py").write_text("from jpmhc_jax.sweeps import seeds\n\n\ndef get_sweep():\n  return seeds(1)\n")
  program = (sys.executable, str(FAKE))
  started = functools.partialmethod(executors.Executor.__init__, program=program)
  monkeypatch.setattr(executors.Executor, "__init__", started)
  monkeypatch.setenv("FAKE_PLAN", "exit1/exit0")
  (tmp_path / "here").mkdir()
  (tmp_path / "there").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  assert main([*arguments[:-1], "--workdir=my sweep", "--retries=0"]) == 1
  folder = tmp_path / "here" / "my sweep"
  assert (folder / "run" / "outcome.json").is_file()
  ended = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
  left, kept = (folder / f".page.html.{mark}.tmp" for mark in (_mark(int(ended)), process.mark()))
  left.touch()
  kept.touch()
  monkeypatch.chdir(tmp_path / "there")
  capsys.readouterr()
  assert main([*arguments[:-1], "--workdir=../here/my sweep"]) == 0
  assert not left.exists() and kept.exists()
  assert (folder / "run" / "starts").read_text() == "2"
  monkeypatch.setenv("HOME", str(tmp_path / "here"))
  capsys.readouterr()
  assert main([*arguments[:-1], "--workdir=~/my sweep"]) == 0
  assert "1 runs, 1 done already" in capsys.readouterr().out and not list((tmp_path / "there").iterdir())
  runs = json.loads((folder / "sweep.json").read_text())["runs"]
  assert [(run["workdir"], run["state"]) for run in runs] == [("run", "done")]


def _mark(pid):
  """As `process.mark` of a process that is gone."""
  own = process.mark().split("-")
  return "-".join([str(pid), "1", own[-1]])


@pytest.mark.slow
def test_optuna_searches_with_the_real_trainer(arguments, tmp_path):
  """The score of a trial is what its run's last evaluation wrote, and both trials are reported."""
  space = "product(between('optimizer.learning_rate', 1e-3, 1e-1, log=True), sweep('connection.mixer', ['cayley']))"
  (tmp_path / "sweep.py").write_text(
    "from jpmhc_jax.sweeps import between, product, Sweep, sweep\n\n\n"
    f"def get_sweep():\n  return Sweep({space}, metric='accuracy')\n"
  )
  assert main([*arguments, "--search=optuna", "--trials=2"]) == 0
  storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 's' / 'search.db'}")
  trials = optuna.load_study(study_name="s", storage=storage).trials
  storage.remove_session()
  storage.engine.dispose()
  assert len({trial.user_attrs["point"]["optimizer.learning_rate"] for trial in trials}) == 2
  for trial in trials:
    (name,) = trial.user_attrs["runs"]
    last = json.loads((tmp_path / "s" / name / "evaluation" / "step_6.json").read_text())
    assert trial.value == pytest.approx(last["metrics"]["accuracy"])
    assert sorted(trial.intermediate_values) == [3, 6]
  assert "2 runs: 2 done" in (tmp_path / "s" / "report.html").read_text()


@pytest.mark.slow
def test_a_real_sweep_is_killed_goes_on_and_is_reported(arguments, tmp_path):
  command = [sys.executable, "-m", "jpmhc_jax", *arguments, "--jobs=2"]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
  cayley = tmp_path / "s" / "mixer=cayley"
  deadline = time.monotonic() + 300
  while not (cayley / "metrics.jsonl").exists():
    assert time.monotonic() < deadline and first.poll() is None
    time.sleep(0.05)
  first.send_signal(signal.SIGTERM)
  assert first.wait(timeout=120) == 75 and "start the same sweep to go on" in first.stdout.read()
  first.stdout.close()
  states = {run["name"]: run["state"] for run in json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]}
  assert "running" not in states.values()

  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
  assert done.returncode == 1, done.stderr
  runs = {run["name"]: run for run in json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]}
  failed = next(run for name, run in runs.items() if "mixer" not in name)
  assert [runs[f"mixer={name}"]["state"] for name in ("cayley", "identity")] == ["done", "done"]
  assert failed["state"] == "failed" and failed["exit_code"] == 2 and "/no/such/folder" in failed["message"]
  assert "/no/such/folder" in done.stdout
  steps = [
    json.loads(line)["step"] for line in (cayley / "metrics.jsonl").read_text().splitlines() if "train/loss" in line
  ]
  assert steps == [1, 2, 3, 4, 5, 6]  # nothing lost, nothing twice
  page = (tmp_path / "s" / "report.html").read_text()
  assert "3 runs: 2 done, 1 failed." in page

  third = subprocess.run([*command, "--retries=0"], env=environment, capture_output=True, text=True, timeout=100)
  assert third.returncode == 1 and third.stdout.startswith("3 runs, 2 done already")
