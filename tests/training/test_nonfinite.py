"""A loss that is no number: the parameters never take it, and the run stops with a reason, skips, or goes back."""

import dataclasses
import json
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.data import TokenDataset
from jpmhc_jax.evaluation.mixers import make_diagnose
from jpmhc_jax.training import loop, nonfinite
from jpmhc_jax.training import step as steps
from jpmhc_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("compiled_once")
POISON = 7  # an identifier that no example has


class _Evaluation:
  main_metric, higher_is_better = "exact_accuracy", True

  def __call__(self, state, step):
    return {"exact_accuracy": 0.5}


def _config(policy, limit=10):
  return tiny.config(
    optimizer=schema.Optimizer(learning_rate=1e-2, warmup_steps=4, ema=0.9, nonfinite=policy, nonfinite_limit=limit),
    checkpoint=schema.Checkpoint(every=3, keep=2),
    evaluation=schema.Evaluation(every=100),
  )


def _run(config, workdir):
  setup = tiny.setup(config)
  return loop.Run(setup, tiny.dataset(config), workdir, _Evaluation(), make_diagnose(setup))


def _lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def poisoned(monkeypatch):
  """Gradients are NaN while an example of a poisoned batch is in the carry; returns the set of such batches."""
  batches, batch, accumulate = set(), TokenDataset.batch, steps.accumulate

  def marked(self, step, rows=slice(None)):
    found = batch(self, step, rows)
    return found | {"puzzle_identifiers": np.full_like(found["puzzle_identifiers"], POISON * (step in batches))}

  def spoiled(setup, state, carry, rows):
    (grads, row_grads), *rest = accumulate(setup, state, carry, rows)
    bad = jnp.where(jnp.any(carry.data["puzzle_identifiers"] == POISON), jnp.nan, 0.0)
    return (jax.tree.map(lambda g: g + bad, grads), row_grads), *rest

  monkeypatch.setattr(TokenDataset, "batch", marked)
  monkeypatch.setattr(steps, "accumulate", spoiled)
  return batches


def test_a_bad_step_changes_nothing_but_the_step_count_and_the_carry(poisoned, monkeypatch):
  poisoned.add(0)
  config = _config("skip")
  setup, data = tiny.setup(config), tiny.dataset(config)
  tiny.trace_once(monkeypatch, setup)
  before, step = jax.device_get(setup.create()), make_train_step(setup)
  state, metrics = step(setup.create(), jax.device_put(data.batch(0)))
  found = metrics.scalars()
  assert found["finite"] == 0.0 and not np.isfinite(found["gradient_norm"])
  kept = dataclasses.replace(state, step=0, carry=None, buffers=None)
  chex.assert_trees_all_equal(kept, dataclasses.replace(before, step=0, carry=None, buffers=None))
  assert bool(jnp.all(state.carry.halted))
  state, metrics = step(state, jax.device_put(data.batch(1)))
  assert metrics.scalars()["finite"] == 1.0
  np.testing.assert_array_equal(state.carry.data["inputs"], data.batch(1)["inputs"])


@pytest.mark.slow
def test_skip_goes_on_without_the_step_and_stops_when_it_does_not_end(poisoned, tmp_path):
  poisoned.update({4, 5})  # a fresh row takes four steps, and all start together: batches 0 and 4 are the first taken
  loop.train(_run(_config("skip"), tmp_path / "a"), ["train"])
  skipped = {
    line["step"]: line["train/skipped_steps"] for line in _lines(tmp_path / "a") if "train/skipped_steps" in line
  }
  assert skipped == {5: 1.0, 6: 1.0}
  losses = {line["step"] for line in _lines(tmp_path / "a") if "train/loss" in line}
  assert losses == {1, 2, 3, 4, 7, 8}
  poisoned.update(range(4, 8))
  with pytest.raises(loop.NonFiniteLossError, match="step 8: loss .*gradient norm nan"):
    loop.train(_run(_config("skip", limit=3), tmp_path / "b"), ["train"])


@pytest.mark.slow
def test_rollback_returns_to_the_checkpoint_and_reads_on_behind_the_bad_batch(poisoned, tmp_path, monkeypatch):
  """Step 5 (batch 4) is bad: back to 3, whose next batches are 5, 6, …; a restart from step 6 keeps the offset."""
  poisoned.add(4)
  read = []
  monkeypatch.chdir(tmp_path)
  run = _run(_config("rollback"), pathlib.Path("a"))  # goes back wherever it is
  batch = TokenDataset.batch
  monkeypatch.setattr(
    TokenDataset, "batch", lambda self, step, rows=slice(None): read.append(step) or batch(self, step, rows)
  )
  whole = loop.train(run, ["train"])
  used = [step for step in read if step]  # batch 0 gives the shapes, too
  assert used[:5] == [1, 2, 3, 4, 5] and 5 in used[5:] and max(used) == 9
  assert {line["step"] for line in _lines(tmp_path / "a") if "train/loss" in line} == set(range(1, 9))
  # The same again, ended after the checkpoint of step 6 and restarted.
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  shutil.rmtree(tmp_path / "b" / "checkpoints" / "8")
  again = loop.train(_run(_config("rollback"), tmp_path / "b"), ["train"])
  chex.assert_trees_all_equal(whole, again)
  poisoned.update(range(3, 40))
  with pytest.raises(loop.NonFiniteLossError, match="step 5"):
    loop.train(_run(_config("rollback", limit=2), tmp_path / "c"), ["train"])


@pytest.mark.slow
def test_the_diagnosis_names_parameters_layer_or_gradient():
  config = _config("stop")
  setup, data = tiny.setup(config), tiny.dataset(config)
  state, batch = setup.create(), jax.device_put(data.batch(0))
  diagnose = make_diagnose(setup)

  def damaged(value):
    def change(path, leaf):
      return leaf * value if jax.tree_util.keystr(path) == "['block0']['features']['down']" else leaf

    return dataclasses.replace(state, params=jax.tree_util.tree_map_with_path(change, state.params))

  assert nonfinite.diagnose(setup, damaged(jnp.nan), batch, diagnose) == (
    "parameters ['block0']['features']['down'] are not finite"
  )
  found = nonfinite.diagnose(setup, damaged(1e38), batch, diagnose)
  assert "the loss is finite, the gradients of ['block0']" in found or "loss nan" in found or "loss inf" in found
  assert "largest parameters ['block0']['features']['down']" in found
  seen = {
    "mixer/block0.tokens/norm": 1.0,
    "mixer/block0.features/norm": float("inf"),
    "mixer/block0.features/cosine": 1.0,
  }
  found = nonfinite.diagnose(setup, state, batch, lambda looked: seen)
  assert found.startswith("supervision step 1 breaks first at block0.features (norm inf, cosine 1); largest parameters")
  assert nonfinite.diagnose(setup, state, batch, diagnose).startswith("not repeatable from a fresh carry")
