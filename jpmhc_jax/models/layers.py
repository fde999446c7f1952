"""Plain layers: linear maps, RMSNorm without weight, RoPE, attention, SwiGLU. Logical axis names only, no sharding.

Parameters are float32 masters; each layer casts its own to the dtype of its input.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num
import numpy as np

from jpmhc_jax.core.derivatives import custom_derivative
from jpmhc_jax.core.examples import ImageFormat
from jpmhc_jax.core.sharding import constrain
from jpmhc_jax.core.xla import fusion_barrier
from jpmhc_jax.models.attention import attend
from jpmhc_jax.models.products import dense, kept, silu_gated

# Standard deviation of a unit normal truncated at ±2: dividing by it makes the truncated variable's exactly 1.
_TRUNCATED_STD = 0.8796256610342398


def truncated_normal(key: Array, shape: tuple[int, ...], std: float) -> Float[Array, "..."]:
  """Normal truncated at ±2σ, scaled so that what remains has standard deviation `std` (LeCun: 1/√fan_in)."""
  return std / _TRUNCATED_STD * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)


def weight(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, axes: tuple[str | None, ...]) -> nnx.Param:
  """A trunk weight: truncated LeCun normal with its logical axes."""
  return nnx.Param(truncated_normal(rngs.params(), shape, 1 / math.sqrt(fan_in)), axes=axes, role="trunk")


def stacked(
  make: Callable[[nnx.Rngs, Array], Any], count: int, rngs: nnx.Rngs, name: str = "layers", first: int = 0
) -> Any:
  """`make(rngs, first + k)` for k < count as one module, parameters on a leading axis called `name`."""
  keys, numbers = jax.random.split(rngs.params(), count), first + jnp.arange(count)
  modules = jax.vmap(lambda key, number: make(nnx.Rngs(params=key), number))(keys, numbers)
  for variable in jax.tree.leaves(modules, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
    variable.set_metadata(axes=(name, *variable.get_metadata("axes")))
  return modules


def kept_paths(key: Key[Array, ""], rate: float, paths: int, batch: int) -> Float[Array, "paths b"]:
  """Stochastic depth: path k of an example is worth 1/(1 − p_k) with probability 1 − p_k, else 0; p_k = rate k/(K − 1).

  Source: Huang et al. 2016 (1603.09382), with the rise of timm, from 0 at the first path.
  """
  kept = 1 - rate * jnp.arange(paths, dtype=jnp.float32)[:, None] / max(paths - 1, 1)
  return jax.random.bernoulli(key, jnp.broadcast_to(kept, (paths, batch))) / kept


def per_row(x: Float[Array, "b ..."], scales: Float[Array, "b"] | None) -> Float[Array, "b ..."]:
  """Every example times a number of its own; x where there is none."""
  return x if scales is None else x * scales.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def pixels(inputs: Num[Array, "b pixels"], image: ImageFormat, dtype: jnp.dtype) -> Float[Array, "b h w c"]:
  """Rows of pixel values as images, from −½ to ½."""
  return inputs.astype(dtype).reshape(-1, image.height, image.width, image.channels) / image.top - 0.5


@functools.partial(custom_derivative, nondiff_argnums=(1, 2))
@jax.named_scope("norm")
def rms_norm(x: Float[Array, "..."], epsilon: float, axis: int | tuple[int, ...] = -1) -> Float[Array, "..."]:
  """x / √(mean x² + ε) along one or several axes, computed in float32 or wider, without a learned weight."""
  # Without the barrier XLA's library sums the squares together with the mixing of the streams in front of them: 0.74 ms
  # instead of 0.40 for four streams of 1,856 × 128 on the CPU.
  wide = fusion_barrier(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
  return (wide * _rms_scale(wide, epsilon, axis)).astype(x.dtype)


def _rms_scale(wide: Array, epsilon: float, axis: int | tuple[int, ...]) -> Array:
  return jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=axis, keepdims=True) + epsilon)


# y = r x, r = (mean x² + ε)^(−1/2)  ⇒  x̄ = r ȳ − r³ mean(ȳ x) x. Without the barrier XLA on the CPU computes the sum of
# everything that flows into ȳ twice, once for each of its two uses.
@jax.named_scope("norm")
def _rms_norm_backward(epsilon, axis, x, cotangent):
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  cotangent = jax.lax.optimization_barrier(cotangent).astype(wide.dtype)
  scale = _rms_scale(wide, epsilon, axis)
  along = jnp.mean(cotangent * wide, axis=axis, keepdims=True)
  return ((scale * cotangent - scale**3 * along * wide).astype(x.dtype),)


rms_norm.defvjp(lambda x, epsilon, axis: (rms_norm(x, epsilon, axis), x), _rms_norm_backward)


def rope_tables(length: int, head: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
  """cos and sin, (length, head): frequencies θ^(−2i/head), i < head/2, the list of them repeated twice."""
  frequencies = theta ** (-np.arange(0, head, 2, dtype=np.float32) / np.float32(head))
  angles = np.outer(np.arange(length, dtype=np.float32), frequencies.astype(np.float32))
  angles = np.concatenate([angles, angles], axis=-1)
  return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: Float[Array, "b l h k"], cos: np.ndarray, sin: np.ndarray) -> Float[Array, "b l h k"]:
  """Rotary position embedding, half-split form: (x₁, x₂) -> (x₁ cos − x₂ sin, x₂ cos + x₁ sin)."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  first, second = jnp.split(wide, 2, axis=-1)
  turned = jnp.concatenate([-second, first], axis=-1)
  cos, sin = cos[None, :, None, :].astype(wide.dtype), sin[None, :, None, :].astype(wide.dtype)
  return (wide * cos + turned * sin).astype(x.dtype)


