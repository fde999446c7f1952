"""The Dyson equation of layers with correlated noise (`noise.Correlated`): 2L x 2L unknowns, whatever n is.

The linearisation of JᵀJ (Haagerup, Thorbjørnsen 2005; Anderson 1103.4825) gives an operator-valued semicircle law for
the resolvent (Helton, Rashidi Far, Speicher 2007). Its noise enters only where a layer reads and writes. With the
deterministic propagator Φ_{l:k} = A_{l−1} … A_k, Φ = Φ_{L:0}, and G₀ = (z − ΦᵀΦ)⁻¹, the resolvent at these 2Lm places
without noise is

    H₀ = [[0, N], [Nᵀ, V Vᵀ]] + U G₀ Uᵀ,   N_lk = A'_l Φ_{l:k+1} B_k (k < l),   V_l = B_lᵀ Φ_{L:l+1}ᵀ,
    U = [A'_l Φ_{l:0}; V_l Φ]

and with noise, h being the partial trace of H over the m segments, S the exchange of the halves, ∘ entrywise:

    H = (1 − H₀ M)⁻¹ H₀,   M = ([[K, T], [T, K]] ∘ S h S) ⊗ I_m,   h = tr_m H / m
    G(z) = (1/n) tr [ G₀ + G₀ Uᵀ M (1 − H₀ M)⁻¹ U G₀ ].

The unknown h is 2L x 2L, whatever n and m are; the mixers act through N, U and V alone. [[K, T], [T, K]] ≥ 0, so the
map keeps Im h ≤ 0 (Schur) and has one fixed point there (Earle, Hamilton 1970). Where the coefficients differ between
cells (tokens and features), H₀, H and G are those of each cell; the noise couples all of them, so that h is the mean,
by the cells' shares.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float
import numpy as np

from jpmhc_jax.spectral.correlated.noise import Correlated

__all__ = [
  "Map", "Places", "coherence", "derivative", "dyson_map", "echoes", "places", "product", "self_energy", "units",
]  # fmt: skip


class Places(NamedTuple):
  """What the mixers do between the places where layers read and write, and the moments there. See the module."""

  between: jax.Array  # (C, L, m, L, m)  N
  ends: jax.Array  # (C, 2, L, m, n)  U
  outer: jax.Array  # (C, L, m, n)  V
  product: jax.Array  # (C, n, n)  Φ
  moments: jax.Array  # (2L, 2L)  [[K, T], [T, K]]
  shares: jax.Array  # (C,) of the cells


def places(layers: Correlated) -> Places:
  """N, U, V and Φ by one pass each way, O(C L² m² n²). Layers without noise drop out where their moments are known."""
  noisy = _noisy(layers.covariance)
  between, ends, outer, product = jax.vmap(_places)(layers.mixers, layers.reads, layers.writes)
  between, ends, outer = between[:, noisy][:, :, :, noisy], ends[:, :, noisy], outer[:, noisy]
  k, t = (moment[noisy][:, noisy] for moment in (layers.covariance, layers.elliptic))
  return Places(between, ends, outer, product, jnp.block([[k, t], [t, k]]), layers.shares)


def _places(mixers: Array, reads: Array, writes: Array) -> tuple[Array, Array, Array, Array]:
  """N, U, V and Φ of one cell."""
  depth, segments, streams = reads.shape

  def forward(state: tuple[Array, Array], layer: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    index, mixer, read, write = layer
    product, written = state  # Φ_{l:0} and Φ_{l:k+1} B_k of every earlier layer k, zero for later ones
    row = read @ written
    written = (mixer @ written).at[index].set(write)
    return (mixer @ product, written), (read @ product, row)

  def backward(after: Array, layer: tuple[Array, Array]) -> tuple[Array, Array]:
    mixer, write = layer
    return after @ mixer, write.T @ after.T

  eye = jnp.eye(streams)
  start = eye, jnp.zeros((depth, streams, segments))
  (product, _), (inner, between) = jax.lax.scan(forward, start, (jnp.arange(depth), mixers, reads, writes))
  _, outer = jax.lax.scan(backward, eye, (mixers, writes), reverse=True)
  return jnp.swapaxes(between, 1, 2), jnp.stack([inner, outer @ product]), outer, product


def _noisy(covariance: Float[Array, "layers layers"]) -> np.ndarray:
  """Indices of the layers that have noise; all where that is not known, while JAX traces."""
  if isinstance(covariance, jax.core.Tracer):
    return np.arange(covariance.shape[0])
  return np.flatnonzero(np.diagonal(np.asarray(covariance)) > 0)


class Map(NamedTuple):
  """One application of the self-consistency map at w = 1/z."""

  full: jax.Array  # (C, 2Lm, 2Lm)  H
  traced: jax.Array  # (2L, 2L)  h
  g: jax.Array  # ()  G(z)
  moment: jax.Array  # ()  tr (ΦᵀΦ + Uᵀ M (1 − H₀ M)⁻¹ U) / n: at w = 0 the first moment of the spectrum


def dyson_map(at: Places, w: Complex[Array, ""], unknowns: Complex[Array, "u u"]) -> Map:
  """What follows from the unknowns h at w = 1/z; w = 0 is z = ∞. The Dyson equation says that h reproduces itself."""
  segments = at.ends.shape[3]
  energy = self_energy(at, unknowns)
  # In units of the unknowns: rows of H₀M differ by e^L over the layers, which would cost the solution its digits.
  wide = jnp.repeat(jax.lax.stop_gradient(units(unknowns)), segments)[:, None]

  def cell(between: Array, ends: Array, outer: Array, product: Array) -> tuple[Array, Array, Array]:
    return _cell(between, ends, outer, product, w, energy, wide)

  full, g, moment = jax.vmap(cell)(at.between, at.ends, at.outer, at.product)
  return Map(full, _traced(at, full), at.shares @ g, at.shares @ moment)


def _cell(
  between: Array, ends: Array, outer: Array, propagator: Array, w: Array, energy: Array, wide: Array
) -> tuple[Array, Array, Array]:
  """H, G and the moment of one cell under the self-energy of all."""
  streams = propagator.shape[0]
  gram = propagator.T @ propagator
  first = w * jnp.linalg.inv(jnp.eye(streams) - w * gram)  # G₀
  ends = ends.reshape(-1, streams).astype(w.dtype)
  half = len(ends) // 2
  between, outer = between.reshape(half, half), outer.reshape(half, streams)
  bare = jnp.block([[jnp.zeros_like(between), between], [between.T, outer @ outer.T]]) + (ends @ first) @ ends.T
  matrix = jnp.eye(2 * half) - product(bare / wide, energy * wide.T)
  both = wide * jnp.linalg.solve(matrix, jnp.concatenate([bare, ends], axis=1) / wide)
  full, moved = both[:, : 2 * half], both[:, 2 * half :]
  noise = ends.T @ (energy @ moved)
  g = jnp.trace(first + first @ noise @ first) / streams
  return full, g, jnp.trace(gram + noise) / streams


def units(unknowns: Complex[Array, "u u"]) -> Float[Array, " u"]:
  """√|h_rr|: what a place is measured by. It follows any rescaling of reads against writes."""
  diagonal = jnp.abs(jnp.diagonal(unknowns))
  return jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))


def self_energy(at: Places, unknowns: Complex[Array, "u u"]) -> Complex[Array, "um um"]:
  """M = (moments ∘ S h S) ⊗ I_m: reads take the place of writes, and writes of reads."""
  half, segments = unknowns.shape[0] // 2, at.ends.shape[3]
  energy = at.moments * jnp.roll(unknowns, (half, half), axis=(0, 1))
  return energy if segments == 1 else jnp.kron(energy, jnp.eye(segments, dtype=energy.dtype))


def derivative(at: Places, full: Complex[Array, "c um um"], tangent: Complex[Array, "u u"]) -> Complex[Array, "u u"]:
  """dh along a tangent of the unknowns: from H = (H₀⁻¹ − M)⁻¹, dH = H dM H."""
  moved = self_energy(at, tangent)
  return _traced(at, jax.vmap(lambda h: product(product(h, moved), h))(full))


def product(a: Complex[Array, "u v"], b: Complex[Array, "v k"]) -> Complex[Array, "u k"]:
  """a b by three real products, a third faster on a CPU than XLA's complex one."""
  real, imaginary = a.real @ b.real, a.imag @ b.imag
  return jax.lax.complex(real - imaginary, (a.real + a.imag) @ (b.real + b.imag) - real - imaginary)


