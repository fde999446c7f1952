"""The launchers: what they would run, to the letter, and the local one for real."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.launch import commands, local, tpu, xla_flags
from jpmhc_jax.main import main

EXPECTED = pathlib.Path(__file__).parent / "expected"
ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = ["--", "--config=arc1:cayley", "--workdir=/runs/arc1", "--config.mesh.fsdp=8"]
TPU = ["--name=arc1", "--zone=europe-west4-b"]
GKE = ["--name=arc1", "--image=registry/jpmhc:1"]
CASES = {
  "local": ("local", ["--processes=2", "--devices=4", "--port=9911"]),
  "local_gpus": ("local", ["--gpus=2", "--port=9911", "--env=WANDB_MODE=offline"]),
  "slurm": ("slurm", ["--nodes=4", "--partition=gpu", "--account=lab", "--folder=/shared/my code"]),
  "slurm_conda": (
    "slurm",
    ["--qos=high", "--constraint=h100&nvlink", "--folder=/shared/mine", "--modules=cuda/13,nccl", "--conda=jax",
     "--env=WANDB_PROJECT=my runs,SECRET"],
  ),
  "slurm_container": (
    "slurm", ["--folder=/shared/mine", "--container=nvcr.io#nvidia/jax:25.10", "--mounts=/data:/data"]
  ),
  "tpu": ("tpu", [*TPU, "--accelerator-type=v5litepod-64"]),
  "tpu_slices": ("tpu", ["--name=arc1", "--zone=us-east5-b", "--project=lab", "--slices=2", "--spot"]),
  "tpu_env": ("tpu", [*TPU, "--watch", "--env=WANDB_PROJECT=mhc,SECRET"]),
  "tpu_delete": ("tpu", [*TPU, "--delete"]),
  "tpu_logs": ("tpu", [*TPU, "--logs"]),
  "tpu_status": ("tpu", [*TPU, "--status"]),
  "tpu_stop": ("tpu", [*TPU, "--stop"]),
  "gke_tpu": ("gke", [*GKE, "--slices=2"]),
  "gke_gpu": ("gke", [*GKE, "--accelerator=nvidia-h100-80gb", "--chips=8"]),
  "gke_build": ("gke", [*GKE, "--build", "--env=WANDB_PROJECT=mhc", "--secret=wandb"]),
  "gke_status": ("gke", [*GKE, "--status"]),
  "gke_logs": ("gke", [*GKE, "--logs"]),
  "gke_stop": ("gke", [*GKE, "--stop"]),
  "xpk": ("gke", ["--xpk", *GKE, "--accelerator=v5litepod-16", "--cluster=pods"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_prints_every_command(case, capsys, monkeypatch):
  monkeypatch.setenv("SECRET", "do not print me")
  place, arguments = CASES[case]
  assert main(["launch", place, *arguments, "--dry-run", *RUN]) == 0
  printed = capsys.readouterr().out.replace(sys.executable, "python")
  assert printed == (EXPECTED / f"{case}.txt").read_text()
  assert subprocess.run(["bash", "-n"], input=printed, text=True, check=False).returncode == 0
  assert "do not print me" not in printed


@pytest.mark.parametrize("workdir", ["--workdir=gs://bucket/arc1", "--workdir\ns3://bucket/arc1"])
def test_a_workdir_in_a_store_needs_no_folder_that_all_hosts_see(workdir, capsys):
  """The rendered script installs what reads the store and mounts nothing; all else is as for a folder."""
  run = ["--", "--config=arc1:cayley", *workdir.split("\n")]
  assert main(["launch", "tpu", *TPU, "--dry-run", *run]) == 0
  printed = capsys.readouterr().out
  assert '"[train,tpu,cloud]"' in printed and shlex.join(run[1:]) in printed
  assert main(["launch", "gke", *GKE, "--build", "--service-account=writer", "--dry-run", *run]) == 0
  script = capsys.readouterr().out
  assert "--build-arg=EXTRAS=train,tpu,cloud" in script
  _, _, rest = script.partition("kubectl apply -f - <<'END'\n")
  jobset = json.loads(rest.partition("\nEND")[0])
  pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  assert "volumes" not in pod and "volumeMounts" not in pod["containers"][0]
  assert pod["serviceAccountName"] == "writer" and pod["containers"][0]["command"][-1].endswith("://bucket/arc1")


@pytest.mark.parametrize(
  ("case", "option"),
  [
    ("local", "--processes=0"),
    ("local", "--port=65536"),
    ("slurm", "--nodes=-1"),
    ("slurm", "--partition="),
    ("slurm", "--name=a\n#SBATCH --nodes=9"),
    ("tpu", "--slices=0"),
    ("gke_tpu", "--hosts=nan"),
  ],
)
def test_an_option_out_of_its_bounds_is_refused_before_a_command_is_made(case, option, capsys):
  place, arguments = CASES[case]
  with pytest.raises(SystemExit) as end:
    main(["launch", place, *(word for word in arguments if word.partition("=")[0] != option.partition("=")[0]), option])
  name, _, value = option.partition("=")
  assert end.value.code == 2
  assert f"argument {name}: {value!r}: expected " in capsys.readouterr().err


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["gke", *CASES["gke_gpu"][1], "--slices=2"], "--slices=2: GPU nodes have no slices; raise --hosts"),
    (["gke", "--xpk", *GKE, "--cluster=pods"], "--xpk needs --cluster and xpk's own name of a TPU"),
    (["gke", "--xpk", *GKE, "--accelerator=v5litepod-16"], "--xpk needs --cluster and xpk's own name of a TPU"),
    (["gke", *GKE, "--env=SECRET"], "--env=SECRET: expected SECRET=VALUE; keep secrets in a Kubernetes secret"),
    (["slurm", "--env=NOBODY_SET_THIS"], "--env=NOBODY_SET_THIS: the variable is not set here"),
    (["slurm", "--env=a b=1"], "--env: 'a b' is no variable"),
    (["slurm", "--mounts=/a:/a"], "--mounts=/a:/a: expected --container beside it"),
    (["local", "--gpus=2", "--devices=1"], "--gpus=2: expected neither --devices nor --processes"),
    (["slurm", "--nodes=1", "--nodes=2"], "--nodes is given twice"),
  ],
)
def test_options_that_exclude_each_other_are_refused_in_words(arguments, message, capsys, monkeypatch):
  monkeypatch.setenv("SECRET", "1")
  assert main(["launch", *arguments, "--dry-run", *RUN, "--config.seed=1", "--config.seed=2"]) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  ("arguments", "missing"),
  [
    (["tpu", *TPU, "--watch"], "--config is missing behind --"),
    (["slurm", "--", "--config=arc1:cayley"], "--workdir is missing behind --"),
    (["local", "--gpus=2", "--", "--workdir=/runs/arc1"], "--config is missing behind --"),
  ],
)
def test_a_launch_without_a_whole_run_is_refused_before_it_asks_for_machines(arguments, missing, capsys):
  assert main(["launch", *arguments, "--dry-run"] if "--" not in arguments else ["launch", *arguments]) == 2
  assert missing in capsys.readouterr().err


def _host(tmp_path, script):
  """A line that the TPU launcher sends to a host, in a folder of this machine."""
  return subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)


def test_a_run_on_a_host_outlives_its_session_and_tells_how_it_ended(tmp_path):
  (tmp_path / "run.env").write_text("GREETING='good day'\n")
  code = "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))"
  call = shlex.join([sys.executable, "-uc", f"{code}; print(os.environ['GREETING']); time.sleep(20)"])
  assert _host(tmp_path, tpu.detached(call)).returncode == 0  # the shell has ended, the run has not
  assert "it runs already" in _host(tmp_path, tpu.detached(call)).stdout
  assert _host(tmp_path, tpu.STATUS).stdout.startswith("it runs\n")
  while "good day" not in (tmp_path / "run.log").read_text():
    time.sleep(0.05)
  assert _host(tmp_path, tpu.STOP).returncode == 0
  followed = _host(tmp_path, tpu.FOLLOW)
  assert followed.returncode == 75 and "good day" in followed.stdout
  assert _host(tmp_path, tpu.STATUS).stdout == "it ended with exit code 75\ngood day\n"
  assert "it runs no more" in _host(tmp_path, tpu.STOP).stdout


GCLOUD = """#!/bin/bash
echo "$@" >> calls
case "$*" in
  *describe*) head -n 1 states; sed -i 1d states;;
  *"cat run.exit"*) head -n 1 codes; sed -i 1d codes;;
