"""Networks over images as the trainer sees them: cross entropy of an image's class.

Training may see an image turned and recoloured, or blended with another, a target that is less than sure, and a network
that some sub-layers are left out of; what it draws for that is a function of (seed, step). Evaluation sees the images
themselves.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import require
from jpmhc_jax.data.images import ImageDataset
from jpmhc_jax.models.connections import check_connection
from jpmhc_jax.models.losses import TOKEN_LOSSES
from jpmhc_jax.models.resnet import ResNet, stage_connections
from jpmhc_jax.models.transformer import VisionTransformer
from jpmhc_jax.training.tasks.base import Batch, check_one_call, Probe, register_task, SinglePass, Sums, TransformerPass
from jpmhc_jax.training.tasks.image_augment import augment
from jpmhc_jax.training.tasks.image_mixing import mix

Network = VisionTransformer | ResNet


def class_losses(
  logits: Float[Array, "b classes"], labels: Int[Array, "b 1"], loss: str
) -> dict[str, Float[Array, "b"]]:
  """Per image: loss in nats (0 without a label) and accuracy (0/1). Labels are class + 1."""
  labels = jnp.where(labels > 0, labels - 1, labels)
  right = jnp.argmax(logits, axis=-1) == labels[:, 0]
  return {"loss": TOKEN_LOSSES[loss](logits[:, None], labels)[:, 0], "accuracy": right.astype(jnp.float32)}


def spread_losses(logits: Float[Array, "b classes"]) -> Float[Array, "b"]:
  """Softmax cross entropy against the uniform distribution over the classes: log Σ exp z − mean z."""
  wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return jax.nn.logsumexp(wide, axis=-1) - jnp.mean(wide, axis=-1)


class ImagePass(SinglePass):
  """See `Task`. Metrics are means over images: loss in nats, accuracy."""

  data_kinds = ("images",)
  per_example = ("loss", "accuracy")
  kept = ("truth", "answer", "confidence")
  main_metric = "accuracy"
  higher_is_better = True

  def check(self, config: schema.Config) -> None:
    """Raises ConfigError for a smoothed target of another loss than softmax."""
    super().check(config)
    smoothing, name = config.model.vision.label_smoothing, "model.vision.label_smoothing"
    require(not smoothing or config.model.loss == "softmax", name, smoothing, "0, or model.loss='softmax' beside it")

  def losses(self, model: Network, batch: Batch, config: schema.Config) -> dict[str, Float[Array, "b"]]:
    """Per image: loss in nats, accuracy; of the images themselves."""
    return class_losses(model(batch["inputs"]), batch["labels"], config.model.loss)

  def objective(
    self,
    model: Network,
    rows: Float[Array, "b w"] | None,
    carry: Any,
    config: schema.Config,
    key: Key[Array, ""] | None,
  ) -> tuple[Float[Array, ""], tuple[Any, Sums]]:
    """Σ over rows of (1 − ε)(λ ℓ(c) + (1 − λ) ℓ(c')) + ε mean_k ℓ(k), and the sums of loss and of accuracy for c.

    c' is the class of the image that is blended in and 1 − λ its share; ε is model.vision.label_smoothing.
    """
    batch, fields = carry.data, config.model.vision
    inputs, labels, share, others = batch["inputs"], batch["labels"], None, batch["labels"]
    drawn = None if key is None else jax.random.fold_in(key, 1)
    if key is not None and fields.randaugment:
      inputs = augment(inputs, model.image, fields.randaugment, fields.magnitude, jax.random.fold_in(key, 2))
    if key is not None and (fields.mixup or fields.cutmix):
      inputs, share = mix(inputs, model.image, fields.mixup, fields.cutmix, jax.random.fold_in(key, 0))
      others = jnp.roll(labels, 1, axis=0)
    logits = model(inputs, training=True, key=drawn)
    sums = class_losses(logits, labels, config.model.loss)
    if share is not None:
      blended = class_losses(logits, others, config.model.loss)["loss"]
      sums["loss"] = share * sums["loss"] + (1 - share) * blended
    if fields.label_smoothing:
      smoothing = fields.label_smoothing
      sums["loss"] = (1 - smoothing) * sums["loss"] + smoothing * spread_losses(logits)
    totals = {name: jnp.sum(values) for name, values in sums.items()}
    return totals["loss"], (carry, totals)

  def predict(self, model: Network, rows: Float[Array, "b w"] | None, batch: Batch, config: schema.Config) -> Batch:
    """Also the likeliest class, `predictions` (b, 1), and per image `truth`, `answer` and its probability."""
    logits, labels = model(batch["inputs"]), batch["labels"]
    answer = jnp.argmax(logits, axis=-1).astype(jnp.int32)[:, None]
    nats = TOKEN_LOSSES[config.model.loss](logits[:, None], answer)[:, 0]
    kept = {"truth": labels[:, 0].astype(jnp.int32) - 1, "answer": answer[:, 0], "confidence": jnp.exp(-nats)}
    return class_losses(logits, labels, config.model.loss) | kept | {"predictions": answer}


@register_task("vit")
class ImageClass(ImagePass, TransformerPass):
  """The vision transformer; see `ImagePass`."""

  def build(self, config: schema.Config, dataset: ImageDataset, rngs: nnx.Rngs) -> VisionTransformer:
    """A `VisionTransformer` for the data set's size of image."""
    dtype = jnp.dtype(config.precision.compute)
    return VisionTransformer(config.model, config.connection, image=dataset.image, dtype=dtype, rngs=rngs)


@register_task("resnet")
class ResidualImageClass(ImagePass):
  """The residual network; see `ImagePass`."""

  linearised = True

  def check(self, config: schema.Config) -> None:
    """Also raises ConfigError for a depth that there is not, for streams of a stage that cannot work, and as
    `check_one_call` does."""
    super().check(config)
    for connection in stage_connections(config.model, config.connection):
      check_connection(connection, config.model.width)
    check_one_call(config)
    single = config.connection.single_pass
    require(single == "off", "connection.single_pass", single, "off: the blocks of model.kind=resnet end in a ReLU")

  def build(self, config: schema.Config, dataset: ImageDataset, rngs: nnx.Rngs) -> ResNet:
    """A `ResNet` for the data set's size of image."""
    dtype = jnp.dtype(config.precision.compute)
    return ResNet(config.model, config.connection, image=dataset.image, dtype=dtype, rngs=rngs)

  def capture(self, model: ResNet, rows: Float[Array, "b w"] | None, carry: Any, probe: Probe) -> dict[str, Any]:
    """One pass over the latest batch: "stage0.block0", …, at the positions of one path; see `ResNet.run`."""
    return model.run(model.embed(carry.data["inputs"]), probe=probe)[1]
