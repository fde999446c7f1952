"""Samples of the Jacobian product, and how far a predicted spectrum is from them."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.spectral.correlated import Correlated
from jpmhc_jax.spectral.layers import Layers

__all__ = [
  "Curve", "Distances", "correlated_eigenvalues", "distances", "eigenvalues", "empirical_resolvent", "line_curve",
  "mean_and_error", "ray_curve", "sampling_error",
]  # fmt: skip


def _square_root(covariance: Float[Array, "layers n n"]) -> Float[Array, "layers n n"]:
  values, vectors = jnp.linalg.eigh(covariance)
  result: Array = (vectors * jnp.sqrt(jnp.maximum(values, 0.0))[:, None, :]) @ jnp.swapaxes(vectors, 1, 2)
  return result


@functools.partial(jax.jit, static_argnames=("width", "samples", "batch"))
def eigenvalues(layers: Layers, width: int, samples: int, key: Array, batch: int = 1) -> Float[Array, "samples size"]:
  """Eigenvalues of JᵀJ, ascending, for `samples` draws with N = streams · width.

  batch: draws made together, memory O(batch N²); 1 is fastest on a CPU, accelerators want more.
  """
  size = layers.streams * width
  read, write = _square_root(layers.read), _square_root(layers.write)

  def couple(matrix: Array, state: Array) -> Array:  # (A ⊗ I) state
    return (matrix @ state.reshape(layers.streams, width * state.shape[1])).reshape(state.shape)

  def one(key: Array) -> Array:
    def layer(jacobian: Array, inputs: tuple[Array, ...]) -> tuple[Array, None]:
      mixer, read, write, variance, key = inputs
      noise = jax.random.normal(key, (size, size), jnp.float64) * jnp.sqrt(variance / size)
      return couple(mixer, jacobian) + couple(write, noise @ couple(read, jacobian)), None

    keys = jax.random.split(key, layers.depth)
    jacobian, _ = jax.lax.scan(layer, jnp.eye(size), (layers.mixers, read, write, layers.variance, keys))
    return jnp.linalg.svd(jacobian, compute_uv=False)[::-1] ** 2

  result: Array = jax.lax.map(one, jax.random.split(key, samples), batch_size=batch)
  return result


@functools.partial(jax.jit, static_argnames=("width", "samples"))
def correlated_eigenvalues(layers: Correlated, width: int, samples: int, key: Array) -> Float[Array, "samples size"]:
  """`eigenvalues` of layers with correlated noise, N = streams · width. Memory O(L N²).

  Each of the `width` dimensions belongs to a cell, by their shares. W = S + A, S symmetric and A antisymmetric, both
  Gaussian with covariances (K + T)/2 and (K − T)/2 between layers.
  """
  _, depth, segments, _ = layers.reads.shape
  size, inner = layers.streams * width, segments * width
  coefficients = [jnp.swapaxes(each, 0, 1) for each in (layers.mixers, layers.reads, layers.writes)]
  symmetric, skew = (_square_root(0.5 * (layers.covariance + sign * layers.elliptic)[None])[0] for sign in (1, -1))

  cells = jnp.searchsorted(jnp.cumsum(layers.shares)[:-1], (jnp.arange(width) + 0.5) / width)

  def couple(matrices: Array, state: Array) -> Array:  # (A ⊗ I) state, with the A of each dimension's cell
    split = state.reshape(matrices.shape[2], width, -1)
    return jnp.einsum("wij,jwx->iwx", matrices[cells], split).reshape(-1, state.shape[1])

  def one(key: Array) -> Array:
    even, odd = jax.random.normal(key, (2, depth, inner, inner), jnp.float64) / jnp.sqrt(2 * inner)
    even, odd = even + jnp.swapaxes(even, 1, 2), odd - jnp.swapaxes(odd, 1, 2)
    noise = jnp.tensordot(symmetric, even, 1) + jnp.tensordot(skew, odd, 1)

    def layer(jacobian: Array, inputs: tuple[Array, ...]) -> tuple[Array, None]:
      mixer, read, write, noise = inputs
      return couple(mixer, jacobian) + couple(write, noise @ couple(read, jacobian)), None

    jacobian, _ = jax.lax.scan(layer, jnp.eye(size), (*coefficients, noise))
    return jnp.linalg.svd(jacobian, compute_uv=False)[::-1] ** 2

  result: Array = jax.lax.map(one, jax.random.split(key, samples))
  return result


class Curve(NamedTuple):
  """A density on a grid and its distribution function, from G on a line or ray; smoothed alike for a law and for
  samples."""

  x: np.ndarray  # λ on a line, log λ on a ray
  density: np.ndarray
  cumulative: np.ndarray


def empirical_resolvent(values: np.ndarray, z: np.ndarray) -> np.ndarray:
  """(1/N) tr (z − JᵀJ)⁻¹, averaged over all the draws: the resolvent that the law is compared with, at the same z."""
  values = np.ravel(values)
  return np.array([np.mean(1 / (at - values)) for at in np.asarray(z)])


def line_curve(z: np.ndarray, g: np.ndarray) -> Curve:
  """Density and distribution of λ from G at z = x + iη. Left of the grid lies −(η/π) Re G(x₀) of the smoothed mass."""
  z, g = np.asarray(z), np.asarray(g)
  density = -g.imag / np.pi
  return Curve(z.real, density, _integrated(z.real, density) - z.imag[0] / np.pi * g.real[0])


def ray_curve(z: np.ndarray, g: np.ndarray) -> Curve:
  """Density and distribution of log λ from G at z = x exp(iθ); whatever lies below the grid is not counted."""
  z, g = np.asarray(z), np.asarray(g)
  density = -(z * g).imag / (np.pi - np.angle(z[0]))
  return Curve(np.log(np.abs(z)), density, _integrated(np.log(np.abs(z)), density))


def _integrated(x: np.ndarray, density: np.ndarray) -> np.ndarray:
  return np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(x))])


class Distances(NamedTuple):
  """Between two curves on one grid."""

  w1: float  # ∫ |F − F̂| dx
  ks: float  # max |F − F̂|
  l1: float  # ∫ |ρ − ρ̂| dx
  l2: float  # (∫ (ρ − ρ̂)² dx)^{1/2}
  linf: float  # max |ρ − ρ̂|


def distances(law: Curve, other: Curve) -> Distances:
  """All five distances. Raises ValueError when the grids differ."""
  if law.x.shape != other.x.shape or not np.allclose(law.x, other.x):
    raise ValueError(f"curves: grids of {len(law.x)} and {len(other.x)} points differ; evaluate both at the same z")
  gap, off = np.abs(law.cumulative - other.cumulative), np.abs(law.density - other.density)
  w1, l1, l2 = (float(np.trapezoid(part, law.x)) for part in (gap, off, off**2))
  return Distances(w1, float(gap.max()), l1, l2**0.5, float(off.max()))


def sampling_error(values: np.ndarray, z: np.ndarray, curve: Callable[[np.ndarray, np.ndarray], Curve]) -> Distances:
  """The distance from the truth that chance alone is expected to leave: half of that between two halves of the draws.

  values: (draws, N). Two halves differ by √2 · √2 times the error of the whole set. Raises ValueError for a single
  draw.
  """
  half = len(values) // 2
  if half < 1:
    raise ValueError(f"values: {len(values)} draw; an error estimate needs at least 2 (rows are draws)")
  first, second = (curve(z, empirical_resolvent(part, z)) for part in (values[:half], values[half:]))
  return Distances(*(0.5 * value for value in distances(first, second)))


def mean_and_error(values: np.ndarray, statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
  """Mean of a statistic over the draws (rows) and its standard error."""
  each = np.array([statistic(row) for row in np.asarray(values)])
  return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))
