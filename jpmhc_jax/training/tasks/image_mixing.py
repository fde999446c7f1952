"""Two images in one: mixup blends them, CutMix pastes a box of one into the other.

    mixup    x = λ x_i + (1 − λ) x_j,                         λ ~ Beta(a, a)
    CutMix   x = x_j inside a box of area 1 − λ, x_i outside;  λ is then what the image's edge leaves of the box

One λ and one box serve a batch, and j is the example before i in it, whose order is random. Sources: Zhang et al. 2017
(1710.09412), Yun et al. 2019 (1905.04899).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from jpmhc_jax.core.examples import ImageFormat


def mix(
  inputs: Num[Array, "b pixels"], image: ImageFormat, mixup: float, cutmix: float, key: Key[Array, ""]
) -> tuple[Float[Array, "b pixels"], Float[Array, ""]]:
  """(pixel values of every image mixed with the one before it, share λ of its own). At least one of the two is above 0.

  mixup, cutmix: a of Beta(a, a); with both, one of them is drawn.
  """
  keys = jax.random.split(key, 4)
  own = inputs.astype(jnp.float32)
  other = jnp.roll(own, 1, axis=0)
  blend = jax.random.beta(keys[0], mixup or 1.0, mixup or 1.0)
  blended = blend * own + (1 - blend) * other
  if not cutmix:
    return blended, blend
  inside = box_of(image, jax.random.beta(keys[1], cutmix, cutmix), keys[2])
  rows = jnp.repeat(inside.reshape(-1), image.channels, total_repeat_length=image.values)
  pasted, box = jnp.where(rows[None], other, own), 1 - jnp.mean(inside.astype(jnp.float32))
  if not mixup:
    return pasted, box
  pastes = jax.random.bernoulli(keys[3])
  return jnp.where(pastes, pasted, blended), jnp.where(pastes, box, blend)


def box_of(image: ImageFormat, share: Float[Array, ""], key: Key[Array, ""]) -> Bool[Array, "height width"]:
  """Pixels in a box of √(1 − λ) of each side around a centre that is anywhere in the image, cut at its edges."""
  centre = jax.random.uniform(key, (2,))

  def along(size: int, at: Array) -> Bool[Array, "size"]:
    half = jnp.sqrt(1 - share) / 2
    middles = (jnp.arange(size) + 0.5) / size
    return (middles >= at - half) & (middles < at + half)

  return along(image.height, centre[0])[:, None] & along(image.width, centre[1])[None]
