"""Samples of the Jacobian product, and how far a predicted spectrum is from them."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.spectral.layers import Layers


def _square_root(covariance: Float[Array, "layers n n"]) -> Float[Array, "layers n n"]:
  values, vectors = jnp.linalg.eigh(covariance)
  return (vectors * jnp.sqrt(jnp.maximum(values, 0.0))[:, None, :]) @ jnp.swapaxes(vectors, 1, 2)


@functools.partial(jax.jit, static_argnames=("width", "samples"))
def eigenvalues(layers: Layers, width: int, samples: int, key: Array) -> Float[Array, "samples size"]:
  """Eigenvalues of JᵀJ, ascending, for `samples` draws with N = streams · width. One draw at a time: memory O(N²)."""
  size = layers.streams * width
  read, write = _square_root(layers.read), _square_root(layers.write)

  def couple(matrix, state):  # (A ⊗ I) state
    return (matrix @ state.reshape(layers.streams, width * state.shape[1])).reshape(state.shape)

  def one(key):
    def layer(jacobian, inputs):
      mixer, read, write, variance, key = inputs
      noise = jax.random.normal(key, (size, size), jnp.float64) * jnp.sqrt(variance / size)
      return couple(mixer, jacobian) + couple(write, noise @ couple(read, jacobian)), None

    keys = jax.random.split(key, layers.depth)
    jacobian, _ = jax.lax.scan(layer, jnp.eye(size), (layers.mixers, read, write, layers.variance, keys))
    return jnp.linalg.svd(jacobian, compute_uv=False)[::-1] ** 2

  return jax.lax.map(one, jax.random.split(key, samples))


class Distances(NamedTuple):
  """Between a predicted law and samples; `error` holds the same distances between two halves of the samples."""

  w1: float  # ∫ |F − F̂| dx
  ks: float  # max |F − F̂|
  l1: float  # ∫ |ρ − ρ̂| dx, ρ̂ a kernel density estimate (or a histogram) on the same grid
  l2: float  # (∫ (ρ − ρ̂)² dx)^{1/2}
  linf: float  # max |ρ − ρ̂|


def empirical(values: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Empirical distribution function of all values at the grid points."""
  return np.searchsorted(np.sort(np.ravel(values)), x, side="right") / np.size(values)


def kernel_density(values: np.ndarray, x: np.ndarray, width: float) -> np.ndarray:
  """Lorentzian kernel density estimate: what the Stieltjes inversion at height `width` does to the exact law."""
  values = np.ravel(values)
  return np.array([np.mean(width / ((at - values) ** 2 + width**2)) for at in x]) / np.pi


def distances(x: np.ndarray, density: np.ndarray, cumulative: np.ndarray, values: np.ndarray, width: float) -> Distances:
  """Distances on the grid x between a law (density smoothed with a Lorentzian of `width`, and distribution) and samples."""
  x, density, cumulative = (np.asarray(a, float) for a in (x, density, cumulative))
  gap = np.abs(cumulative - empirical(values, x))
  off = np.abs(density - kernel_density(values, x, width))
  return Distances(
    float(np.trapezoid(gap, x)), float(gap.max()), float(np.trapezoid(off, x)), float(np.sqrt(np.trapezoid(off**2, x))), float(off.max())
  )


def sampling_error(values: np.ndarray, x: np.ndarray, width: float) -> Distances:
  """Distances between two independent halves of the draws, divided by √2·√2: the expected error of the whole set."""
  half = len(values) // 2
  if half < 1:
    raise ValueError(f"values: {len(values)} draw; an error estimate needs at least 2 (rows are draws)")
  first, second = np.asarray(values[:half]), np.asarray(values[half:])
  split = distances(x, kernel_density(second, x, width), empirical(second, x), first, width)
  return Distances(*(0.5 * value for value in split))


def mean_and_error(values: np.ndarray, statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
  """Mean of a statistic over the draws (rows) and its standard error."""
  each = np.array([statistic(row) for row in np.asarray(values)])
  return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))
