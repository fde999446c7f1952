"""Moments of JᵀJ and energies of signals and gradients, by exact matrix recursions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.spectral import dyson, newton
from jpmhc_jax.spectral.layers import Layers

__all__ = ["first_moment", "gradient_energy", "limit_moments", "log_first_moment"]


def gradient_energy(layers: Layers) -> Float[Array, " layers_and_one"]:
  """E |J_{l…L}ᵀ g|² / N for an isotropic unit gradient g at the output: entry l is the energy in front of layer l.

  M_L = I;  M_l = A_lᵀ M_{l+1} A_l + σ_l² tr(B_l M_{l+1})/n · E_l;  entry l = tr M_l / n. Exact for every N.
  Entry 0 is the first moment E tr JᵀJ / N; the last entry is 1.
  """

  def back(state: Array, layer: tuple[Array, ...]) -> tuple[Array, Array]:
    mixer, read, write, variance = layer
    size = variance * jnp.sum(write * state) / layers.streams
    following = mixer.T @ state @ mixer + size * read
    return following, jnp.trace(following) / layers.streams

  sequence = (layers.mixers, layers.read, layers.write, layers.variance)
  _, energy = jax.lax.scan(back, jnp.eye(layers.streams), sequence, reverse=True)
  return jnp.append(energy, 1.0)


def first_moment(layers: Layers) -> Float[Array, ""]:
  """E tr JᵀJ / N, exact for every N; Π_l (tr A_lᵀA_l/n + σ_l²) when every A_lᵀA_l is a multiple of the identity."""
  return gradient_energy(layers)[0]


def log_first_moment(layers: Layers) -> Float[Array, ""]:
  """log of `first_moment`, at depths at which the moment itself leaves float64; −inf for a product that is zero."""

  def back(state: tuple[Array, Array], layer: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
    matrix, log_size = state
    mixer, read, write, variance = layer
    following = mixer.T @ matrix @ mixer + variance * jnp.sum(write * matrix) / layers.streams * read
    size = jnp.trace(following) / layers.streams
    return (following / jnp.where(size > 0, size, 1.0), log_size + jnp.log(size)), None

  sequence = (layers.mixers, layers.read, layers.write, layers.variance)
  start = jnp.eye(layers.streams, dtype=layers.mixers.dtype), jnp.zeros((), layers.mixers.dtype)
  return jax.lax.scan(back, start, sequence, reverse=True)[0][1]


def limit_moments(layers: Layers, order: int, points: int = 64) -> Float[Array, " order"]:
  """lim E tr (JᵀJ)^k / N for k = 1 … order: m_k = (1/2πi) ∮ z^k G dz on a circle around the support.

  The trapezoid rule converges geometrically; the radius adapts to |J|² ≤ Π (|A| + 2σ)².
  """
  noise = jnp.sqrt(layers.variance * _norm(layers.read) * _norm(layers.write))
  radius = 1.5 * jnp.prod((_norm(layers.mixers) + 2 * noise) ** 2)
  phase = jnp.pi * (jnp.arange(points) + 0.5) / points  # the lower half of the circle is the mirror image
  z = radius * jnp.exp(1j * phase)
  g = dyson.resolvent(layers, z, newton.Options(chunk=points)).g
  powers = jnp.arange(1, order + 1)
  terms = (z / radius)[None, :] ** (powers[:, None] + 1) * (g * radius)[None, :]
  return jnp.mean(terms.real, axis=1) * radius**powers


def _norm(matrices: Float[Array, "layers n n"]) -> Float[Array, " layers"]:
  result: Array = jnp.linalg.norm(matrices, 2, axis=(1, 2))
  return result
