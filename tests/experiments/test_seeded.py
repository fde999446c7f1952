"""Seeds that run together in one program have the metrics that each has alone."""

import numpy as np
import pytest

from experiments.seeded import Arm

SMALL = {
  "steps": 3,
  "batch_size": 4,
  "connection.streams": 1,
  "model.width": 8,
  "model.heads": 1,
  "model.layers": 1,
  "optimizer.warmup_steps": 1,
}


@pytest.mark.parametrize(("rate", "steps"), [pytest.param(1e-2, 3, marks=pytest.mark.slow), (1e38, 2)])
def test_seeds_together_are_each_alone_and_end_where_the_loss_is_no_number(rate, steps):
  arm = Arm.load("digits:cayley", SMALL | {"optimizer.learning_rate": rate})
  together = arm.train_together((1, 2))
  alone = [arm.train(seed) for seed in (1, 2)]
  assert [len(run) for run in together] == [len(run) for run in alone] == [steps, steps]
  assert together[0][0]["loss"] != together[1][0]["loss"]
  for one, other in zip(together, alone, strict=True):
    for key in one[0]:
      np.testing.assert_allclose([m[key] for m in one], [m[key] for m in other], rtol=1e-4, atol=1e-5, err_msg=key)