class Attention(nnx.Module):
  """Softmax attention without bias or dropout, bidirectional or causal; fused q, k, v projection; optional RoPE.

  implementation: 'auto' or 'xla'; see `attention.attend`.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    *,
    rope_theta: float | None,
    rngs: nnx.Rngs,
    causal: bool = False,
    implementation: str = "auto",
  ):
    head = width // heads
    self.qkv = weight(rngs, (width, 3, heads, head), width, ("embed", None, "heads", None))
    self.out = weight(rngs, (heads, head, width), width, ("heads", None, "embed"))
    self.rope_theta, self.causal, self.implementation = rope_theta, causal, implementation

  @jax.named_scope("attention")
  def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    qkv = dense(x, self.qkv[...].astype(x.dtype))
    query, key, value = (qkv[:, :, part] for part in range(3))
    if self.rope_theta is not None:
      tables = rope_tables(x.shape[1], query.shape[-1], self.rope_theta)
      query, key = rotate(query, *tables), rotate(key, *tables)
    mixed = attend(query, key, value, causal=self.causal, implementation=self.implementation)
    return kept(dense(mixed, self.out[...].astype(x.dtype), axes=2))


def swiglu_width(width: int, expansion: float, multiple: int) -> int:
  """round(expansion · width · 2/3) rounded up to a multiple: 1,536 for d = 512, expansion 4, multiple 256."""
  return -(-round(expansion * width * 2 / 3) // multiple) * multiple


class SwiGLU(nnx.Module):
  """down( silu(gate(x)) · up(x) ) on the last axis, gate and up in one product."""

  def __init__(self, width: int, inner: int, *, axis: str = "embed", rngs: nnx.Rngs):
    self.gate_up = weight(rngs, (width, 2, inner), width, (axis, None, "mlp"))
    self.down = weight(rngs, (inner, width), inner, ("mlp", axis))

  @jax.named_scope("swiglu")
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    kernel = self.gate_up[...].astype(x.dtype)
    names = ("batch", *(None,) * (x.ndim - 2), "mlp")
    gate, up = (kept(constrain(dense(x, kernel[:, part]), *names)) for part in range(2))
    return kept(dense(self.inside(silu_gated(gate, up)), self.down[...].astype(x.dtype)))

  def inside(self, h: Float[Array, "*b i"]) -> Float[Array, "*b i"]:
    """What happens to the gated features before the last product: nothing."""
    return h


class ConvSwiGLU(SwiGLU):
  """down( silu(c + Σ_j w_j ∘ h_{t+j−⌊k/2⌋}) ), h = silu(gate(x)) · up(x): SwiGLU, and a convolution over positions.

  Each feature has k taps and a bias of its own, drawn from ±1/√k; positions outside count as 0. k = 2 sees the position
  and the one before it. Source: the Universal Reasoning Model, 2512.14693 and its code.
  """

  def __init__(self, width: int, inner: int, taps: int, *, rngs: nnx.Rngs):
    super().__init__(width, inner, rngs=rngs)
    bound = 1 / math.sqrt(taps)
    kernel, bias = (
      jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound) for shape in ((taps, 1, inner), (inner,))
    )
    self.taps = nnx.Param(kernel, axes=(None, None, "mlp"), role="trunk")
    self.bias = nnx.Param(bias, axes=("mlp",), role="trunk")

  def inside(self, h: Float[Array, "b l i"]) -> Float[Array, "b l i"]:
    """The convolution and its silu."""
    count, length = self.taps.shape[0], h.shape[1]
    padded = jnp.pad(h, ((0, 0), (count // 2, count - 1 - count // 2), (0, 0)))
    taps = self.taps[...].astype(h.dtype)
    shifted = (taps[j][None] * padded[:, j : j + length] for j in range(count))
    return jax.nn.silu(sum(shifted, start=self.bias[...].astype(h.dtype)[None, None]))


class TokenMLP(nnx.Module):
  """SwiGLU over the positions: the attention-free token mixer of TRM-MLP."""

  def __init__(self, length: int, inner: int, *, rngs: nnx.Rngs):
    self.mlp = SwiGLU(length, inner, axis="positions", rngs=rngs)

  def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    return jnp.swapaxes(self.mlp(jnp.swapaxes(x, -1, -2)), -1, -2)
