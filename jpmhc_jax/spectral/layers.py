"""The model that every prediction starts from: a stack of linear layers, mixer plus noise.

    J = Y_L ... Y_1,    Y_l = A_l (x) I_p + sigma_l B_l^{1/2} X_l E_l^{1/2},    X_l i.i.d. N(0, 1/N),  N = n p.

`A_l` is the n x n mixer, `E_l` (read side) and `B_l` (write side) are the n x n covariances of the noise over streams.
Full noise has E = B = I. The hyper-connection block reads with a vector a and writes with a vector b, so that its
noise is
sigma (b a^T) (x) W with W p x p i.i.d. N(0, 1/p): E = a a^T, B = b b^T and sigma_l^2 n in place of sigma_l^2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

__all__ = ["Layers", "Real", "block_noise", "full_noise", "without_rotations"]

Real = Float[Array, "..."] | Float[np.ndarray, "..."] | float | int


class Layers(NamedTuple):
  """A stack of L layers with n streams; layer 0 acts first. Build it with `full_noise` or `block_noise`.

  >>> with jax.enable_x64(True):
  ...   layers = jp.spectral.full_noise(np.eye(2)[None], 0.1)
  >>> layers.depth, layers.streams, layers.variance.round(4).tolist()
  (1, 2, [0.01])
  """

  mixers: jax.Array  # (L, n, n)
  variance: jax.Array  # (L,)  sigma_l^2 in the normalisation of X above
  read: jax.Array  # (L, n, n)  E_l, symmetric positive semidefinite
  write: jax.Array  # (L, n, n)  B_l, symmetric positive semidefinite

  @property
  def depth(self) -> int:
    """L, the number of layers."""
    return self.mixers.shape[0]

  @property
  def streams(self) -> int:
    """n."""
    return self.mixers.shape[-1]


def _stack(mixers: Real, sigma: Real) -> tuple[jax.Array, jax.Array]:
  if not jax.config.read("jax_enable_x64"):
    raise ValueError("spectral predictions need float64: wrap the call in `with jax.enable_x64(True):`")
  mixers = jnp.asarray(mixers, jnp.float64)
  if mixers.ndim != 3 or mixers.shape[1] != mixers.shape[2]:
    raise ValueError(f"mixers: shape {mixers.shape}; expected (layers, streams, streams)")
  sigma = jnp.asarray(sigma, jnp.float64)
  if sigma.shape not in ((), mixers.shape[:1]):
    raise ValueError(f"sigma: shape {sigma.shape}; expected one number or one a layer, ({mixers.shape[0]},)")
  if not isinstance(sigma, jax.core.Tracer) and bool(jnp.any(sigma < 0)):
    raise ValueError(f"sigma: smallest value {float(jnp.min(sigma))}; a standard deviation is >= 0")
  for name, values in (("mixers", mixers), ("sigma", sigma)):
    if not isinstance(values, jax.core.Tracer) and not bool(jnp.all(jnp.isfinite(values))):
      raise ValueError(f"{name}: not finite everywhere; a mixer or a noise of NaN or infinity has no spectrum")
  return mixers, jnp.broadcast_to(sigma, mixers.shape[:1])


def without_rotations(layers: Layers, tolerance: float = 1e-5) -> Layers:
  """Layers of one stream with the spectrum of these, where full noise is added to multiples of rotations, else these.

  Full noise has the law of every rotation of it, so rotations can be pushed through the product and out of it. float32
  mixers are orthogonal to 1e-6 or so, which is what `tolerance`, relative, has to cover.
  """
  n = layers.streams
  eye = np.eye(n)
  square = np.asarray(jnp.einsum("lki,lkj->lij", layers.mixers, layers.mixers))
  gain = np.trace(square, axis1=1, axis2=2) / n
  full = np.array_equal(layers.read, np.broadcast_to(eye, square.shape)) and np.array_equal(layers.write, layers.read)
  if not full or np.any(np.abs(square - gain[:, None, None] * eye) > tolerance * gain[:, None, None]):
    return layers
  return full_noise(np.sqrt(gain)[:, None, None], np.sqrt(layers.variance))


def full_noise(mixers: Real, sigma: Real) -> Layers:
  """Layers whose noise couples every stream with every stream: Y = A (x) I + sigma X.

  mixers: (L, n, n); sigma: one standard deviation for all layers or (L,). Needs float64 (`jax.enable_x64`).

  Raises ValueError for other shapes, a negative sigma, values that are not finite, and without float64.

  >>> with jax.enable_x64(True):
  ...   jp.spectral.full_noise(np.eye(2)[None], 0.1).read.tolist()
  [[[1.0, 0.0], [0.0, 1.0]]]
  """
  mixers, sigma = _stack(mixers, sigma)
  eye = jnp.broadcast_to(jnp.eye(mixers.shape[1]), mixers.shape)
  return Layers(mixers, sigma**2, eye, eye)


def block_noise(mixers: Real, sigma: Real, reads: Real, writes: Real) -> Layers:
  """Layers as the hyper-connection block builds them: Y = A (x) I + sigma (b a^T) (x) W, W p x p i.i.d. N(0, 1/p).

  mixers: (L, n, n); sigma: number or (L,); reads a_l and writes b_l: (L, n). With m segments Y = A (x) I + sigma
  (B (x) I) W (A' (x) I) for W mp x mp i.i.d. N(0, 1/mp): reads A' (L, m, n), writes B (L, n, m). Needs float64
  (`jax.enable_x64`).

  Raises ValueError as `full_noise` does, and for reads and writes that do not fit.

  >>> with jax.enable_x64(True):
  ...   layers = jp.spectral.block_noise(np.eye(2)[None], 0.1, np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]]))
  ...   layers.read.tolist(), layers.write.tolist()
  ([[[0.25, 0.25], [0.25, 0.25]]], [[[1.0, 0.0], [0.0, 0.0]]])
  """
  mixers, sigma = _stack(mixers, sigma)
  reads, writes = jnp.asarray(reads, jnp.float64), jnp.asarray(writes, jnp.float64)
  for name, vectors in (("reads", reads), ("writes", writes)):
    if vectors.ndim == 2 and vectors.shape != mixers.shape[:2]:
      raise ValueError(f"{name}: shape {vectors.shape}; expected (layers, streams) = {mixers.shape[:2]}")
  reads = reads[:, None, :] if reads.ndim == 2 else reads
  writes = writes[:, :, None] if writes.ndim == 2 else writes
  layers, streams, _ = mixers.shape
  segments = reads.shape[1]
  if reads.shape != (layers, segments, streams) or writes.shape != (layers, streams, segments):
    raise ValueError(
      f"reads {reads.shape}, writes {writes.shape}: expected ({layers}, segments, {streams}) and ({layers}, {streams}, "
      "segments)"
    )
  read = jnp.einsum("lki,lkj->lij", reads, reads)
  write = jnp.einsum("lik,ljk->lij", writes, writes)
  return Layers(mixers, sigma**2 * streams / segments, read, write)