def _traced(at: Places, matrices: Complex[Array, "c um um"]) -> Complex[Array, "u u"]:
  """Mean over the cells by their shares, and over the segments of the diagonal blocks."""
  segments = at.ends.shape[3]
  matrix = jnp.sum(at.shares.astype(matrices.real.dtype)[:, None, None] * matrices, axis=0)
  if segments == 1:
    return matrix
  size = matrix.shape[0] // segments
  return jnp.einsum("aibi->ab", matrix.reshape(size, segments, size, segments)) / segments


def echoes(layers: Correlated) -> Float[np.ndarray, "c l l"]:
  """|N_lk| of every cell: how much of what layer k wrote layer l reads. With m segments the norm of a block over √m."""
  everywhere = layers._replace(covariance=jnp.eye(layers.depth))  # every layer counts, with noise or not
  size = jnp.linalg.norm(places(everywhere).between, axis=(2, 4))
  return np.asarray(size / np.sqrt(layers.reads.shape[2]))


def coherence(layers: Correlated, weights: Sequence[int]) -> float:
  """The coherence of repeated weights: mean |N_lk| over the pairs of layers k < l that apply the same weight.

  How much of what a weight wrote it reads again: 1 for mixers that keep the mean of the streams (identity, Iso,
  Birkhoff) with a read of 1/n and a write of 1, towards 0 where mixers turn from call to call. 0 where no weight
  repeats. The mean is also over the cells, by their shares; |N_lk| as in `echoes`.
  weights: (L,) label of the weight that a layer applies.

  >>> turned, ends = np.array([[[0.0, -1.0], [1.0, 0.0]]] * 3), (np.full((3, 2), 0.5), np.ones((3, 2)))
  >>> with jax.enable_x64(True):  # identity skips, and a quarter turn at every layer
  ...   straight = jp.spectral.correlated_noise(np.stack([np.eye(2)] * 3), *ends, np.eye(3))
  ...   jp.spectral.coherence(straight, [0, 1, 0])
  ...   jp.spectral.coherence(straight._replace(mixers=turned[None]), [0, 1, 0])
  1.0
  0.0
  """
  labels = np.asarray(weights)
  same = (labels[:, None] == labels[None, :]) & np.tri(len(labels), k=-1, dtype=bool)
  return float(np.asarray(layers.shares) @ np.mean(echoes(layers)[:, same], axis=1)) if np.any(same) else 0.0
