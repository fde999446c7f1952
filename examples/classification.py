"""A classification of one's own: handwritten digits as 64 floats, a layer inside hyper-connections.

    jpmhc train --config=examples/classification.py --workdir=runs/digits --config.connection.mixer=sinkhorn

Expect 95 % of the digits held out after 300 steps, in half a minute.
"""

from flax import nnx
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import jpmhc_jax as jp


@jp.register_dataset("pixels")
def pixels(config, *, batch_size, seed):
  x, y = load_digits(return_X_y=True)
  train, held = ({"x": x[part] / 16, "y": y[part]} for part in (slice(359, None), slice(359)))
  return jp.ArrayDataset.of(train, held, kind="pixels", batch_size=batch_size, seed=seed)


class Inside(nnx.Module):
  def __init__(self, mixer, rngs):
    self.layer = nnx.Linear(32, 32, rngs=rngs)
    self.connection = jp.HyperConnection(mixer, streams=4, width=32, rngs=rngs)

  def __call__(self, x):
    return jp.reduce(self.connection(jp.expand(x, 4), lambda u: jnp.tanh(self.layer(u))))


@jp.register_task("digit")
class Digit(jp.SinglePass):
  per_example, main_metric, higher_is_better = ("loss", "accuracy"), "accuracy", True

  def build(self, config, dataset, rngs):
    inside = Inside(jp.mixers.parse(config.connection.mixer), rngs)
    return nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), inside, nnx.Linear(32, 10, rngs=rngs))

  def losses(self, model, batch, config):
    logits, y = model(batch["x"]), batch["y"]
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
    return {"loss": loss, "accuracy": (logits.argmax(-1) == y).astype(jnp.float32)}


def get_config():
  config = jp.default_config()
  config.plugins, config.data.kind, config.model.kind = ("classification",), "pixels", "digit"
  config.steps, config.batch_size, config.evaluation.every = 300, 64, 100
  config.optimizer.learning_rate, config.optimizer.warmup_steps = 3e-3, 10
  return config
