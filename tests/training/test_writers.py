"""Weights & Biases: what the writer asks of the package, in a stand-in for it; W&B's server is not reached."""

import json
import sys
import types

import pytest

from jpmhc_jax.core import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.training.writers import Writers

CONFIG = schema.Config(logging=schema.Logging(tensorboard=False, wandb=True))


@pytest.fixture
def calls(monkeypatch):
  """Calls of the stand-in in order: (name, arguments)."""
  made = []

  class Run:
    def log(self, scalars, step):
      made.append(("log", scalars, step))

    def finish(self):
      made.append(("finish",))

  def init(**options):
    made.append(("init", options))
    return Run()

  module = types.ModuleType("wandb")
  module.init = init
  monkeypatch.setitem(sys.modules, "wandb", module)
  return made


def test_scalars_go_to_the_run_of_the_workdir_and_a_restart_resumes_it(calls, tmp_path):
  workdir = tmp_path / "arc 1 \N{GREEK SMALL LETTER ALPHA}"
  workdir.mkdir()
  for step in (4, 8):
    writers = Writers(workdir, CONFIG, step - 4)
    writers.write(step, {"train/loss": 1.5})
    writers.close()
  (_, first), log, finish, (_, second), *_ = calls
  assert (log, finish) == (("log", {"train/loss": 1.5}, 4), ("finish",))
  assert first == second and first["resume"] == "allow" and first["dir"] == str(workdir)
  assert first["config"]["logging"]["wandb"] is True and first["name"] == workdir.name
  assert first["id"].isascii() and len(first["id"]) <= 64 and set(first["id"]).isdisjoint(" /\\#?%:")
  assert [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()] == [4, 8]


def test_two_workdirs_of_one_name_are_two_runs(calls, tmp_path):
  for parent in ("a", "b"):
    (tmp_path / parent / "run").mkdir(parents=True)
    Writers(tmp_path / parent / "run", CONFIG, 0).close()
  assert len({options["id"] for name, *rest in calls if name == "init" for options in rest}) == 2


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(
    ConfigError, match=r"logging.wandb=True: wandb is not installed; pip install 'jpmhc-jax\[wandb\]'"
  ):
    Writers(tmp_path, CONFIG, 0)
