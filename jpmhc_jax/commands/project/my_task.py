"""A data set and a task of your own: noisy points of a curve, and a network with hyper-connections that fits it."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

import jpmhc_jax as jp


@dataclasses.dataclass(frozen=True)
class CurveFields:
  frequency: float = jp.field(4.0, "angular frequency of the curve", gt=0)  # config.data.curve.frequency
  noise: float = jp.field(0.1, "standard deviation of the noise on the points to train on", ge=0)


@jp.register_dataset("curve", fields=CurveFields)
def curve(config, *, batch_size: int, seed: int) -> jp.Dataset:
  """512 noisy points of sin(frequency · x) to train on, 128 without noise held out."""
  source, fields = np.random.default_rng(seed), config.curve
  x, held = source.uniform(-1, 1, (512, 1)), np.linspace(-1, 1, 128)[:, None]
  y = np.sin(fields.frequency * x) + fields.noise * source.standard_normal(x.shape)
  train, held_out = {"x": x, "y": y}, {"x": held, "y": np.sin(fields.frequency * held)}
  return jp.ArrayDataset.of(train, held_out, kind="curve", batch_size=batch_size, seed=seed)


class Network(nnx.Module):
  """A number from a number: layers of tanh inside hyper-connections."""

  def __init__(self, config, rngs: nnx.Rngs):
    width, self.streams = config.model.width, config.connection.streams
    mixer = jp.mixers.parse(config.connection.mixer, config.connection.options)
    self.first, self.last = nnx.Linear(1, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)
    self.layers = nnx.List(nnx.Linear(width, width, rngs=rngs) for _ in range(config.model.layers))
    self.connections = nnx.List(
      jp.HyperConnection(mixer, streams=self.streams, width=width, rngs=rngs) for _ in range(config.model.layers)
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    streams = jp.expand(self.first(x), self.streams)
    for layer, connection in zip(self.layers, self.connections, strict=True):
      streams = connection(streams, lambda u, layer=layer: jnp.tanh(layer(u)))
    return self.last(jp.reduce(streams))


@jp.register_task("fit")
class Fit(jp.SinglePass):
  """The squared error ranks checkpoints and heads the report; see jp.Task for all that can be set."""

  data_kinds = ("curve",)

  def build(self, config, dataset: jp.Dataset, rngs: nnx.Rngs) -> Network:
    return Network(config, rngs)

  def losses(self, model: Network, batch: dict, config) -> dict[str, jax.Array]:
    return {"loss": jnp.sum((model(batch["x"]) - batch["y"]) ** 2, axis=-1)}
