"""Schedules against the published trainer's table and the recipe's numbers."""

import jax
import numpy as np
from numpy.testing import assert_allclose
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.optim.schedules import make_schedule
from jpmhc_jax.training.optimizer import config_schedule


def test_golden_table(shared):
  with np.load(shared / "fixtures" / "trm_optim.npz") as golden, jax.enable_x64(True):
    for base, warmup, total, ratio, step, want in golden["lr_schedule_table"]:
      got = make_schedule("cosine", base, int(warmup), int(total), ratio)(int(step) - 1)
      assert_allclose(got, want, rtol=1e-12, atol=1e-18)
      if ratio == 1.0:
        assert_allclose(make_schedule("constant", base, int(warmup), int(total))(int(step) - 1), want, rtol=1e-12)


def test_float32_follows_the_formula():
  schedule = jax.jit(make_schedule("cosine", 1e-4, 2000, 20000, 0.1))
  assert_allclose([schedule(0), schedule(1999), schedule(19999)], [5e-8, 1e-4, 1e-5], rtol=1e-6)
  assert_allclose(schedule(30000), 1e-5, rtol=1e-6)  # past the end it stays at the floor


def test_step_decay_of_the_recipe():
  config = schema.Optimizer(schedule="step", warmup_steps=10)
  schedule = config_schedule(config, 1000)
  steps = np.array([1, 10, 799, 800, 899, 900, 1000])
  assert_allclose(schedule(steps - 1), 1e-4 * np.array([0.1, 1, 1, 0.316, 0.316, 0.1, 0.1]), rtol=1e-6)
  assert_allclose(config_schedule(config, 1000, 1e-2)(steps - 1), 100 * schedule(steps - 1), rtol=1e-6)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("cosin", 1e-3, 1, 10), "Did you mean 'cosine'"),
    (("constant", 1e-3, -1, 10), "warmup_steps=-1"),
    (("constant", 1e-3, 1, 0), "steps=0"),
    (("step", 1e-3, 1, 10, 1.0, (0.8,), (0.3, 0.1)), "one factor a boundary"),
    (("step", 1e-3, 1, 10, 1.0, (0.9, 0.8), (0.3, 0.1)), "increasing fractions"),
  ],
)
def test_bad_settings_are_refused(arguments, message):
  with pytest.raises(ConfigError, match=message):
    make_schedule(*arguments)
