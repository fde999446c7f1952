"""The vision transformer with residual streams: images of any channels to logits over classes; see `transformer`.

    x_p = E (patch p − ½) + position_p;   logits = W mean_p y_p

Patches are squares of `model.patch` pixels, pixels are scaled to [0, 1]. Every position sees every other one.
"""

import math

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.examples import ImageFormat
from jpmhc_jax.models.layers import weight
from jpmhc_jax.models.transformer import Hidden, Transformer


class VisionTransformer(Transformer):
  """Class logits of an image. Raises ConfigError where patches do not tile the image."""

  def __init__(
    self,
    model: schema.Model,
    connection: schema.Connection,
    *,
    image: ImageFormat,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if image.height % model.patch or image.width % model.patch:
      raise ConfigError(
        f"model.patch={model.patch}: expected a divisor of both sides of the {image.height}×{image.width} images"
      )
    self.image, self.dtype = image, jnp.dtype(dtype)
    length, pixels = image.height * image.width // model.patch**2, image.channels * model.patch**2
    self.patch_embedding = weight(rngs, (pixels, model.width), pixels, (None, "embed"))
    self.class_head = weight(rngs, (model.width, image.classes), model.width, ("embed", None))
    if model.positions == "learned":
      self.position_embedding = weight(rngs, (length, model.width), model.width, ("positions", "embed"))
    super().__init__(model, connection, length=length, causal=False, rngs=rngs)

  def patches(self, inputs: Int[Array, "b pixels"]) -> Float[Array, "b l p"]:
    """Rows of pixel values cut into patches, row by row, with mean pixel about 0."""
    image, side = self.image, self.model.patch
    grid = (image.height // side, side, image.width // side, side, image.channels)
    pixels = inputs.astype(self.dtype).reshape(inputs.shape[0], *grid) / image.top - 0.5
    return pixels.transpose(0, 1, 3, 2, 4, 5).reshape(inputs.shape[0], grid[0] * grid[2], -1)

  def embed(self, inputs: Int[Array, "b pixels"]) -> Hidden:
    """Embedded patches with their positions, expanded into the streams."""
    x = jnp.einsum("blp,pd->bld", self.patches(inputs), self.patch_embedding[...].astype(self.dtype))
    if self.model.positions == "learned":
      x = x + math.sqrt(self.model.width) * self.position_embedding[...].astype(self.dtype)[None]
    return self.expanded(x)

  def head(self, h: Hidden) -> Float[Array, "b classes"]:
    """Logits from the mean over positions of the reduced, normed streams."""
    pooled = jnp.mean(self.reduced(h), axis=1)
    return jnp.einsum("bd,dc->bc", pooled, self.class_head[...].astype(self.dtype))

  def __call__(self, inputs: Int[Array, "b pixels"]) -> Float[Array, "b classes"]:
    """Logits of the classes; inputs are the pixel values, channels last, flattened."""
    return self.head(self.run(self.embed(inputs))[0])
