"""A killed run, restarted, repeats the next losses and every leaf bit for bit."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import chex
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import CheckpointError, ConfigError
from jpmhc_jax.training import checkpoint, inherit, loop
from jpmhc_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("compiled_once")


class FakeEvaluation:
  """Stands in for the evaluator, which has tests of its own: the loop only needs a number."""

  main_metric, higher_is_better = "exact_accuracy", True

  def __call__(self, state, step):
    return {"exact_accuracy": 1.0 if step == 4 else step / 100}


def _run(config, workdir):
  return loop.Run(tiny.setup(config), tiny.dataset(config), workdir, FakeEvaluation(), None)


def _losses(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def _config(**changes):
  return tiny.config(checkpoint=schema.Checkpoint(every=3, keep=1), evaluation=schema.Evaluation(every=2), **changes)


class _StopAfter(Exception):
  pass


def _dying(call):
  """`make_train_step` whose step function dies at its `call`-th call."""
  make = loop.make_train_step

  def dies(setup):
    step, calls = make(setup), []

    def wrapped(state, batch):
      calls.append(1)
      if len(calls) == call:
        raise _StopAfter
      return step(state, batch)

    return wrapped

  return dies


def test_a_run_killed_at_any_step_resumes_bit_for_bit(tmp_path, monkeypatch):
  config = _config()
  whole = loop.train(_run(config, tmp_path / "whole"), ["train"])

  broken = tmp_path / "broken"
  monkeypatch.setattr(loop, "make_train_step", _dying(6))
  with pytest.raises(_StopAfter):
    loop.train(_run(config, broken), ["train"])
  monkeypatch.undo()
  assert Checkpoints(broken / "checkpoints").steps() == [4]
  resumed = loop.train(_run(config, broken), ["train"])

  chex.assert_trees_all_equal(whole, resumed)
  assert _losses(broken) == _losses(tmp_path / "whole")
  assert sorted(_losses(broken)) == list(range(1, 9))
  assert len(json.loads((broken / "environment.json").read_text())["earlier_starts"]) == 1


def _longer(config, steps, **optimizer):
  return dataclasses.replace(config, steps=steps, optimizer=dataclasses.replace(config.optimizer, **optimizer))


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_steps_as_if_it_had_them_from_the_start(tmp_path, capsys):
  whole = loop.train(_run(_config(), tmp_path / "whole"), ["train"])
  loop.train(_run(_longer(_config(), 4), tmp_path / "longer"), ["train"])
  continued = loop.train(_run(_config(), tmp_path / "longer"), ["train"])
  chex.assert_trees_all_equal(whole, continued)
  assert _losses(tmp_path / "longer") == _losses(tmp_path / "whole")
  assert configs.restore(tmp_path / "longer" / "config.json").steps == 8
  assert "steps was 4 and is 8: schedule and annealing are those of the longer run" in capsys.readouterr().out
  with pytest.raises(ConfigError, match=r"steps: 8 there, 6 now \(a run may become longer, not shorter\)"):
    loop.train(_run(_longer(_config(), 6), tmp_path / "longer"), ["train"])


def test_it_is_said_what_becomes_of_a_schedule_that_had_ended():
  config = _longer(_config(), 16, schedule="cosine", min_ratio=0.1, warmup_steps=0)
  (note,) = loop._continued(dataclasses.replace(tiny.setup(_config()), config=config), 8, 8)
  halfway = 1e-2 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * 9 / 16)))
  assert f"the next learning rate is {halfway:.3g}, which was 0.001 in the shorter run" in note
  assert loop._continued(tiny.setup(_config()), 8, 8) == ()


@pytest.mark.slow
def test_a_run_starts_from_the_parameters_of_another(tmp_path, capsys):
  """From the average of the source, its buffers and the table's rows; what does not fit a wider model is said."""
  source = loop.train(_run(_config(), tmp_path / "source"), ["train"])
  config = dataclasses.replace(_config(), init_from=str(tmp_path / "source"))
  setup, dataset, read = tiny.setup(config), tiny.dataset(config), inherit.read_source(tmp_path / "source")
  state, inheritance = inherit.started(setup, dataset, read)
  chex.assert_trees_all_equal(state.params, state.ema, source.ema)
  chex.assert_trees_all_equal((state.buffers, state.optimizer), (source.buffers, setup.create().optimizer))
  np.testing.assert_array_equal(state.table, source.table)
  assert int(state.step) == 0 and inheritance.new == inheritance.unused == () and inheritance.averaged

  loop.train(_run(config, tmp_path / "second"), ["train"])
  said = " ".join(capsys.readouterr().out.split())
  assert f"starting from the averaged parameters of {tmp_path}/source at step 8" in said
  record = json.loads((tmp_path / "second" / "environment.json").read_text())["init_from"]
  assert (record["sha256"], record["taken"]) == (inheritance.sha256, list(inheritance.taken))
  with pytest.raises(ConfigError, match="init_from"):
    loop.train(_run(_config(), tmp_path / "second"), ["train"])

  wider = dataclasses.replace(config, connection=dataclasses.replace(config.connection, streams=4))
  _, partly = inherit.started(tiny.setup(wider), dataset, read)
  assert set(partly.taken) < set(inheritance.taken) and partly.new[0].endswith(" here)")
  assert f"new here: {partly.new[0]}" in partly.sentences()[1]
  with pytest.raises(CheckpointError, match="init_from='.*nowhere': expected the workdir of a run"):
    inherit.read_source(tmp_path / "nowhere")


