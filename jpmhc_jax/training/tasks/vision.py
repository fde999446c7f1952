"""The vision transformer as the trainer sees it: cross entropy of an image's class."""

from collections.abc import Mapping

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jpmhc_jax.config import schema
from jpmhc_jax.data import Dataset
from jpmhc_jax.models.deep_supervision import Batch
from jpmhc_jax.models.losses import TOKEN_LOSSES
from jpmhc_jax.models.vision import VisionTransformer
from jpmhc_jax.training.tasks.base import SinglePass, Sums


def class_sums(logits: Float[Array, "b classes"], labels: Int[Array, "b 1"], loss: str) -> dict[str, Float[Array, "b"]]:
  """Per image: lm_loss in nats (0 without a label) and accuracy (0/1). Labels are class + 1."""
  labels = jnp.where(labels > 0, labels - 1, labels)
  right = jnp.argmax(logits, axis=-1) == labels[:, 0]
  return {"lm_loss": TOKEN_LOSSES[loss](logits[:, None], labels)[:, 0], "accuracy": right.astype(jnp.float32)}


class ImageClass(SinglePass):
  """See `Task`. Metrics are means over images."""

  data_kinds: tuple[str, ...] = ("images",)
  per_example: tuple[str, ...] = ("lm_loss", "accuracy")
  main_metric: str = "accuracy"
  higher_is_better: bool = True

  def build(self, config: schema.Config, dataset: Dataset, rngs: nnx.Rngs) -> VisionTransformer:
    assert dataset.image is not None  # kind_of has checked data.kind
    dtype = jnp.dtype(config.precision.compute)
    return VisionTransformer(config.model, config.connection, image=dataset.image, dtype=dtype, rngs=rngs)

  def losses(self, logits: Float[Array, "b classes"], labels: Int[Array, "b 1"], loss: str) -> Sums:
    return {name: jnp.sum(values) for name, values in class_sums(logits, labels, loss).items()}

  def summarise(self, sums: dict[str, float], rows: int) -> dict[str, float]:
    return {"loss": sums["lm_loss"] / rows, "accuracy": sums["accuracy"] / rows}

  def answer(
    self, model: VisionTransformer, rows: Float[Array, "b w"] | None, batch: Batch, config: schema.Config
  ) -> dict[str, Array]:
    logits = model(batch["inputs"])
    predictions = jnp.argmax(logits, axis=-1).astype(jnp.int32)[:, None]
    return class_sums(logits, batch["labels"], config.model.loss) | {"predictions": predictions}

  def evaluation_metrics(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
    """Means over images: loss in nats, accuracy."""
    return {"loss": sums["lm_loss"] / max(examples, 1), "accuracy": sums["accuracy"] / max(examples, 1)}
