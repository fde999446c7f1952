"""The launchers: what they would run, to the letter, and the local one for real."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import tiny

from jpmhc_jax.config import schema
from scripts import commands, gke, local, slurm, tpu_pod, xla_flags

EXPECTED = pathlib.Path(__file__).parent / "expected"
ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = ["--", "--config=arc1:cayley", "--workdir=/runs/arc1", "--config.mesh.fsdp=8"]
CASES = {
  "local": (local, ["--processes=2", "--devices=4", "--port=9911"]),
  "slurm": (slurm, ["--nodes=4", "--partition=gpu", "--account=lab", "--folder=/shared/my code"]),
  "tpu_pod": (tpu_pod, ["--name=arc1", "--zone=europe-west4-b", "--accelerator-type=v5litepod-64"]),
  "tpu_slices": (tpu_pod, ["--name=arc1", "--zone=us-east5-b", "--project=lab", "--slices=2", "--spot"]),
  "tpu_delete": (tpu_pod, ["--name=arc1", "--zone=europe-west4-b", "--delete"]),
  "gke_tpu": (gke, ["--name=arc1", "--image=registry/jpmhc:1", "--slices=2"]),
  "gke_gpu": (gke, ["--name=arc1", "--image=registry/jpmhc:1", "--accelerator=nvidia-h100-80gb", "--chips=8"]),
  "xpk": (gke, ["--xpk", "--name=arc1", "--image=registry/jpmhc:1", "--accelerator=v5litepod-16", "--cluster=pods"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_prints_every_command(case, capsys):
  launcher, arguments = CASES[case]
  assert launcher.main([*arguments, "--dry-run", *RUN]) == 0
  printed = capsys.readouterr().out.replace(sys.executable, "python")
  assert printed == (EXPECTED / f"{case}.txt").read_text()
  assert subprocess.run(["bash", "-n"], input=printed, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
  ("case", "option"),
  [
    ("local", "--processes=0"),
    ("local", "--port=65536"),
    ("slurm", "--nodes=-1"),
    ("slurm", "--partition="),
    ("slurm", "--name=a\n#SBATCH --nodes=9"),
    ("tpu_pod", "--slices=0"),
    ("gke_tpu", "--hosts=nan"),
  ],
)
def test_an_option_out_of_its_bounds_is_refused_before_a_command_is_made(case, option, capsys):
  launcher, arguments = CASES[case]
  with pytest.raises(SystemExit) as end:
    launcher.main([*arguments, option, "--dry-run", *RUN])
  name, _, value = option.partition("=")
  assert end.value.code == 2
  assert f"argument {name}: {value!r}: expected " in capsys.readouterr().err


def test_gpu_nodes_have_no_slices(capsys):
  with pytest.raises(SystemExit):
    gke.main([*CASES["gke_gpu"][1], "--slices=2", "--dry-run", *RUN])
  assert "--slices=2: GPU nodes have no slices; raise --hosts" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--cluster=pods"], ["--accelerator=v5litepod-16"]])
def test_xpk_needs_a_cluster_and_its_own_name_of_the_tpu(wrong, capsys):
  with pytest.raises(SystemExit):
    gke.main(["--xpk", "--name=arc1", "--image=registry/jpmhc:1", *wrong, "--dry-run", *RUN])
  assert "--xpk needs --cluster and xpk's own name of a TPU" in capsys.readouterr().err


def test_the_gpu_flags_are_known_to_this_xla_and_every_flag_has_its_reason():
  known = subprocess.run(
    [sys.executable, "-c", "import jax; jax.devices()"],
    env=os.environ | {"JAX_PLATFORMS": "cpu", **xla_flags.gpu_environment()},
    capture_output=True,
    text=True,
    check=False,
  )
  assert known.returncode == 0, known.stderr
  assert all(len(reason.split()) > 4 for reason in (xla_flags.GPU | xla_flags.TPU | xla_flags.TPU_SLICES).values())


def test_commands_stop_at_the_first_that_fails(capfd):
  planned = [
    commands.Command("say it", ("cat",), stdin="first\n"),
    commands.Command("fail", ("bash", "-c", "exit 7")),
    commands.Command("never", ("echo", "second")),
  ]
  assert commands.execute(planned, dry_run=False) == 7
  out, error = capfd.readouterr()
  assert out == "first\n" and "exit code 7: fail" in error


def _python(rank, code):
  return commands.Command(f"process {rank}", (sys.executable, "-c", code), environment={"JAX_PROCESS_ID": str(rank)})


def test_local_processes_are_told_who_they_are_and_shown_with_their_number(capfd):
  code = "import os; print('I am', os.environ['JAX_PROCESS_ID'])"
  assert local.run([_python(rank, code) for rank in range(3)]) == 0
  assert sorted(capfd.readouterr().out.splitlines()) == [f"[{rank}] I am {rank}" for rank in range(3)]


def test_when_one_local_process_fails_the_others_are_stopped_and_its_code_is_returned(capfd):
  waits = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); time.sleep(60)"
  began = time.monotonic()
  assert local.run([_python(0, waits), _python(1, "import time, sys; time.sleep(1); sys.exit(5)")]) == 5
  assert time.monotonic() - began < 30


def test_a_signal_to_the_local_launcher_reaches_every_process(tmp_path):
  code = (
    "import signal, sys, time, pathlib, os\n"
    f"done = pathlib.Path({str(tmp_path)!r})\n"
    "def stop(*_):\n  (done / os.environ['JAX_PROCESS_ID']).touch()\n  sys.exit(75)\n"
    "signal.signal(signal.SIGTERM, stop)\nprint('ready', flush=True)\ntime.sleep(60)\n"
  )
  launcher = (
    "import sys\nfrom scripts import commands, local\n"
    f"code = {code!r}\n"
    "planned = [commands.Command('', (sys.executable, '-c', code), environment={'JAX_PROCESS_ID': str(r)})"
    " for r in range(2)]\nsys.exit(local.run(planned))\n"
  )
  process = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True, cwd=ROOT)
  assert process.stdout is not None
  assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == 75
  process.stdout.close()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.slow
def test_two_local_processes_train_one_run(tmp_path, capfd):
  config = tiny.config(
    steps=3,
    mesh=schema.Mesh(data=2),
    checkpoint=schema.Checkpoint(every=0),
    evaluation=schema.Evaluation(every=0, max_examples=4),
  )
  source = tiny.write_config(tmp_path / "config.py", config)
  workdir = tmp_path / "run"
  arguments = ["--processes=2", "--devices=1", "--", f"--config={source}", f"--workdir={workdir}"]
  assert local.main(arguments) == 0, capfd.readouterr().out
  environment = json.loads((workdir / "environment.json").read_text())
  assert environment["processes"] == 2 and len(environment["devices"]) == 2
  assert "[0] " in capfd.readouterr().out