esac
"""


def test_the_watcher_replaces_machines_that_were_taken_away_and_starts_what_was_cut_off(tmp_path, monkeypatch):
  (tmp_path / "gcloud").write_text(GCLOUD)
  (tmp_path / "git").write_text("#!/bin/bash\n")
  for name in ("gcloud", "git"):
    (tmp_path / name).chmod(0o755)
  up = "ACTIVE\n" * 2  # of `describe || create` and of the wait
  (tmp_path / "states").write_text(f"{up}ACTIVE\nSUSPENDED\n{up}ACTIVE\nACTIVE\n")
  (tmp_path / "codes").write_text("\n75\n0\n")  # still running, cut off, done
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
  monkeypatch.setattr(tpu, "LOOK_EVERY_S", 0.0)
  assert main(["launch", "tpu", *TPU, "--watch", *RUN]) == 0
  calls = (tmp_path / "calls").read_text()
  assert calls.count("queued-resources delete") == 1 and calls.count("setsid") == 3 and calls.count(" scp ") == 2


def test_a_variable_without_a_value_reaches_the_host_and_no_page(monkeypatch, capfd):
  monkeypatch.setenv("SECRET", "s3")
  command = commands.Command("hand it over", ("cat",), "SECRET='$SECRET'\n", expands=True)
  assert command.run() == 0 and capfd.readouterr().out == "SECRET='s3'\n"
  printed = subprocess.run(["bash", "-c", command.shell()], capture_output=True, text=True, check=True).stdout
  assert "s3" not in command.shell() and printed == "SECRET='s3'\n"
  with pytest.raises(ConfigError, match="the variable is not set here"):
    commands.variables("NOBODY_SET_THIS")


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
  assert local.start([_python(rank, code) for rank in range(3)]) == 0
  assert sorted(capfd.readouterr().out.splitlines()) == [f"[{rank}] I am {rank}" for rank in range(3)]


def test_when_one_local_process_fails_the_others_are_stopped_and_its_code_is_returned(capfd):
  waits = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); time.sleep(60)"
  began = time.monotonic()
  assert local.start([_python(0, waits), _python(1, "import time, sys; time.sleep(1); sys.exit(5)")]) == 5
  assert time.monotonic() - began < 30


def test_a_signal_to_the_local_launcher_reaches_every_process(tmp_path):
  code = (
    "import signal, sys, time, pathlib, os\n"
    f"done = pathlib.Path({str(tmp_path)!r})\n"
    "def stop(*_):\n  (done / os.environ['JAX_PROCESS_ID']).touch()\n  sys.exit(75)\n"
    "signal.signal(signal.SIGTERM, stop)\nprint('ready', flush=True)\ntime.sleep(60)\n"
  )
  launcher = (
    "import sys\nfrom jpmhc_jax.launch import commands, local\n"
    f"code = {code!r}\n"
    "planned = [commands.Command('', (sys.executable, '-c', code), environment={'JAX_PROCESS_ID': str(r)})"
    " for r in range(2)]\nsys.exit(local.start(planned))\n"
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
  arguments = ["launch", "local", "--processes=2", "--devices=1", "--", f"--config={source}", f"--workdir={workdir}"]
  assert main(arguments) == 0, capfd.readouterr().out
  environment = json.loads((workdir / "environment.json").read_text())
  assert environment["processes"] == 2 and len(environment["devices"]) == 2
  assert "[0] " in capfd.readouterr().out
