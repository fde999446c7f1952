"""The compiled program does not grow with the number of recursions, and a deterministic run repeats bit for bit."""

import dataclasses
import os

import chex
import jax
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core import process
from jpmhc_jax.runs.session import open_run, processes_of
from jpmhc_jax.training.hosts import distributed
from jpmhc_jax.training.step import make_train_step


def _equations(jaxpr):
  inner = [value for equation in jaxpr.eqns for value in jax.tree.leaves(equation.params, is_leaf=_is_program)]
  return len(jaxpr.eqns) + sum(_equations(getattr(p, "jaxpr", p)) for p in inner if _is_program(p))


def _is_program(value):
  return hasattr(value, "eqns") or hasattr(value, "jaxpr")


@pytest.mark.parametrize("policy", [pytest.param("none", marks=pytest.mark.slow), "products"])
def test_the_program_is_as_long_for_many_recursions_as_for_few(policy):
  lengths = []
  for outer, inner in ((2, 1), (2, 6), (7, 3)):
    recursion = schema.Recursion(outer=outer, inner=inner, max_steps=4)
    model = dataclasses.replace(tiny.config().model, recursion=recursion, rematerialise=policy)
    setup = tiny.setup(tiny.config(model=model))
    state = jax.eval_shape(setup.create)
    lengths.append(_equations(make_train_step(setup).trace(state, state.carry.data).jaxpr.jaxpr))
  assert lengths[0] > 500 and len(set(lengths)) == 1


@pytest.fixture
def flags_are_read():
  """XLA has read its flags; else it would read the made-up ones of a test, and end the process."""
  jax.devices()


@pytest.mark.usefixtures("flags_are_read")
def test_the_determinism_switch_asks_xla_once_and_keeps_the_other_flags(monkeypatch, tmp_path):
  monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
  config = tiny.config(mesh=schema.Mesh(), precision=schema.Precision(deterministic=True))
  for _ in range(2):
    open_run(config, tmp_path)
  assert os.environ["XLA_FLAGS"] == f"--xla_one=1 {process.DETERMINISTIC_FLAG}"


@pytest.mark.usefixtures("flags_are_read")
def test_the_determinism_switch_is_set_before_anything_asks_for_a_device(monkeypatch):
  """XLA reads its flags once: joining, and claiming the workdir, look for devices already."""
  monkeypatch.setenv("XLA_FLAGS", "")
  seen = []
  monkeypatch.setattr(distributed, "join", lambda settings: seen.append(os.environ["XLA_FLAGS"]))
  with processes_of(tiny.config(precision=schema.Precision(deterministic=True))):
    assert seen == [process.DETERMINISTIC_FLAG]


@pytest.mark.slow
def test_two_runs_on_the_same_devices_are_bit_equal():
  config = tiny.config(mesh=schema.Mesh(data=2, fsdp=2, tensor=2), precision=schema.Precision(deterministic=True))
  first, second = (tiny.run(config, 3)[0] for _ in range(2))
  chex.assert_trees_all_equal(first, second, strict=True)
