"""The commands of docs/runs.md run in its order, from a fresh folder, and again: the second time nothing is done anew.

The conditions are those of a user whom a test suite forgets: relative paths, a space in the folder's name, no home
folder, a terminal that knows ASCII only; output goes to a file the first time and to a terminal the second.
"""

import dataclasses
import json
import os
import pathlib
import pty
import re
import shlex
import subprocess
import sys

import checks
from pages import code, lines, ROOT
import pytest

from jpmhc_jax.reporting import glossary

PAGE = ROOT / "docs" / "runs.md"
COMMON = {
  "steps": 4, "batch_size": 8, "model.width": 16, "model.heads": 2, "model.layers": 1, "model.mlp_multiple": 8,
  "model.recursion.outer": 1, "model.recursion.inner": 1, "model.recursion.max_steps": 1, "evaluation.every": 2,
  "checkpoint.every": 2, "logging.every": 1, "optimizer.warmup_steps": 1,
}  # fmt: skip
SHRUNK = {
  "=arc_tiny:": COMMON | {
    "data.arc.canvas": 4, "data.arc.max_side": 4, "data.arc.augmentations": 3, "data.arc.evaluation_augmentations": 3,
    "model.puzzle.width": 16,
  },
  "=sudoku:": COMMON | {
    "data.sudoku.train_puzzles": 20, "data.sudoku.test_puzzles": 8, "data.sudoku.shuffles": 2,
  },
}  # fmt: skip
REPLACED = {
  "--profile=100:105": "--profile=2:3",
  "--sweep=mixers": "--sweep=one.py",
  "--mixer=sinkhorn,cayley,iso": "--mixer=iso",
  "--depth=12,48": "--depth=2",
  "--workdir=runs/sudoku --mixer=sinkhorn": "--workdir=runs/sudoku --exact-limit=64 --lanczos-steps=4 --probes=1",
}
ONE_RUN = """\
from jpmhc_jax.sweeps import cases


def get_sweep():
  return cases({"connection.mixer": "sinkhorn"})
"""
ELSEWHERE = {  # commands that are parsed only (test_readme_lines.py)
  "--plan": "compiles the step of the full recipe, or asks for the compiler of a device that is not here",
  "--workdir=/data/": "the full recipe, on accelerators",
  "…": "a line for each of several hosts",
  "--config.logging.wandb": "the extra wandb; tests/training/test_writers.py, .ci/wheel",
  "jpmhc score": "a submission and its tasks; tests/evaluation/test_arc_votes.py",
  "launch": "machines elsewhere; tests/launch renders the commands",
  "describe --mixers": "half a minute; tests/commands/test_mixer_page.py reads what it prints",
}
ONCE = (
  "jpmhc describe",
  "jpmhc spectrum",
  "jpmhc configs",
  "jpmhc init",
  "jpmhc completion",
  "jpmhc import",
)  # they keep nothing, write it anew, or take a new folder only
NOBODY = "import pwd\ndef getpwuid(uid):\n  raise KeyError(uid)\npwd.getpwuid = getpwuid\n"


def _commands():
  """The page's calls of `jpmhc` that run here, in order, behind the one that `make demo` stands for."""
  made = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
  found = [line for line in made.splitlines() if "jpmhc train" in line]
  for block in code(PAGE):
    if not block.span and not block.language:
      found += [line.text for line in lines(block) if checks.is_command(line)]
  calls = [shlex.join(argv) for _, argv in map(checks.words, found) if argv[0] == "jpmhc"]
  return [call for call in calls if not any(part in call for part in ELSEWHERE)]


def _shrink(call):
  """The arguments of a call, made small."""
  for whole, part in REPLACED.items():
    call = call.replace(whole, part)
  argv = shlex.split(call)[1:]
  recipe = next((word for word in argv if word.startswith("--config=")), "")
  builds = argv[0] in ("train", "sweep", "import")
  fields = next((fields for name, fields in SHRUNK.items() if name in recipe and builds), {})
  return [*argv, *(f"--config.{name}={value}" for name, value in fields.items())]


