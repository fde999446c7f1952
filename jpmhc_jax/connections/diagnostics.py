"""What the mixers do to the streams, in numbers cheap enough for every logging step and safe under jit.

With J = 11ᵀ/n the averaging matrix, E⊥(x) = ‖(I − J)x‖² is the difference energy of the streams: what a doubly
stochastic mixer contracts and an orthogonal one keeps. Everything is averaged over (at most `SAMPLE`) tokens unless it
says max or min.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.connections.connection import Coefficients
from jpmhc_jax.manifolds import Manifold

SAMPLE = 256  # tokens whose matrices are decomposed


def stream_diagnostics(streams: Float[Array, "*tokens n d"]) -> dict[str, Float[Array, ""]]:
  """difference_energy E⊥/‖x‖² in [0, 1], cosine (mean pairwise), effective_rank in [1, n] of the Gram matrix."""
  n, d = streams.shape[-2:]
  x = streams.reshape(-1, n, d).astype(jnp.float32)
  gram = jnp.einsum("tid,tjd->tij", x, x)
  energy = jnp.trace(gram, axis1=1, axis2=2) + 1e-12
  common = jnp.sum(gram, axis=(1, 2)) / n
  weights = jnp.linalg.eigvalsh(_sample(gram))
  weights = jnp.clip(weights, 1e-12) / jnp.sum(jnp.clip(weights, 1e-12), axis=-1, keepdims=True)
  return {
    "difference_energy": jnp.mean(1 - common / energy),
    "cosine": _mean_cosine(gram),
    "effective_rank": jnp.mean(jnp.exp(-jnp.sum(weights * jnp.log(weights), axis=-1))),
  }


def stream_cosine(streams: Float[Array, "*tokens n d"]) -> Float[Array, ""]:
  """Mean cosine between two different streams of a token: 1 where the streams are copies of each other."""
  x = streams.reshape(-1, *streams.shape[-2:]).astype(jnp.float32)
  return _mean_cosine(jnp.einsum("tid,tjd->tij", x, x))


def _mean_cosine(gram: Float[Array, "t n n"]) -> Float[Array, ""]:
  n = gram.shape[-1]
  norms = jnp.sqrt(jnp.diagonal(gram, axis1=1, axis2=2)) + 1e-6
  cosines = gram / (norms[:, :, None] * norms[:, None, :])
  return jnp.mean((jnp.sum(cosines, axis=(1, 2)) - n) / max(n * (n - 1), 1))


def mixer_diagnostics(manifold: Manifold, coefficients: Coefficients) -> dict[str, Float[Array, ""]]:
  """Of one connection: distance to the set (max), distance to I, singular values, rotation angles, routing dominance.

  singular_value_k and angle_deg_k are means over the tokens, from the largest on; angles are arccos of the eigenvalues
  of the symmetric part, which are the rotation angles (in pairs) where H is orthogonal. max_angle_deg is the first.
  """
  read, mix, write = coefficients
  n = read.shape[0]
  values = {
    "read_dominance": jnp.mean(jnp.max(jnp.abs(read), axis=0) / (jnp.sum(jnp.abs(read), axis=0) + 1e-12)),
    "write_dominance": jnp.mean(jnp.max(jnp.abs(write), axis=0) / (jnp.sum(jnp.abs(write), axis=0) + 1e-12)),
  }
  if mix is None:
    return values
  matrices = _sample(matrices_of(mix))
  singular = jnp.linalg.svd(matrices, compute_uv=False)
  symmetric = jnp.linalg.eigvalsh((matrices + jnp.swapaxes(matrices, 1, 2)) / 2)
  angles = jnp.degrees(jnp.arccos(jnp.clip(symmetric, -1, 1)))
  deviation = matrices - jnp.eye(n, dtype=matrices.dtype)[None]
  return values | {
    "distance_to_set": jnp.max(manifold.distance(mix)),
    "distance_to_identity": jnp.mean(jnp.sqrt(jnp.sum(jnp.square(deviation), axis=(1, 2)))),
    "smallest_singular_value": jnp.min(singular),
    "largest_singular_value": jnp.max(singular),
    "max_angle_deg": jnp.mean(angles[:, 0]),
    **{f"singular_value_{k}": jnp.mean(singular[:, k]) for k in range(n)},
    **{f"angle_deg_{k}": jnp.mean(angles[:, k]) for k in range(n)},
  }


def composite_diagnostics(mixers: Sequence[Float[Array, "n n *tokens"] | None]) -> dict[str, Float[Array, ""]]:
  """Of the product of all mixers along the depth: gains (largest absolute row and column sum) and singular values."""
  product = None
  for mix in mixers:
    if mix is not None:
      matrices = _sample(matrices_of(mix))
      product = matrices if product is None else jnp.matmul(matrices, product)
  if product is None:
    return {}
  singular = jnp.linalg.svd(product, compute_uv=False)
  return {
    "forward_gain": jnp.max(jnp.sum(jnp.abs(product), axis=2)),
    "backward_gain": jnp.max(jnp.sum(jnp.abs(product), axis=1)),
    "smallest_singular_value": jnp.min(singular),
    "largest_singular_value": jnp.max(singular),
  }


def matrices_of(mix: Float[Array, "n n *tokens"]) -> Float[Array, "t n n"]:
  """Tokens first, one matrix a token (one matrix in all for a static mixer), float32."""
  n = mix.shape[0]
  return jnp.moveaxis(mix.reshape(n, n, -1), -1, 0).astype(jnp.float32)


def _sample(per_token: Array) -> Array:
  """Every k-th token, so that at most SAMPLE are left."""
  stride = -(-per_token.shape[0] // SAMPLE)
  return jax.lax.slice_in_dim(per_token, 0, per_token.shape[0], stride)
