"""Convolutions, the norms behind or in front of them, and the sub-layer of a residual network that they make."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.config import schema
from jpmhc_jax.models.layers import truncated_normal
from jpmhc_jax.models.products import convolve, kept

Hidden = Float[Array, "b _ _ ..."]  # height and width change on the way


class Convolution(nnx.Module):
  """A square convolution without bias, zeros outside of the image; (b, h, w, in) -> (b, ⌈h/s⌉, ⌈w/s⌉, out)."""

  def __init__(self, side: int, inputs: int, outputs: int, *, stride: int = 1, rngs: nnx.Rngs):
    std = math.sqrt(2 / (side**2 * outputs))
    kernel = truncated_normal(rngs.params(), (side, side, inputs, outputs), std)
    self.kernel = nnx.Param(kernel, axes=(None, None, None, "embed"), role="trunk")
    self.side, self.stride = side, stride

  @jax.named_scope("convolution")
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 k"]:
    return kept(convolve(x, self.kernel[...].astype(x.dtype), self.stride))


class GroupNorm(nnx.Module):
  """γ (x − mean)/√(variance + ε) + β over all positions and a group of features, of each image and stream by itself."""

  def __init__(self, width: int, model: schema.Model):
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes=(None,), role="trunk")
    self.shift = nnx.Param(jnp.zeros((width,), jnp.float32), axes=(None,), role="trunk")
    self.group, self.epsilon = math.gcd(width, model.vision.group), model.norm_epsilon

  @jax.named_scope("norm")
  def __call__(self, x: Hidden, training: bool) -> Hidden:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return self.standardised(wide, training).astype(x.dtype)

  def standardised(self, wide: Hidden, training: bool) -> Hidden:
    """In the precision of the statistics."""
    grouped = wide.reshape(*wide.shape[:-1], -1, self.group)
    normed = _standardised(grouped, *_moments(grouped, (1, 2, -1)), self.epsilon).reshape(wide.shape)
    return self.scaled(normed)

  def scaled(self, normed: Hidden) -> Hidden:
    """γ x + β."""
    scale, shift = (_per_feature(vector[...], normed) for vector in (self.scale, self.shift))
    return normed * scale.astype(normed.dtype) + shift.astype(normed.dtype)


class BatchNorm(GroupNorm):
  """The same over the whole batch and all positions and streams, feature by feature.

  Training uses the batch's moments, over all devices, and moves the running ones, mean and (biased) variance, towards
  them; else the running ones count. Source: 1502.03167.
  """

  def __init__(self, width: int, model: schema.Model):
    super().__init__(width, model)
    self.mean = nnx.BatchStat(jnp.zeros((width,), jnp.float32), axes=(None,))
    self.variance = nnx.BatchStat(jnp.ones((width,), jnp.float32), axes=(None,))
    self.momentum = model.vision.momentum

  def standardised(self, wide: Hidden, training: bool) -> Hidden:
    """In the precision of the statistics."""
    running = (self.mean, self.variance)
    mean, variance = (_per_feature(statistic[...], wide) for statistic in running)
    if training:
      mean, variance = _moments(wide, tuple(range(wide.ndim - 1)))
      for statistic, moment in zip(running, (mean, variance), strict=True):
        new = jax.lax.stop_gradient(moment.reshape(-1)).astype(jnp.float32)
        statistic[...] = self.momentum * statistic[...] + (1 - self.momentum) * new
    return self.scaled(_standardised(wide, mean, variance, self.epsilon))


def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
  mean = jnp.mean(x, axis=axes, keepdims=True)
  return mean, jnp.mean(jnp.square(x - mean), axis=axes, keepdims=True)


def _standardised(x: Array, mean: Array, variance: Array, epsilon: float) -> Array:
  return (x - mean) * jax.lax.rsqrt(variance + epsilon)


def _per_feature(vector: Array, like: Array) -> Array:
  return vector.reshape((1,) * (like.ndim - 1) + (-1,))


NORMS = {"group": GroupNorm, "batch": BatchNorm}


class Convolutions(nnx.Module):
  """F: the convolutions of a block with their norms and ReLUs, (b, h, w, in) -> (b, ⌈h/s⌉, ⌈w/s⌉, out)."""

  def __init__(self, model: schema.Model, inputs: int, width: int, outputs: int, stride: int, rngs: nnx.Rngs):
    basic = ((3, inputs, width, stride), (3, width, outputs, 1))  # side, in, out, stride
    # The bottleneck's stride is that of its 3×3, as in torchvision.
    bottleneck = ((1, inputs, width, 1), (3, width, width, stride), (1, width, outputs, 1))
    convolutions = basic if outputs == width else bottleneck
    self.count, self.pre = len(convolutions), model.vision.order == "pre"
    for k, (side, before, behind, step) in enumerate(convolutions):
      setattr(self, f"convolution{k}", Convolution(side, before, behind, stride=step, rngs=rngs))
      setattr(self, f"norm{k}", NORMS[model.vision.norm](before if self.pre else behind, model))

  def __call__(self, x: Float[Array, "b h w c"], training: bool) -> Float[Array, "b h2 w2 k"]:
    for k in range(self.count):
      convolution, norm = getattr(self, f"convolution{k}"), getattr(self, f"norm{k}")
      if self.pre:
        x = convolution(jax.nn.relu(norm(x, training)))
      else:
        x = norm(convolution(x), training)
        x = jax.nn.relu(x) if k + 1 < self.count else x
    return x
