"""Trained networks of this project as encoders: inputs -> the streams at one of their connections, averaged."""

import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax import data
from jpmhc_jax.config import load as configs
from jpmhc_jax.core import places, rng
from jpmhc_jax.core.errors import check_choice, ConfigError, UserError
from jpmhc_jax.training import inherit
from jpmhc_jax.training.state import build_model
from jpmhc_jax.training.tasks.base import Batch, Task, task_of


def encoded(
  task: Task, model: Any, rows: Array | None, batch: Batch, layer: str, field: str = "layer"
) -> Float[Array, "b d"]:
  """The streams that enter a connection, averaged over streams and tokens, or a space of the task, in float32.

  Raises ConfigError, which names the `field`, for a layer that the model lacks, UserError for a model without any.
  """

  def mean(connection: Any, streams: Float[Array, "b *tokens n d"]) -> Float[Array, "b d"]:
    return jnp.mean(streams.astype(jnp.float32), axis=tuple(range(1, streams.ndim - 1)))

  probed = task.spaces(model, batch)
  if not probed:
    carry = task.refresh(model, task.initial_carry(model, batch), batch)
    probed = task.capture(model, rows, carry, mean)
  if not probed:
    raise UserError(f"{field}={layer!r}: this model shows no connection; expected one whose task has `capture`")
  check_choice(field, layer, probed)
  latents: Array = probed[layer]
  return latents


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """A checkpoint up to one of its connections, inputs (b, …) -> latents (b, d).

  build: the untrained module. arrays: parameters, averaged where the run kept an average, and buffers, by path.
  inputs: shape and dtype of those of one example. field: the config's field that names `layer`.
  """

  task: Task
  build: Any
  arrays: dict[str, np.ndarray]
  layer: str
  inputs: data.ElementSpec
  field: str

  def module(self) -> nnx.Module:
    """The network with the checkpoint's parameters."""
    model: nnx.Module = self.build()
    params, buffers = (nnx.to_pure_dict(part) for part in nnx.state(model, nnx.Param, ...))
    nnx.update(model, self._filled(params), self._filled(buffers))
    return model

  def _filled(self, tree: Any) -> Any:
    return nnx.State(jax.tree_util.tree_map_with_path(lambda path, leaf: self.arrays[jax.tree_util.keystr(path)], tree))

  def __call__(self, model: Any, inputs: Array) -> Float[Array, "b d"]:
    """The latents of inputs; `model` has the parameters of today."""
    return encoded(self.task, model, None, {"inputs": inputs}, self.layer, self.field)


@functools.cache
def read_encoder(field: str, workdir: str, layer: str) -> Encoder:
  """The encoder of a run's latest intact checkpoint.

  Raises ConfigError for a folder that holds no run and for a network with a table or without inputs, CheckpointError
  without a checkpoint. `field` is the config's field that names the folder.
  """
  folder = places.stored(workdir)
  try:
    config = configs.restore(folder / "config.json")
  except ConfigError as error:
    raise ConfigError(f"{field}={workdir!r}: {error}") from error
  task = task_of(config)
  dataset = data.build(config.data, batch_size=config.batch_size, seed=config.seed)
  if task.table_ids:
    raise ConfigError(f"{field}={workdir!r}: model.kind={config.model.kind!r} has a table; expected a network without")
  if "inputs" not in dataset.element_spec:
    raise ConfigError(
      f"{field}={workdir!r}: model.kind={config.model.kind!r} has no inputs; expected a network that does, or its "
      "latents (`jpmhc latents`) in data.pairs"
    )
  source = inherit.read_source(folder)
  arrays = source.part(".ema" if source.averaged else ".params") | source.part(".buffers")
  key = rng.key_for(config.seed, "parameters")
  build = functools.partial(build_model, config, dataset, key)
  return Encoder(task, build, arrays, layer, dataset.element_spec["inputs"], f"{field.removesuffix('run')}layer")
