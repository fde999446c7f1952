"""First and second moments of the sub-layers' Jacobians across all parts of a recursion, from common random probes.

A part is RMSNorm(H x + B F(A' x)). Its norm removes one direction, the vector's own, and in a recursion that is the
direction in which F' is largest and repeats from call to call. So what the theory takes for noise is

    F̂ = P_out F' P_in,   P_out = B⁺ (I − û ûᵀ) B,   P_in = A' (I − v̂ v̂ᵀ) A'⁺

with û the normed output of the part and v̂ that of the part before it; the first part of a call reads a sum of latents,
and P_in = I. With V Rademacher, SV = (F̂V + F̂ᵀV)/2 − tr(F̂)/N V and AV = (F̂V − F̂ᵀV)/2, N the size of F̂:

    m_l = ⟨V, F̂_l V⟩/N,   K + T = 2 ⟨S_l V, S_k V⟩/N,   K − T = 2 ⟨A_l V, A_k V⟩/N   (Hutchinson; K, T as in
    `spectral.correlated`)

averaged over the probes: Gram matrices, positive semidefinite by construction.

The rows of F̂ differ in size, and a norm's scale is small where a part wrote much. So they are taken out first: F̂ stands
for diag(ρ)⁻¹ F̂ above, ρ_i² = Σ_j F̂_ij² over its mean, and ρ belongs to the writes. (Columns are left alone: a token
mixer's rows and columns differ by the same factor, a feature's, which would count twice.)
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from jpmhc_jax.spectral.measured import Products

PROBES = 16  # K within 3 %, T within 7 % on trained recursions
ROW_PROBES = 64  # ρ within 9 %
_TINY = 1e-30
_LEAST = 1e-6  # ρ² of rows that are zero

Projection = Callable[[Float[Array, "b l d"]], Float[Array, "b l d"]]


class Moments(NamedTuple):
  """Moments of L sub-layers, float64; see `spectral.correlated.correlated_noise`."""

  covariance: Float[np.ndarray, "L L"]
  elliptic: Float[np.ndarray, "L L"]
  mean: Float[np.ndarray, " L"]
  error: float  # relative sampling error of the covariance, in the Frobenius norm


ProductsOf = Callable[[Float[Array, "b l d"], Float[Array, "L N"]], Float[Array, "L 2 N"]]


def estimate(
  products: ProductsOf,
  shape: Sequence[int],
  parts: int,
  key: Key[Array, ""],
  tick: Callable[[float], None] = lambda share: None,
) -> tuple[Moments, Float[np.ndarray, "L N"]]:
  """The moments of L parts, and ρ, from Rademacher vectors V of this shape.

  products: (V, ρ) -> diag(ρ)⁻¹ F̂_l V and F̂_lᵀ diag(ρ)⁻¹ V of every part. tick: called after every probe with the share
  of the work that is done; what it raises ends the work.
  """
  keys = jax.random.split(key, ROW_PROBES + PROBES)
  count, samples, sizes = 0, [], np.zeros((parts, int(np.prod(shape))))
  for each in keys[PROBES:]:
    sizes += np.asarray(products(_probe(each, shape), jnp.ones(sizes.shape, jnp.float32))[:, 0], np.float64) ** 2
    tick((count := count + 1) / len(keys))
  rows = np.sqrt(np.maximum(sizes / np.maximum(sizes.mean(axis=1, keepdims=True), _TINY), _LEAST))
  for each in keys[:PROBES]:
    probe = _probe(each, shape)
    samples.append(_sample(np.asarray(products(probe, jnp.asarray(rows, jnp.float32)), np.float64), np.ravel(probe)))
    tick((count := count + 1) / len(keys))
  mean, even, odd = (np.mean([sample[part] for sample in samples], axis=0) for part in range(3))
  each = np.stack([sample[1] + sample[2] for sample in samples])
  error = np.linalg.norm(each.std(axis=0, ddof=1)) / np.sqrt(PROBES) / max(np.linalg.norm(even + odd), _TINY)
  return Moments(even + odd, even - odd, mean, float(error)), rows


def _probe(key: Key[Array, ""], shape: Sequence[int]) -> Array:
  return jax.random.rademacher(key, tuple(shape), jnp.float32)


def _sample(products: np.ndarray, probe: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """m, (K + T)/2 and (K − T)/2 from one probe."""
  forward, backward = products[:, 0], products[:, 1]
  mean = forward @ probe / len(probe)
  symmetric = 0.5 * (forward + backward) - mean[:, None] * probe
  skew = 0.5 * (forward - backward)
  return mean, symmetric @ symmetric.T / len(probe), skew @ skew.T / len(probe)


def noise(
  sublayer: Callable[[Array], Array], at: Float[Array, "b l d"], into: Projection, out: Projection, rows: Array
) -> Projection:
  """v -> diag(ρ)⁻¹ P_out F(u + P_in v) of a sub-layer at its input u, whose derivative at 0 is F̂; rows: (N,) ρ."""
  return lambda v: out(sublayer(at + into(v))) / rows.reshape(at.shape)


def pair(noise: Projection, probe: Float[Array, "b l d"]) -> Float[Array, "2 N"]:
  """F̂ V and F̂ᵀ V."""
  push, pull = Products(noise)(jnp.zeros_like(probe), ())
  return jnp.stack([push(jnp.ravel(probe)), pull(jnp.ravel(probe))])


def rotated(
  noise: Projection, rows: Float[Array, " N"], key: Key[Array, ""], vector: Float[Array, "b l d"]
) -> Float[Array, "b l d"]:
  """diag(ρ) Q F̂ Qᵀ v, Q the random rotation of this key."""
  forwards, backwards = rotation(key, vector.shape)
  image = jax.jvp(noise, (jnp.zeros_like(vector),), (backwards(vector),))[1]
  turned: Array = rows.reshape(vector.shape) * forwards(image)
  return turned


def rotation(key: Key[Array, ""], shape: Sequence[int]) -> tuple[Projection, Projection]:
  """Q and Qᵀ of a random rotation of all entries: signs and an orthonormal cosine transform, twice.

  Every entry meets every other, as under a Haar rotation, at the cost of four transforms.
  """
  first, second = jax.random.rademacher(key, (2, math.prod(shape)), jnp.float32)

  def forwards(vector: Array) -> Array:
    mixed = jax.scipy.fft.dct(first * vector.ravel(), norm="ortho")
    return jax.scipy.fft.dct(second * mixed, norm="ortho").reshape(vector.shape)

  def backwards(vector: Array) -> Array:
    mixed = second * jax.scipy.fft.idct(vector.ravel(), norm="ortho")
    return (first * jax.scipy.fft.idct(mixed, norm="ortho")).reshape(vector.shape)

  return forwards, backwards


def unchanged(vector: Array) -> Array:
  """No projection."""
  return vector


def behind(streams: Float[Array, "b l n e"], axes: int | tuple[int, ...], write: Float[Array, "b l n m"]) -> Projection:
  """P_out of a part with this write, whose output is `streams` and normed over `axes` (none: the identity)."""
  return unchanged if axes == () else _through(write, streams, axes, _inverse(write))


def before(streams: Float[Array, "b l n e"], axes: int | tuple[int, ...], read: Float[Array, "b l m n"]) -> Projection:
  """P_in of a part with this read, where `streams` were normed over `axes` last (none: the identity)."""
  return unchanged if axes == () else _through(_inverse(read), streams, axes, read)


def _through(first: Array, streams: Array, axes: int | tuple[int, ...], last: Array) -> Projection:
  """last · (I − û ûᵀ) · first, where `first` takes the m segments of a vector to streams and `last` back."""
  unit = streams / jnp.sqrt(jnp.sum(streams**2, axis=axes, keepdims=True) + _TINY)

  def project(vector: Array) -> Array:
    parts = vector.reshape(*vector.shape[:2], first.shape[-1], -1)
    spread = jnp.einsum("blnm,blme->blne", first, parts)
    spread = spread - unit * jnp.sum(unit * spread, axis=axes, keepdims=True)
    return jnp.einsum("blmn,blne->blme", last, spread).reshape(vector.shape)

  return project


def _inverse(ends: Float[Array, "b l i j"]) -> Float[Array, "b l j i"]:
  """Pseudo-inverse of tall or wide matrices of full rank."""
  turned = jnp.swapaxes(ends, -1, -2)
  if ends.shape[-2] < ends.shape[-1]:
    return jnp.swapaxes(_inverse(turned), -1, -2)
  gram = turned @ ends
  floor = jnp.broadcast_to(_TINY * jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
  return jnp.linalg.solve(gram + floor, turned)
