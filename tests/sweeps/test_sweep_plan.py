"""From a sweep file to checked runs: budgets, names that last, and errors before anything starts."""

import pytest

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import sources
from jpmhc_jax.core.errors import ConfigError, UserError
from jpmhc_jax.sweeps import Budget, cases, product, seeds, Sweep, sweep
from jpmhc_jax.sweeps.plan import flops_per_step, load_sweep, Planner
from jpmhc_jax.sweeps.space import SweepError

TINY = "sudoku:tiny"
SMALL = ("--config.model.width=16", "--config.model.heads=2", "--config.data.sudoku.train_puzzles=20")


def plan(space, tmp_path, budget=None, known=None, common=SMALL, cost=flops_per_step):
  return Planner(TINY, common, budget, tmp_path, cost, known).all(space.points())


def test_runs_carry_their_overrides_and_resolved_config(tmp_path):
  runs = plan(product(sweep("connection.mixer", ["iso", "cayley"]), seeds(2)), tmp_path)
  assert [run.name for run in runs][:2] == ["mixer=iso,seed=0", "mixer=iso,seed=1"]
  assert runs[1].overrides == (*SMALL, "--config.connection.mixer=iso", "--config.seed=1")
  assert runs[1].config == configs.load(TINY, runs[1].overrides) and runs[1].workdir == tmp_path / runs[1].name
  assert len({run.key for run in runs}) == 4


def test_points_with_one_meaning_are_one_run(tmp_path):
  runs = plan(cases({"seed": 0}, {"seed": 1}, {"seed": 1, "connection.streams": 4}), tmp_path)
  assert len(runs) == 2


def test_tuples_booleans_and_empty_strings_arrive(tmp_path):
  point = {"optimizer.step_boundaries": (0.5, 0.75), "logging.tensorboard": False, "connection.options": ""}
  (run,) = plan(cases(point), tmp_path)
  assert run.config.optimizer.step_boundaries == (0.5, 0.75) and run.config.logging.tensorboard is False


def test_a_run_keeps_its_name_when_the_sweep_grows(tmp_path):
  before = plan(sweep("connection.mixer", ["iso", "cayley"]), tmp_path)
  known = {run.key: run.name for run in before}
  after = plan(product(sweep("connection.mixer", ["iso", "cayley"]), seeds(2)), tmp_path, known=known)
  expected = ["mixer=iso", "mixer=iso,seed=1", "mixer=cayley", "mixer=cayley,seed=1"]
  assert [run.name for run in after] == expected
  other = plan(sweep("connection.mixer", ["iso"]), tmp_path, known={"another": "run"})
  assert other[0].name.startswith("run-") and other[0].name != "run"


def test_budgets_of_steps_and_examples(tmp_path):
  space = cases({"batch_size": 16}, {"batch_size": 64})
  assert [run.config.steps for run in plan(space, tmp_path, Budget("steps", 70))] == [70, 70]
  assert [run.config.steps for run in plan(space, tmp_path, Budget("examples", 6400))] == [400, 100]
  assert [run.config.budget_seconds for run in plan(space, tmp_path, Budget("seconds", 90))] == [90.0, 90.0]


@pytest.mark.slow
def test_a_budget_of_flops_gives_every_arm_the_same_arithmetic(tmp_path):
  space = cases({"connection.streams": 1}, {"connection.streams": 2}, {"model.recursion.inner": 4})
  budget = 2e11
  runs = plan(space, tmp_path, Budget("flops", budget))
  spent = [run.config.steps * flops_per_step(run.config) for run in runs]
  assert all(0.97 * budget < total <= budget for total in spent)
  assert runs[0].config.steps > runs[1].config.steps > runs[2].config.steps


@pytest.mark.parametrize(
  ("space", "budget", "expected"),
  [
    (cases({"connection.mixer": "caley"}), None, "--config.connection.mixer=caley: .*'cayley'"),
    (cases({"connection.mixr": "iso"}), None, "connection.mixer"),
    (cases({"steps": 10}, {"steps": "many"}), None, "steps"),
    (cases({"connection.mixer": "kronecker", "connection.streams": 3}), None, "power of two"),
    (cases({"connection.options": "alhpa=1"}), None, "alpha"),
    (cases({"steps": 5}), Budget("steps", 9), "leave one of them out"),
    (cases({"seed": 1}), Budget("flops", 10.0), "one step takes"),
  ],
)
def test_a_point_that_cannot_run_is_named_before_anything_starts(space, budget, expected, tmp_path):
  with pytest.raises(UserError, match=expected):
    plan(space, tmp_path, budget, cost=lambda _: 1e6)
  assert not list(tmp_path.iterdir())


def test_of_a_field_that_is_set_twice_the_last_counts_and_a_sweep_comes_after_the_command_line(tmp_path):
  (run,) = plan(seeds(1), tmp_path, common=("--config.steps=4", "--config.batch_size=8", "--config.steps=2"))
  assert run.config.steps == 2 and configs.load(TINY, run.overrides) == run.config
  runs = plan(sweep("model.width", [32, 64]), tmp_path, Budget("steps", 70), common=(*SMALL, "--config.steps=4"))
  assert [(run.config.model.width, run.config.steps) for run in runs] == [(32, 70), (64, 70)]
  assert all(configs.load(TINY, run.overrides) == run.config for run in runs)


def test_a_budget_is_checked():
  with pytest.raises(SweepError, match="Did you mean 'flops'"):
    assert Sweep(seeds(2), budget=("flop", 1e9)).limit
  with pytest.raises(SweepError, match="positive"):
    Budget("steps", 0)


def test_sweep_files_are_read_with_their_variant(tmp_path):
  assert len(load_sweep("mixers").space) == 35 and load_sweep("mixers:flops").limit.kind == "flops"
  assert len(load_sweep(f"{sources.SWEEPS}/mixers.py:two").space) == 4
  with pytest.raises(UserError, match="expected one of steps, flops, two"):
    load_sweep("mixers:too")
  with pytest.raises(ConfigError, match="no 'mixer' in the package, which has mixers. Did you mean 'mixers'"):
    load_sweep("mixer:two")
  with pytest.raises(ConfigError, match="no file"):
    load_sweep(str(tmp_path / "none.py"))
  for text, expected in (("x = 1", "no function get_sweep"), ("def get_sweep():\n  return 3", "returned a int")):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(SweepError, match=expected):
      load_sweep(str(tmp_path / "bad.py"))


def test_every_point_of_the_shipped_sweeps_is_valid(tmp_path):
  for variant in ("steps", "two"):
    found = load_sweep(f"mixers:{variant}")
    runs = plan(found.space, tmp_path, common=())
    assert len({run.name for run in runs}) == len(runs) == len(found.space)