def test_what_a_checkpoint_covers_is_on_disk_before_it_counts(tmp_path, monkeypatch):
  """When a manifest is written, and when a score is, every line until then has been synced; so is the workdir."""
  config = dataclasses.replace(_config(), logging=schema.Logging(every=1, tensorboard=True))
  synced, moments = {}, []

  def sync(descriptor):
    synced[os.readlink(f"/proc/self/fd/{descriptor}")] = os.fstat(descriptor).st_size

  def checked(act):
    def counts(*arguments):
      paths = [tmp_path / "metrics.jsonl", *(tmp_path / "tensorboard").iterdir()]
      assert [synced.get(str(path)) for path in paths] == [path.stat().st_size for path in paths]
      assert {str(tmp_path), str(tmp_path / "tensorboard")} <= set(synced)
      assert json.loads((tmp_path / "goodput.json").read_text())["step"] >= max(_losses(tmp_path))
      moments.append(act.__name__)
      return act(*arguments)

    return counts

  monkeypatch.setattr(os, "fsync", sync)
  monkeypatch.setattr(checkpoint.integrity, "write", checked(checkpoint.integrity.write))
  monkeypatch.setattr(Checkpoints, "_write_scores", checked(Checkpoints._write_scores))
  loop.train(_run(config, tmp_path), ["train"])
  assert moments.count("write") == 5 and moments.count("_write_scores") == 4


def test_latest_and_best_checkpoints_are_kept(tmp_path):
  config = tiny.config(checkpoint=schema.Checkpoint(every=2, keep=1), evaluation=schema.Evaluation(every=2))
  loop.train(_run(config, tmp_path), ["train"])
  assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 8]


def test_a_checkpoint_is_not_ranked_by_an_earlier_evaluation(tmp_path):
  """Step 5 is saved without an evaluation: the number of step 4, the best, must not pass to it."""
  config = tiny.config(checkpoint=schema.Checkpoint(every=5, keep=1), evaluation=schema.Evaluation(every=2))
  loop.train(_run(config, tmp_path), ["train"])
  assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 8]


