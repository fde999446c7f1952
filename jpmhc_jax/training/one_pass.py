"""What the trainer does with models that look at a batch once: nothing is carried from step to step but the batch."""

import abc
import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float, Int, Key

from jpmhc_jax.config import schema
from jpmhc_jax.data import Dataset
from jpmhc_jax.models.decoder import Decoder
from jpmhc_jax.models.deep_supervision import Batch
from jpmhc_jax.models.vision import VisionTransformer
from jpmhc_jax.training.tasks.base import Probe, Sums


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LastBatch:
  """The examples of the latest step: what diagnostics look at."""

  data: Any


class SinglePass(abc.ABC):
  """The part of `Task` that all transformers share."""

  @abc.abstractmethod
  def losses(self, logits: Float[Array, "b ..."], labels: Int[Array, "b ..."], loss: str) -> Sums:
    """Metrics summed over rows; `lm_loss` is what training minimises."""

  def table_shape(self, config: schema.Config, dataset: Dataset) -> None:
    return None

  def initial_carry(self, model: Any, batch: Batch) -> LastBatch:
    return LastBatch(batch)

  def refresh(self, model: Any, carry: LastBatch, batch: Batch) -> LastBatch:
    return LastBatch(batch)

  def objective(
    self, model: Any, rows: Float[Array, "b w"] | None, carry: Any, config: schema.Config, key: Key[Array, ""] | None
  ) -> tuple[Float[Array, ""], tuple[Any, Sums]]:
    sums = self.losses(model(carry.data["inputs"]), carry.data["labels"], config.model.loss)
    return sums["lm_loss"], (carry, sums)

  def inspect(
    self, model: Decoder | VisionTransformer, rows: Float[Array, "b w"] | None, carry: LastBatch, probe: Probe
  ) -> dict[str, Any]:
    """One pass over the latest batch: "block0.tokens", "block0.features", "block1.tokens", …"""
    _, seen = model.run(model.embed(carry.data["inputs"]), probe)
    return {
      f"block{layer}.{name}": jax.tree.map(lambda leaf, layer=layer: leaf[layer], found)
      for layer in range(model.model.layers)
      for name, found in seen.items()
    }
