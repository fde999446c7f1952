"""Weights & Biases: what the writer asks of the package, in a stand-in for it; W&B's server is not reached."""

import dataclasses
import json
import sys
import types

import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.training.writers import Writers

CONFIG = schema.Config(logging=schema.Logging(tensorboard=False, wandb=True))


class Server:
  """Runs by their identity, as W&B keeps them: rows of their history, each under the counter that only grows."""

  def __init__(self):
    self.options, self.rows, self.axes, self.finished = [], {}, {}, 0

  def init(self, **options):
    self.options.append(options)
    return Run(self, self.rows.setdefault(options["id"], {}))


class Run:
  """What `wandb.init` returns, as far as it is used: `log` as in wandb/sdk/wandb_run.py."""

  def __init__(self, server, rows):
    self._server, self._rows = server, rows
    self._step = max(rows, default=-1) + 1  # a run that resumes counts on

  def log(self, data, step=None):
    if step is None:
      self._rows[self._step] = dict(data)
      self._step += 1
    elif step >= self._step:  # else: "Steps must be monotonically increasing, so this data will be ignored"
      self._step = step
      self._rows.setdefault(step, {}).update(data)

  def define_metric(self, name, step_metric=None):
    assert "*" not in name[:-1]  # glob suffixes only
    self._server.axes[name] = step_metric

  def finish(self):
    self._server.finished += 1


@pytest.fixture
def server(monkeypatch):
  module, server = types.ModuleType("wandb"), Server()
  module.init = server.init
  monkeypatch.setitem(sys.modules, "wandb", module)
  return server


def test_scalars_go_to_the_run_of_the_workdir_and_a_restart_resumes_it(server, tmp_path):
  workdir = tmp_path / "arc 1 \N{GREEK SMALL LETTER ALPHA}"
  workdir.mkdir()
  for step in (4, 8):
    writers = Writers(workdir, CONFIG, step - 4)
    writers.write(step, {"train/loss": 1.5})
    writers.close()
  first, second = server.options
  (rows,) = server.rows.values()
  assert list(rows.values()) == [{"step": 4, "train/loss": 1.5}, {"step": 8, "train/loss": 1.5}]
  assert server.finished == 2 and server.axes == {"step": None, "*": "step"}
  assert first == second and first["resume"] == "allow" and first["dir"] == str(workdir)
  assert first["config"]["logging"]["wandb"] is True and first["name"] == workdir.name
  assert first["id"].isascii() and len(first["id"]) <= 64 and set(first["id"]).isdisjoint(" /\\#?%:")
  assert [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()] == [4, 8]


def test_what_is_logged_after_a_rollback_is_kept(server, tmp_path):
  for start, loss in ((0, 9.0), (2, 1.0)):  # six steps, then from the checkpoint of step 2 again
    writers = Writers(tmp_path, CONFIG, start)
    for step in range(start + 1, 7):
      writers.write(step, {"train/loss": loss})
      writers.write(step, {"evaluation/loss": loss})
    writers.close()
  (rows,) = server.rows.values()
  losses = [(row["step"], row["train/loss"]) for row in rows.values() if "train/loss" in row]
  assert losses == [*((step, 9.0) for step in range(1, 7)), *((step, 1.0) for step in range(3, 7))]
  assert sum("evaluation/loss" in row for row in rows.values()) == 10


def test_project_pictures_texts_and_the_best_checkpoint_go_to_the_run(server, tmp_path, monkeypatch):
  module, kept = sys.modules["wandb"], []
  module.Image = lambda picture, caption: (picture.shape, picture[0, 0].tolist(), caption)
  module.Table = lambda columns, data: (columns, data)
  module.Artifact = lambda name, type, metadata: types.SimpleNamespace(
    name=name, metadata=metadata, add_dir=kept.append
  )
  monkeypatch.setattr(Run, "log_artifact", lambda self, artifact: kept.append(artifact.metadata), raising=False)
  fields = {"wandb_project": "mhc", "wandb_tags": ("a", "b"), "wandb_notes": "why", "wandb_checkpoints": True}
  config = schema.Config(logging=dataclasses.replace(CONFIG.logging, **fields))
  grid = {"task": "one", "input": [[1, 2], [2, 1]], "truth": [[1, 1], [1, 1]], "predictions": [{"grid": [[1, 1]]}]}
  text = {"task": "two", "kind": "text", "input": "a", "truth": "b", "predictions": [{"text": "c"}]}
  (tmp_path / "evaluation").mkdir()
  (tmp_path / "evaluation" / "step_4.json").write_text(json.dumps({"examples": [grid, text, {"input": {"x": [1.0]}}]}))
  writers = Writers(tmp_path, config, 0)
  writers.show(3)
  writers.show(4)
  writers.keep(tmp_path / "checkpoints" / "4")
  writers.close()
  (options,), (rows,) = server.options, server.rows.values()
  assert (options["project"], options["tags"], options["notes"]) == (
    "mhc",
    ["a", "b"],
    "why",
  ) and "group" not in options
  (row,) = rows.values()
  assert row["answers"] == [
    ((24, 108, 3), [0, 116, 217], "one")
  ]  # three grids of two cells and a margin, 12 pixels each
  assert row["answers/text"][1] == [["two", "a", "b", "c"]]
  assert kept == [str(tmp_path / "checkpoints" / "4"), {"step": 4}]


def test_the_real_package_keeps_an_offline_run_with_pictures_and_the_checkpoint(tmp_path, monkeypatch):
  pytest.importorskip("wandb", reason="W&B itself is tested where the extra wandb is installed")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  monkeypatch.setenv("WANDB_RUN_GROUP", "of the sweep")
  workdir, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "4"
  checkpoint.mkdir(parents=True)
  (checkpoint / "state").write_text("parameters")
  (workdir / "evaluation").mkdir()
  text = {"task": "two", "kind": "text", "input": "a", "truth": "b", "predictions": [{"text": "c"}]}
  grids = [{"task": f"one {k}", "input": [[k]], "truth": [[k]], "predictions": [{"grid": [[1]]}]} for k in range(2)]
  (workdir / "evaluation" / "step_4.json").write_text(json.dumps({"examples": [*grids, text]}))
  fields = {"wandb_project": "mhc", "wandb_tags": ("first", "second"), "wandb_notes": "why", "wandb_checkpoints": True}
  writers = Writers(workdir, schema.Config(logging=dataclasses.replace(CONFIG.logging, **fields)), 0)
  writers.write(4, {"train/loss": 1.5})
  writers.show(4)
  writers.keep(checkpoint)
  writers.close()
  (folder,) = (workdir / "wandb").glob("offline-run-*")
  (file,) = folder.glob("*.wandb")
  content = file.read_bytes()
  asked = ("mhc", "of the sweep", "first", "second", "why", "train/loss", "1.5", "answers", "-checkpoint")
  assert [word for word in asked if word.encode() not in content] == []
  media = folder / "files" / "media"
  assert len(list(media.glob("images/answers_*.png"))) == 2
  (table,) = media.glob("table/answers/text_*.json")
  assert json.loads(table.read_text())["data"] == [["two", "a", "b", "c"]]


def test_two_workdirs_of_one_name_are_two_runs(server, tmp_path):
  for parent in ("a", "b"):
    (tmp_path / parent / "run").mkdir(parents=True)
    Writers(tmp_path / parent / "run", CONFIG, 0).close()
  assert len(server.rows) == 2


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(
    ConfigError, match=r"logging.wandb=True: wandb is not installed; pip install 'jpmhc-jax\[wandb\]'"
  ):
    Writers(tmp_path, CONFIG, 0)
