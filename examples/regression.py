"""A regression of one's own, task, data and config in one file: how far diabetes goes in a year, from ten measurements.

    jpmhc train --config=examples/regression.py --workdir=runs/regression

Expect an absolute error of 0.63 deviations on the patients held out after 200 steps, in seconds.
"""

from flax import nnx
import jax.numpy as jnp
from sklearn.datasets import load_diabetes

import jpmhc_jax as jp


@jp.register_dataset("patients")
def patients(config, *, batch_size, seed):
  x, y = load_diabetes(return_X_y=True)
  rows = {"x": x / x.std(axis=0), "y": (y - y.mean()) / y.std()}
  train, held = ({name: array[part] for name, array in rows.items()} for part in (slice(88, None), slice(88)))
  return jp.ArrayDataset.of(train, held, kind="patients", batch_size=batch_size, seed=seed)


@jp.register_task("progression")
class Progression(jp.SinglePass):
  per_example, main_metric = ("loss", "absolute_error"), "absolute_error"  # ranks checkpoints, the smallest first

  def build(self, config, dataset, rngs):
    return nnx.Sequential(nnx.Linear(10, 16, rngs=rngs), jnp.tanh, nnx.Linear(16, 1, rngs=rngs))

  def losses(self, model, batch, config):
    error = model(batch["x"])[:, 0] - batch["y"]
    return {"loss": error**2, "absolute_error": jnp.abs(error)}


def get_config():
  config = jp.default_config()
  config.plugins = ("regression",)
  config.data.kind, config.model.kind = "patients", "progression"
  config.steps, config.batch_size, config.evaluation.every = 200, 32, 50
  config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-3, 10
  return config
