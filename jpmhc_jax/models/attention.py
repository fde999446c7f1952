"""Softmax attention: a fused kernel on accelerators, the formulas of `products` everywhere else.

The formulas store the scores of all heads: 20.6 GB of float32 for a batch of 768 with 8 heads and 916 positions. The
kernels store none. NVIDIA GPUs run cuDNN's flash attention (`jax.nn.dot_product_attention`), TPUs the splash attention
that JAX ships, and every device of a mesh its own rows and heads. The kernels take 16-bit floats; float32, float64 and
the CPU have the formulas. `precision.deterministic` needs nothing else: its flag makes XLA ask cuDNN for the backward
pass that repeats bit for bit, and the TPU's kernel always does.

The kernels have no forward mode and no second derivative; both are those of the formulas, which then store the scores.
The choice is made where the program is traced: cuDNN's function asks for cuDNN already then, and the two kernels and
the formulas save different arrays, so that they cannot be the branches of one `jax.lax.platform_dependent`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jpmhc_jax.config import schema
from jpmhc_jax.core import sharding
from jpmhc_jax.core.derivatives import custom_derivative, valued
from jpmhc_jax.core.sharding import constrain
from jpmhc_jax.models import products
from jpmhc_jax.models.products import kept

IMPLEMENTATIONS = ("auto", "xla")
_LANES = 128  # positions of a block of a TPU's kernel, or a multiple of it
_MULTIPLE = {"gpu": 2, "tpu": _LANES}  # of positions that a kernel takes
_BLOCK = 512  # positions of a block at most: its scores and their gradients fit a TPU's own memory
_BY_HEAD = ("batch", "heads", "positions", "features")


def attend(
  query: Float[Array, "b t h k"],
  key: Float[Array, "b t h k"],
  value: Float[Array, "b t h k"],
  *,
  causal: bool = False,
  implementation: str = "auto",
) -> Float[Array, "b t h k"]:
  """softmax(q kᵀ/√k) v of every head, the softmax in float32 or wider; a position sees those up to it if causal.

  implementation: 'auto', a fused kernel where one serves, or 'xla', the formulas everywhere.
  """
  platform, head = sharding.platform(), query.shape[-1]
  if implementation != "xla" and not refusal(platform, head, query.dtype):
    return Fused(platform, query.shape[1], causal)(query * jnp.asarray(head**-0.5, query.dtype), key, value)
  form = _Formulas(causal)
  return form.restored(form(*(kept(form.arranged(part)) for part in (query, key, value))))


def refusal(platform: str, head: int, dtype: jnp.dtype) -> str:
  """Why no fused kernel serves heads of this width on a platform ('cpu', 'gpu', 'tpu'); '' where one does."""
  if platform not in ("gpu", "tpu"):
    return f"there is no fused kernel for a {platform}"
  if dtype not in (jnp.bfloat16, jnp.float16)[: 2 if platform == "gpu" else 1]:
    return f"the fused kernel takes 16-bit floats, not {jnp.dtype(dtype).name}"
  return _refusal_of_cudnn(head, jnp.dtype(dtype)) if platform == "gpu" else ""


def method(model: schema.Model, dtype: jnp.dtype, platform: str) -> str:
  """How a model's attention is computed on a platform, and why, for people."""
  refused = "model.attention=xla" if model.attention == "xla" else refusal(platform, model.width // model.heads, dtype)
  if refused:
    return f"formulas, which store the scores ({refused})"
  return {"gpu": "flash attention of cuDNN, whose workspace only a GPU tells", "tpu": "splash attention"}[platform]


@functools.cache
def _refusal_of_cudnn(head: int, dtype: jnp.dtype) -> str:
  """What JAX says of these heads, and of a GPU without cuDNN."""
  probe = jax.ShapeDtypeStruct((1, 2, 1, head), dtype)
  try:
    jax.eval_shape(lambda *parts: jax.vjp(Fused("gpu", 2, causal=False).run, *parts)[0], probe, probe, probe)
  except (NotImplementedError, RuntimeError, ValueError) as error:
    return str(error)
  # JAX does not look at the generation of the GPU; where it is elsewhere, it is one of `training.topology`.
  capability = getattr(jax.local_devices()[0], "compute_capability", "8.0")
  return "" if float(capability) >= 8 else f"cuDNN's needs compute capability 8.0, the GPU has {capability}"


@dataclasses.dataclass(frozen=True)
class _Formulas:
  """Heads before positions: each head's products are then plain matrix products on contiguous memory."""

  causal: bool
  scale: float | None = None

  def arranged(self, x: Float[Array, "b t h k"]) -> Float[Array, "b h t k"]:
    """As `__call__` takes it."""
    return constrain(jnp.swapaxes(x, 1, 2), *_BY_HEAD)

  def __call__(self, query: Array, key: Array, value: Array) -> Float[Array, "b h t k"]:
    return products.attend(query, key, value, self.causal, self.scale)

  def restored(self, x: Float[Array, "b h t k"]) -> Float[Array, "b t h k"]:
    """The inverse of `arranged`."""
    return jnp.swapaxes(constrain(x, *_BY_HEAD), 1, 2)


@dataclasses.dataclass(frozen=True)
class Fused:
  """softmax(q kᵀ) v by the kernel of a platform, 'gpu' or 'tpu', for queries that are scaled already.

  length: positions without padding. `interpret` runs a TPU's kernel anywhere, slowly.
  """

  platform: str
  length: int
  causal: bool
  interpret: bool = False

  def arranged(self, x: Float[Array, "b t h k"]) -> Array:
    """As the kernel takes it: padded with zeros to whole blocks of positions, on a TPU with the heads before them."""
    padded = jnp.pad(x, ((0, 0), (0, -self.length % _MULTIPLE[self.platform]), (0, 0), (0, 0)))
    if self.platform == "gpu":
      return constrain(padded, "batch", "positions", "heads", "features")
    return constrain(jnp.swapaxes(padded, 1, 2), *_BY_HEAD)

  def restored(self, x: Array) -> Float[Array, "b t h k"]:
    """The inverse of `arranged`."""
    return (x if self.platform == "gpu" else jnp.swapaxes(x, 1, 2))[:, : self.length]

  def __call__(self, query: Array, key: Array, value: Array) -> Float[Array, "b t h k"]:
    """Attention of arrays (b, t, h, k), differentiable in both modes and twice."""
    return _fused(query, key, value, self)

  def formula(self, query: Array, key: Array, value: Array) -> Float[Array, "b t h k"]:
    """The same by the formulas."""
    form = _Formulas(self.causal, scale=1.0)
    return form.restored(form(*map(form.arranged, (query, key, value))))

  def run(self, query: Array, key: Array, value: Array) -> Array:
    """The kernel itself on arranged arrays, on every device its own rows and heads; differentiable once, backward."""
    kernel = self._cudnn if self.platform == "gpu" else self._splash
    heads = 2 if self.platform == "gpu" else 1
    axes = [sharding.split_over("batch", query.shape[0]), None, None, None]
    axes[heads] = sharding.split_over("heads", query.shape[heads])
    if not any(axes):
      return kernel(query, key, value)
    spec = PartitionSpec(*axes)
    return jax.shard_map(kernel, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(query, key, value)

  def _cudnn(self, query: Array, key: Array, value: Array) -> Float[Array, "b t h k"]:
    batch, length = query.shape[:2]
    keys = jnp.full(batch, self.length, jnp.int32) if self._padded(length) else None
    return jax.nn.dot_product_attention(
      query, key, value, scale=1.0, is_causal=self.causal, key_value_seq_lengths=keys, implementation="cudnn"
    )

  def _splash(self, query: Array, key: Array, value: Array) -> Float[Array, "b h t k"]:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # nobody else waits for its import

    heads, length = query.shape[1:3]
    size = max(block for block in range(_LANES, _BLOCK + 1, _LANES) if length % block == 0)
    parts = ("q", "kv", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: dict[str, Any] = {f"block_{part}": size for part in parts}
    kernel = splash.make_splash_mha_single_device(
      splash.MultiHeadMask([(splash.CausalMask if self.causal else splash.FullMask)((length, length))] * heads),
      block_sizes=splash.BlockSizes(**blocks),
      interpret=self.interpret,
    )
    padding = (jnp.arange(length) >= self.length).astype(jnp.int32)
    segments = splash.SegmentIds(padding, padding) if self._padded(length) else None
    return jax.vmap(functools.partial(kernel, segment_ids=segments))(query, key, value)

  def _padded(self, length: int) -> bool:
    """Whether keys must be hidden: a causal mask hides those behind the last position from all before."""
    return length > self.length and not self.causal


@functools.partial(custom_derivative, nondiff_argnums=(3,))
def _fused(query: Array, key: Array, value: Array, kernel: Fused) -> Array:
  return kernel.restored(kernel.run(*map(kernel.arranged, (query, key, value))))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["features"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _Stored:
  """An array (b, t, h, k) that waits for the backward pass with all features of a position side by side.

  A TPU gives the last axis 128 lanes: arranged for the kernel, heads of 64 take twice their size, and padded positions
  on top. Behind the barrier the compiler gives it a layout of its own and makes it in the forward pass; without, it
  keeps what this is made of.
  """

  features: Float[Array, "b t hk"]

  @classmethod
  def of(cls, x: Float[Array, "b t h k"]) -> "_Stored":
    return cls(kept(jax.lax.optimization_barrier(x.reshape(*x.shape[:2], -1))))


def _fused_forward(query, key, value, kernel):
  """Saves the arguments and what the kernel's own rule saves: its result and the logarithms of the sums."""
  stored = [_Stored.of(x) for x in (query, key, value)]
  arguments = tuple(x.features.reshape(query.shape) for x in stored)
  arranged = jax.lax.stop_gradient(tuple(map(kernel.arranged, arguments)))
  arranged_out, pullback = jax.vjp(kernel.run, *arranged)
  stored.append(_Stored.of(kernel.restored(arranged_out)))
  out = stored[-1].features.reshape(query.shape)
  places = {id(x): place for x, place in zip((*arranged, arranged_out), stored, strict=True)}

  def saved(x: Array) -> Array | _Stored:
    return places[id(x)] if id(x) in places else kept(x) if jnp.issubdtype(x.dtype, jnp.floating) else x

  return valued(kernel.formula, out, *arguments), (tuple(stored[:3]), jax.tree.map(saved, pullback))


def _fused_backward(kernel, saved, cotangent):
  # Without a barrier the compiler finds these arrays arranged in the forward pass already, and keeps those instead.
  saved, cotangent = jax.lax.optimization_barrier((saved, cotangent))

  def restored(x: Any) -> Any:
    return x.features.reshape(cotangent.shape) if isinstance(x, _Stored) else x

  def arranged(x: Any) -> Any:
    return kernel.arranged(restored(x)) if isinstance(x, _Stored) else x

  def pulled(query, key, value, cotangent):
    return jax.vjp(kernel.formula, query, key, value)[1](cotangent)

  arguments = tuple(map(restored, saved[0]))
  pullback = jax.tree.map(arranged, saved[1], is_leaf=lambda x: isinstance(x, _Stored))
  bars = jax.lax.stop_gradient(pullback)(kernel.arranged(jax.lax.stop_gradient(cotangent)))
  return valued(pulled, tuple(map(kernel.restored, bars)), *arguments, cotangent)


def _fused_tangent(kernel, saved, *tangents):
  arguments = (x.features.reshape(tangents[0].shape) for x in saved[0])
  return jax.jvp(kernel.formula, tuple(arguments), tangents)[1]


_fused.defvjp(_fused_forward, _fused_backward, _fused_tangent)
