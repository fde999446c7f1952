"""Runs of one module that differ only in what is saved, logged or evaluated share their setup and one compiled step."""

import dataclasses

import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.training import loop, telemetry


def _key(config):
  """The config without what no compiled program depends on."""
  unused = {"checkpoint": schema.Checkpoint(), "evaluation": schema.Evaluation(), "logging": schema.Logging()}
  optimizer = dataclasses.replace(config.optimizer, nonfinite="stop", nonfinite_limit=10)
  return repr(dataclasses.replace(config, optimizer=optimizer, budget_seconds=0.0, init_from="", **unused))


def _once(make, config_of):
  """`make`, called once for each such key."""
  made = {}

  def get(about, *others):
    key = _key(config_of(about))
    if key not in made:
      made[key] = make(about, *others)
    return made[key]

  return get


@pytest.fixture(scope="module")
def compiled_once():
  """For modules that train through the loop again and again: most of the time they would trace and compile the same."""
  setup = _once(tiny.setup, lambda config: config)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tiny, "setup", lambda config: dataclasses.replace(setup(config), config=config))
    patch.setattr(loop, "make_train_step", _once(loop.make_train_step, lambda setup: setup.config))
    patch.setattr(telemetry, "flops_per_step", _once(telemetry.flops_per_step, lambda setup: setup.config))
    yield