def test_a_checkpoint_restores_onto_another_mesh(tmp_path):
  config = _config()
  loop.train(_run(config, tmp_path), ["train"])
  wide = _config(mesh=schema.Mesh(data=4, fsdp=2))
  dataset = tiny.dataset(wide)
  one = Checkpoints(tmp_path / "checkpoints").restore(tiny.setup(config), dataset)
  many = Checkpoints(tmp_path / "checkpoints").restore(tiny.setup(wide), dataset)
  chex.assert_trees_all_equal(one.state, many.state)
  kernel = many.state.params["block0"]["features"]["down"]
  assert kernel.addressable_shards[0].data.shape == (kernel.shape[0], kernel.shape[1] // 2)


@pytest.mark.slow
def test_fewer_devices_at_every_restart_see_the_same_examples_and_give_the_same_losses(tmp_path, monkeypatch):
  """8, 4 and 2 devices in turn, split over all three axes, against one device: losses agree to 2e-5."""
  whole = loop.train(_run(_config(), tmp_path / "whole"), ["train"])
  meshes = [schema.Mesh(data=2, fsdp=2, tensor=2), schema.Mesh(data=2, tensor=2), schema.Mesh(data=1, fsdp=2)]
  for mesh, call in zip(meshes, (4, 4, 100), strict=True):
    monkeypatch.setattr(loop, "make_train_step", _dying(call))
    with contextlib.suppress(_StopAfter):
      state = loop.train(_run(_config(mesh=mesh), tmp_path / "moved"), ["train"])
    monkeypatch.undo()
  assert int(state.step) == 8
  np.testing.assert_array_equal(whole.carry.data["inputs"], state.carry.data["inputs"])
  expected, found = _losses(tmp_path / "whole"), _losses(tmp_path / "moved")
  assert sorted(found) == list(range(1, 9))
  for step in expected:
    np.testing.assert_allclose(found[step], expected[step], rtol=2e-5)


def test_a_window_of_scalars_goes_on_over_a_restart(tmp_path, monkeypatch):
  """A line every 4 steps, killed between a checkpoint at 3 and the line: the mean still covers all 4 steps."""
  config = dataclasses.replace(_config(), logging=schema.Logging(every=4, tensorboard=False))
  loop.train(_run(config, tmp_path / "whole"), ["train"])
  monkeypatch.setattr(loop, "make_train_step", _dying(4))
  with pytest.raises(_StopAfter):
    loop.train(_run(config, tmp_path / "broken"), ["train"])
  monkeypatch.undo()
  loop.train(_run(config, tmp_path / "broken"), ["train"])
  assert sorted(_losses(tmp_path / "whole")) == [4, 8]
  assert _losses(tmp_path / "broken") == _losses(tmp_path / "whole")


def test_a_checkpoint_of_other_identifiers_or_a_missing_one_is_refused(tmp_path):
  config = _config()
  run = _run(config, tmp_path)
  with pytest.raises(CheckpointError, match="there is none"):
    Checkpoints(tmp_path / "checkpoints").restore(run.setup, run.dataset)
  loop.train(run, ["train"])
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
    checkpoints.restore(run.setup, run.dataset, 5)
  with pytest.raises(CheckpointError, match="written for 1 puzzle identifiers that differ"):
    checkpoints.restore(run.setup, dataclasses.replace(run.dataset, identifiers=["<blank>", "another"]))
  with pytest.raises(CheckpointError, match="other examples"):
    checkpoints.restore(run.setup, dataclasses.replace(run.dataset, content="another"))


def test_a_workdir_of_another_config_is_refused_with_the_fields(tmp_path):
  loop.claim_workdir(_config(), tmp_path)
  (tmp_path / "metrics.jsonl").write_text("{}\n")
  loop.claim_workdir(_config(), tmp_path)
  with pytest.raises(ConfigError, match=r"seed: 0 there, 3 now\n  model.*|seed: 0 there, 3 now"):
    loop.claim_workdir(_config(seed=3), tmp_path)


def test_a_start_that_failed_before_its_first_step_leaves_the_workdir_free(tmp_path):
  loop.claim_workdir(_config(seed=1), tmp_path)
  loop.claim_workdir(_config(seed=2), tmp_path)
  assert configs.restore(tmp_path / "config.json").seed == 2
  (tmp_path / "checkpoints" / "10").mkdir(parents=True)
  with pytest.raises(ConfigError, match="seed: 2 there, 3 now"):
    loop.claim_workdir(_config(seed=3), tmp_path)


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path):
  config = _config(optimizer=schema.Optimizer(learning_rate=1e18, warmup_steps=1, name="adamw", ema=0.0))
  with pytest.raises(loop.NonFiniteLossError, match="optimizer.learning_rate"):
    loop.train(_run(config, tmp_path), ["train"])


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_finishes(tmp_path):
  config = _config(steps=2000, logging=schema.Logging(every=1, tensorboard=False))
  workdir = tmp_path / "run"
  source = tiny.write_config(tmp_path / "config.py", config)
  command = [sys.executable, "-m", "jpmhc_jax", "train", f"--config={source}", f"--workdir={workdir}"]
  environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
  process = subprocess.Popen(command, env=environment)
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline and (not (workdir / "metrics.jsonl").is_file() or len(_losses(workdir)) < 5):
    time.sleep(0.5)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=120) == 75
  saved = Checkpoints(workdir / "checkpoints").steps()
  assert saved and saved[-1] >= 5
