"""The plan before a run: bytes against those of the arrays, operations, and what helps when it does not fit."""

import dataclasses
import json

import jax
import pytest
import tiny

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.main import main
from jpmhc_jax.training import plan as plans
from jpmhc_jax.training.tasks import task_of


def _live_bytes():
  return sum(array.nbytes for array in jax.live_arrays())


@pytest.mark.slow
def test_the_plan_counts_the_bytes_of_the_arrays_and_allocates_none():
  config = tiny.config(mesh=schema.Mesh(data=2, fsdp=2, tensor=2))
  setup, dataset = tiny.setup(config), tiny.dataset(config)
  before = _live_bytes()
  need = plans.measure(setup, dataset)
  assert _live_bytes() - before < 64  # a random key that the traced program holds, and not one parameter
  state = setup.create()
  parts = {"parameters": state.params, "average": state.ema, "optimizer": state.optimizer, "carry": state.carry}
  for name, arrays in parts.items():
    assert need.state[name] == sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(arrays)), name
  assert need.temporaries > 0 and need.total > sum(need.state.values())
  # Two cycles of three calls, which the compiler's count sees once each, on eight devices.
  assert need.executed_flops >= need.model_flops > 2 * need.compiler_flops


@pytest.mark.slow
def test_changes_are_measured_when_a_device_is_too_small(tmp_path, capsys):
  config = tiny.config(mesh=schema.Mesh(data=8), batch_size=64)
  source = tiny.write_config(tmp_path / "config.py", config)
  arguments = ["train", f"--config={source}", "--plan", f"--workdir={tmp_path / 'run'}"]
  assert main([*arguments, "--memory=64"]) == 0
  assert "fits" in capsys.readouterr().out
  assert main([*arguments, "--memory=0.0001", "--json"]) == 0
  plan = json.loads((tmp_path / "run" / "plan.json").read_text())
  assert json.loads(capsys.readouterr().out) == plan
  assert plan["fits"] is False
  totals = {json.dumps(change["fields"]): change["need"]["total"] for change in plan["changes"]}
  start = plan["need"]["total"]
  assert totals['{"accumulation": 4}'] < totals['{"accumulation": 2}'] < start
  assert totals['{"model.rematerialise": "call"}'] < start
  assert totals['{"mesh.data": -1, "mesh.fsdp": 8}'] < start
  assert list(totals.values())[-1] == min(totals.values())
  assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("kind", ["trm", "decoder"])
def test_no_change_is_proposed_that_the_config_refuses(kind, monkeypatch):
  """Neither alone nor in what is proposed at last, all changes together."""
  monkeypatch.setattr(plans, "make_mesh", lambda *arguments: None)
  monkeypatch.setattr(plans, "prepare", lambda config, *rest: task_of(config))
  monkeypatch.setattr(plans, "measure", lambda setup, dataset: plans.Need({}, 0, 0, 0, 0, 0.0, 0.0))
  config = tiny.config()
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, kind=kind, token_mixer="attention"),
    data=dataclasses.replace(config.data, kind={"trm": "sudoku", "decoder": "text"}[kind]),
  )
  changes = [change.fields for change in plans._changes(config, tiny.dataset(tiny.config()), None, print)]
  for fields in changes:
    task_of(configs.validate(plans.with_fields(config, fields)))
  assert changes[-1]["model.rematerialise"] == {"trm": "call", "decoder": "block"}[kind]


def test_training_without_a_workdir_is_refused(capsys, tmp_path):
  source = tiny.write_config(tmp_path / "config.py", tiny.config())
  assert main(["train", f"--config={source}"]) == 2
  assert "--workdir is missing" in capsys.readouterr().err
