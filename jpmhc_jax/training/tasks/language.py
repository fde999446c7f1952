"""The decoder language model as the trainer sees it: cross entropy of the next byte, nothing carried but the batch."""

from collections.abc import Mapping
import math

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jpmhc_jax.config import schema
from jpmhc_jax.data import Dataset
from jpmhc_jax.models.decoder import Decoder
from jpmhc_jax.models.deep_supervision import Batch
from jpmhc_jax.models.losses import IGNORED, TOKEN_LOSSES
from jpmhc_jax.training.tasks.base import build, SinglePass, Sums


def byte_sums(logits: Float[Array, "b l vocab"], labels: Int[Array, "b l"], loss: str) -> dict[str, Float[Array, "b"]]:
  """Per row, summed over its labelled positions: nats (−log p of the byte), bytes, right (argmax is the byte)."""
  labelled = labels != IGNORED
  return {
    "nats": jnp.sum(TOKEN_LOSSES[loss](logits, labels), axis=-1),
    "bytes": jnp.sum(labelled, axis=-1).astype(jnp.float32),
    "right": jnp.sum(labelled & (jnp.argmax(logits, axis=-1) == labels), axis=-1).astype(jnp.float32),
  }


class NextByte(SinglePass):
  """See `Task`. A row's loss is the mean over its bytes; evaluation weighs every byte the same."""

  data_kinds: tuple[str, ...] = ("text",)
  per_example: tuple[str, ...] = ("nats", "bytes", "right")
  main_metric: str = "bits_per_byte"
  higher_is_better: bool = False

  def build(self, config: schema.Config, dataset: Dataset, rngs: nnx.Rngs) -> Decoder:
    return build(Decoder, config, dataset, rngs)

  def losses(self, logits: Float[Array, "b l vocab"], labels: Int[Array, "b l"], loss: str) -> Sums:
    sums = byte_sums(logits, labels, loss)
    divisor = jnp.maximum(sums["bytes"], 1.0)
    return {"lm_loss": jnp.sum(sums["nats"] / divisor), "byte_accuracy": jnp.sum(sums["right"] / divisor)}

  def summarise(self, sums: dict[str, float], rows: int) -> dict[str, float]:
    loss = sums["lm_loss"] / rows
    return {"loss": loss, "bits_per_byte": loss / math.log(2), "byte_accuracy": sums["byte_accuracy"] / rows}

  def answer(
    self, model: Decoder, rows: Float[Array, "b w"] | None, batch: Batch, config: schema.Config
  ) -> dict[str, Array]:
    logits = model(batch["inputs"])
    predictions = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return byte_sums(logits, batch["labels"], config.model.loss) | {"predictions": predictions}

  def evaluation_metrics(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
    """Per byte: loss in nats, bits_per_byte = loss / ln 2, perplexity = e^loss, byte_accuracy."""
    loss = sums["nats"] / max(sums["bytes"], 1.0)
    return {
      "loss": loss,
      "bits_per_byte": loss / math.log(2),
      "perplexity": math.exp(min(loss, 700.0)),
      "byte_accuracy": sums["right"] / max(sums["bytes"], 1.0),
    }
