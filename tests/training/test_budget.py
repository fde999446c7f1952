"""What a run may spend: operations of a step counted in its loops, and a wall-time limit that ends like a last step."""

import dataclasses
import json

import jax
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.evaluation.evaluator import Evaluator
from jpmhc_jax.training import loop
from jpmhc_jax.training.step import make_train_step
from jpmhc_jax.training.telemetry import flops_per_step


def cost(**changes):
  config = tiny.config(**changes)
  return flops_per_step(tiny.setup(config), tiny.dataset(config))


@pytest.mark.slow
def test_every_trip_of_a_loop_is_counted():
  def model(inner):
    recursion = schema.Recursion(outer=2, inner=inner, max_steps=4)
    return dataclasses.replace(tiny.config().model, recursion=recursion)

  one, two, four = (cost(model=model(inner)) for inner in (1, 2, 4))
  assert four - two == 2 * (two - one) > 0
  config = tiny.config()
  setup, batch = tiny.setup(config), tiny.dataset(config).batch(0)
  compiled = make_train_step(setup).lower(jax.eval_shape(setup.create), batch).cost_analysis()
  assert two > 2 * compiled["flops"]  # XLA looks at the body of each scan once


@pytest.mark.slow
def test_the_cost_grows_with_the_batch():
  sixteen, thirty_two, sixty_four = (cost(batch_size=size) for size in (16, 32, 64))
  # Rows add up, the optimiser's share stays.
  assert sixty_four - thirty_two == pytest.approx(2 * (thirty_two - sixteen), rel=1e-3)


@pytest.mark.slow
def test_a_run_out_of_time_evaluates_saves_and_is_not_taken_up_again(tmp_path, compiled_once):
  config = tiny.config(budget_seconds=0.01)  # of eight steps: the program of other tests
  setup, dataset = tiny.setup(config), tiny.dataset(config)

  def run():
    return loop.Run(setup, dataset, tmp_path, Evaluator(setup, dataset, tmp_path), None)

  state = loop.train(run(), ["train"])
  assert int(state.step) == 1
  assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["cost_1.json", "step_1.json"]
  again = loop.train(run(), ["train"])
  assert int(again.step) == 1
  losses = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert sum("train/loss" in line for line in losses) == 1
