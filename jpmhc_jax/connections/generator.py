"""From streams to logits: one norm and one fused linear map for read, write and mix together.

    logits = Norm(vec x) W       x: (*tokens, n, d), W: (n, d, k), result (k, *tokens) in float32 or wider

The normalised streams are never stored. The norm's scale, and the mean of a layer norm, are scalars per token: they
multiply the k products instead of the n·d features. A norm of each stream in front of a joint projection multiplies the
products of each stream.

With W: (1, d, k) each stream is normed and projected alone, and the result is (k, *tokens, n).
"""

from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.connections.ops import base, vjp, xla
from jpmhc_jax.connections.ops.base import StreamOps
from jpmhc_jax.connections.ops.contractions import einsum
from jpmhc_jax.connections.ops.fused_streams import FusedStreams

__all__ = ["has_operator", "norm_parameters", "project", "rms_normed"]


def norm_parameters(norm: str, n: int, d: int) -> dict[str, Float[Array, "n d"]]:
  """Scale γ and shift β of a layer norm. The weight of an RMS norm would only repeat a factor of W: there is none."""
  if norm != "layernorm":
    return {}
  return {"norm_scale": jnp.ones((n, d), jnp.float32), "norm_shift": jnp.zeros((n, d), jnp.float32)}


def has_operator(norm: str, streams_seen: int) -> bool:
  """Whether `ops.vjp.statistics` serves the norm: for an RMS norm over all that one projection sees."""
  return norm == "rmsnorm" or (norm == "rmsnorm_per_stream" and streams_seen == 1)


def project(
  streams: Float[Array, "*tokens n d"] | FusedStreams,
  parameters: Mapping[str, Array],
  norm: str,
  epsilon: float,
  ops: StreamOps = xla,
) -> Float[Array, "k *per_kernel"]:
  """Norm(vec x) W, tokens last; of each stream alone, streams last, where W is that of one stream.

  rmsnorm: r Σ x W with r = (mean x² + ε)^(−1/2);  layernorm: r (Σ x γW − μ Σ γW) + Σ β W with r from the variance;
  rmsnorm_per_stream: Σ_s r_s Σ_d x_s W_s with r_s from stream s alone.
  """
  kernel = parameters["projection"].astype(jnp.promote_types(streams.dtype, jnp.float32))
  if has_operator(norm, len(kernel)):  # each stream alone: the norms of each and of all are the same
    products, square = vjp.statistics(streams, kernel, ops)
    return rms_normed(products, square, math.prod(kernel.shape[:2]), epsilon)
  if isinstance(streams, FusedStreams):
    streams = streams.streams
  base.announce(ops.implementation, f"norm={norm!r} has no kernel")
  if norm == "none":
    return vjp.products(streams, kernel)
  if norm == "rmsnorm_per_stream":
    return vjp.normed_products(streams, kernel, epsilon)
  scaled_kernel = kernel * parameters["norm_scale"].astype(kernel.dtype)[..., None]
  products, mean, scale = vjp.moments(streams, scaled_kernel, epsilon)
  per_column = (slice(None),) + (None,) * mean.ndim
  total = jnp.sum(scaled_kernel, axis=(0, 1))[per_column]
  shift = einsum("nd,ndk->k", parameters["norm_shift"].astype(kernel.dtype), kernel)[per_column]
  return (products - mean[None] * total) * scale[None] + shift


def rms_normed(
  products: Float[Array, "k *per_kernel"], square: Float[Array, "*per_kernel"], size: int, epsilon: float
) -> Float[Array, "k *per_kernel"]:
  """(Σ x² / size + ε)^(−1/2) Σ x W: what an RMS norm in front of the projection of `size` numbers makes of it."""
  return products * jax.lax.rsqrt(square / size + epsilon)[None]