@dataclasses.dataclass(frozen=True)
class Ended:
  code: int
  output: str


class User:
  """Runs `jpmhc` in a folder of their own."""

  def __init__(self, folder: pathlib.Path):
    self.home = folder / "a user's folder"
    self.home.mkdir()
    (self.home / "one.py").write_text(ONE_RUN)
    (self.home / "puzzles.txt").write_text("3..4\n.4..\n..4.\n..31\n\n1...\n..1.\n.1..\n...1\n")
    startup = folder / "startup"
    startup.mkdir()
    (startup / "sitecustomize.py").write_text(NOBODY)  # the system has no entry, and so no home folder, for this user
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "PYTHONUTF8", "PYTHONIOENCODING")}
    self.environment = kept | {
      "PYTHONPATH": os.pathsep.join((str(startup), str(ROOT))),
      "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
      "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0",
      "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
    }  # fmt: skip

  def call(self, argv: list[str], terminal: bool) -> Ended:
    """One command to its end, with its output in a file or on a terminal."""
    command = [sys.executable, "-m", "jpmhc_jax", *argv]
    environment = dict(self.environment)
    if terminal and argv[0] == "train":  # done already, nothing compiles: the cache is where it is by default
      del environment["JAX_COMPILATION_CACHE_DIR"]
    if not terminal:
      done = subprocess.run(
        command, cwd=self.home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
      )
      return Ended(done.returncode, done.stdout.decode("ascii"))
    reader, writer = pty.openpty()
    with subprocess.Popen(
      command, cwd=self.home, env=environment, stdin=writer, stdout=writer, stderr=writer
    ) as process:
      os.close(writer)
      output = b""
      try:
        while piece := os.read(reader, 1 << 16):
          output += piece
      except OSError:  # the terminal's other end is closed
        pass
      os.close(reader)
    return Ended(process.returncode, output.decode("ascii"))


def _record(folder):
  """What runs have recorded: metrics and evaluations, by file."""
  files = [*folder.glob("**/metrics.jsonl"), *folder.glob("**/evaluation/**/step_*.json")]
  return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_order_and_again(tmp_path):
  user, calls = User(tmp_path), _commands()
  assert len(calls) > 8 and {call.split()[1] for call in calls} >= {"train", "evaluate", "report", "sweep", "spectrum"}
  recorded = {}
  for again in (False, True):
    for call in calls:
      if again and any(part in call for part in ONCE):
        continue
      ended = user.call(_shrink(call), terminal=again)
      assert ended.code == 0, f"{call}\n{ended.output}"
      assert "Traceback" not in ended.output and "Warning" not in ended.output, f"{call}\n{ended.output}"
    if not again:
      recorded = _record(user.home)
  assert _record(user.home) == recorded
  assert _names_of_a_workdir() <= {path.name for path in (user.home / "runs" / "arc_tiny").rglob("*")}
  _check_metrics(user.home / "runs" / "arc_tiny")


def _names_of_a_workdir():
  """The files and folders that the page promises."""
  text = PAGE.read_text(encoding="utf-8")
  paragraph = text[text.index("A workdir holds") :].split("\n\n")[0]
  names = re.findall(r"`(?:\w+/)?(\w+(?:\.jsonl?|\.html|/))`", paragraph)
  return {name.strip("/").replace("step_N", "step_4") for name in names if "partial" not in name}


def _check_metrics(workdir):
  """What the page says of metrics.jsonl."""
  rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
  there = {name for row in rows for name in row}
  times = {f"time/{name}" for name in ("step_ms", "examples_per_s", "tflops_per_s", "eta_s")}
  shares = {f"goodput/{name}" for name in ("step", "compile", "data", "lost")}
  assert {"train/loss", "memory/host_peak_gib", *times, *shares} <= there, sorted(there)
  assert {"gradient_norm", "update_ratio", "mixer"} <= {name.split("/")[0] for name in there}
  assert not [name for name in sorted(there - {"step"}) if not glossary.meaning(name).words]
