"""A task and a data set of your own: a regression on vectors of floats. config.py beside it says how to run it.

The plugin registers the data set "diabetes" (scikit-learn's: ten measurements of each of 442 patients, and how far the
disease is after a year) and the task "regression". Their fields stand in the config as data.diabetes.… and
model.regression.…: they are described, overridden and swept like all others, those of the hyper-connections included.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_diabetes

import jpmhc_jax as jp


@dataclasses.dataclass(frozen=True)
class DiabetesFields:
  held_out: int = jp.field(5, "one patient in so many is held out")


@jp.register_dataset("diabetes", fields=DiabetesFields)
def diabetes(config, *, batch_size: int, seed: int) -> jp.Dataset:
  """Measurements and progression, each with mean 0 and deviation 1 over the patients to train on."""
  x, y = load_diabetes(return_X_y=True)
  rows = np.concatenate([x, y[:, None]], axis=1)
  held_out = np.arange(len(rows)) % config.diabetes.held_out == 0
  rows = (rows - rows[~held_out].mean(axis=0)) / rows[~held_out].std(axis=0)
  train, held = ({"x": part[:, :-1], "y": part[:, -1]} for part in (rows[~held_out], rows[held_out]))
  return jp.ArrayDataset.of(train, held, kind="diabetes", batch_size=batch_size, seed=seed)


@dataclasses.dataclass(frozen=True)
class RegressionFields:
  delta: float = jp.field(1.0, "errors above this many deviations count linearly (Huber)")


class Network(nnx.Module):
  """A number from a vector: layers of tanh inside hyper-connections."""

  def __init__(self, features: int, config, rngs: nnx.Rngs):
    width, self.streams = config.model.width, config.connection.streams
    mixer = jp.mixers.parse(config.connection.mixer, config.connection.options)
    self.first, self.last = nnx.Linear(features, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)
    self.layers = nnx.List(nnx.Linear(width, width, rngs=rngs) for _ in range(config.model.layers))
    self.connections = nnx.List(
      jp.HyperConnection(mixer, streams=self.streams, width=width, rngs=rngs) for _ in range(config.model.layers)
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    streams = jp.expand(self.first(x), self.streams)
    for layer, connection in zip(self.layers, self.connections, strict=True):
      streams = connection(streams, lambda u, layer=layer: jnp.tanh(layer(u)))
    return self.last(jp.reduce(streams))[..., 0]


@jp.register_task("regression", fields=RegressionFields)
class Regression(jp.SinglePass):
  """Huber's loss; checkpoints are ranked by the squared error of the patients held out."""

  per_example, main_metric = ("loss", "squared_error"), "squared_error"

  def build(self, config, dataset: jp.Dataset, rngs: nnx.Rngs) -> Network:
    return Network(dataset.element_spec["x"].shape[-1], config, rngs)

  def losses(self, model: Network, batch: dict, config) -> dict[str, jax.Array]:
    answer, truth = model(batch["x"]), batch["y"]
    loss = optax.huber_loss(answer, truth, delta=config.model.regression.delta)
    return {"loss": loss, "squared_error": (answer - truth) ** 2}

  def predict(self, model: Network, rows, batch: dict, config) -> dict[str, jax.Array]:
    return self.losses(model, batch, config) | {"predictions": model(batch["x"])}
