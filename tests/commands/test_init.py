"""`jpmhc init` writes a project that trains at once, `jpmhc completion` a script that a shell takes."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

import jpmhc_jax as jp
from jpmhc_jax.main import main


@pytest.mark.slow
def test_the_project_that_init_writes_trains_and_passes_its_own_test(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "mine")])
  monkeypatch.chdir(tmp_path)
  assert main(["init", "mine"]) == 0
  assert "jpmhc train --config=config.py --workdir=runs/first" in capsys.readouterr().out
  small = ["--config.steps=60", "--config.model.layers=1", "--config.evaluation.every=60", "--config.logging.every=1"]
  assert main(["train", "--config=mine/config.py", f"--workdir={tmp_path / 'run'}", *small]) == 0
  evaluation = json.loads((tmp_path / "run" / "evaluation" / "step_60.json").read_text())
  assert evaluation["metrics"]["examples"] == 128 and evaluation["metrics"]["loss"] < 0.5
  assert (tmp_path / "run" / "report.html").is_file()
  spec = importlib.util.spec_from_file_location(
    "test_of_the_project", pathlib.Path("mine", "test_project.py").absolute()
  )
  own = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(own)
  own.test_the_mixer_is_doubly_stochastic()
  monkeypatch.setattr(own.jp, "train", lambda *_, **__: jp.load(tmp_path / "run"))  # it is trained: just now, above
  own.test_it_learns(tmp_path / "again")


def test_init_overwrites_nothing(tmp_path, capsys):
  (tmp_path / "config.py").write_text("mine")
  assert main(["init", str(tmp_path)]) == 2
  assert "config.py is there already" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ["config.py"]


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("jpmhc tr", {"train"}),
    ("jpmhc train --config=sudo", {f"--config=sudoku{variant}" for variant in ("", ":tiny", ":urm", ":6x6", ":9x9")}),
    ("jpmhc train --config=sudoku:tiny --config.connection.mi", {"--config.connection.mixer="}),
    ("jpmhc launch slurm --q", {"--qos="}),
    ("jpmhc launch g", {"gke"}),
    ("jpmhc sweep --executor=s", {"--executor=slurm"}),
    ("jpmhc configs ma", {"maze"}),
  ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_completes(shell, line, expected, capsys):
  if not shutil.which(shell):
    pytest.skip(f"no {shell} on this machine")
  assert main(["completion"]) == 0
  words = line.split(" ")
  ask = f"compopt() {{ :; }}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _jpmhc"
  # zsh's bashcompinit calls functions like this, and chooses by the prefix itself.
  emulation = "emulate sh; setopt kshglob noshglob braceexpand nokshautoload;" if shell == "zsh" else ""
  script = f'{capsys.readouterr().out}\n{emulation}{ask}; printf "%s\\n" "${{COMPREPLY[@]}}"'
  options = ["--norc"] if shell == "bash" else ["-f"]
  done = subprocess.run([shell, *options, "-c", script], capture_output=True, text=True, check=True)
  known = set(done.stdout.split())
  assert (known if shell == "bash" else {word for word in known if word.startswith(words[-1])}) == expected


def test_the_version_is_that_of_the_package(capsys):
  with pytest.raises(SystemExit) as end:
    main(["--version"])
  assert end.value.code == 0 and capsys.readouterr().out == f"jpmhc_jax {jp.__version__}\n"
