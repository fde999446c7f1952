"""The vision transformer as the trainer sees it: cross entropy of an image's class."""

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jpmhc_jax.config import schema
from jpmhc_jax.data.images import ImageDataset
from jpmhc_jax.models.losses import TOKEN_LOSSES
from jpmhc_jax.models.transformer import VisionTransformer
from jpmhc_jax.training.tasks.base import Batch, register_task, TransformerPass


def class_losses(
  logits: Float[Array, "b classes"], labels: Int[Array, "b 1"], loss: str
) -> dict[str, Float[Array, "b"]]:
  """Per image: loss in nats (0 without a label) and accuracy (0/1). Labels are class + 1."""
  labels = jnp.where(labels > 0, labels - 1, labels)
  right = jnp.argmax(logits, axis=-1) == labels[:, 0]
  return {"loss": TOKEN_LOSSES[loss](logits[:, None], labels)[:, 0], "accuracy": right.astype(jnp.float32)}


@register_task("vit")
class ImageClass(TransformerPass):
  """See `Task`. Metrics are means over images: loss in nats, accuracy."""

  data_kinds = ("images",)
  per_example = ("loss", "accuracy")
  kept = ("truth", "answer", "confidence")
  main_metric = "accuracy"
  higher_is_better = True

  def build(self, config: schema.Config, dataset: ImageDataset, rngs: nnx.Rngs) -> VisionTransformer:
    """A `VisionTransformer` for the data set's size of image."""
    dtype = jnp.dtype(config.precision.compute)
    return VisionTransformer(config.model, config.connection, image=dataset.image, dtype=dtype, rngs=rngs)

  def losses(self, model: VisionTransformer, batch: Batch, config: schema.Config) -> dict[str, Float[Array, "b"]]:
    """Per image: loss in nats, accuracy."""
    return class_losses(model(batch["inputs"]), batch["labels"], config.model.loss)

  def predict(
    self, model: VisionTransformer, rows: Float[Array, "b w"] | None, batch: Batch, config: schema.Config
  ) -> Batch:
    """Also the likeliest class, `predictions` (b, 1), and per image `truth`, `answer` and its probability."""
    logits, labels = model(batch["inputs"]), batch["labels"]
    answer = jnp.argmax(logits, axis=-1).astype(jnp.int32)[:, None]
    nats = TOKEN_LOSSES[config.model.loss](logits[:, None], answer)[:, 0]
    kept = {"truth": labels[:, 0].astype(jnp.int32) - 1, "answer": answer[:, 0], "confidence": jnp.exp(-nats)}
    return class_losses(logits, labels, config.model.loss) | kept | {"predictions": answer}
