"""Reference laws of squared singular values: density, moments, sampler. Every one is checked against Monte Carlo in
the tests."""

import dataclasses
from math import comb
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.spectral import dyson, moments
from jpmhc_jax.spectral.layers import full_noise

__all__ = ["GinibreProduct", "HaarOrthogonal", "IdentitySkip", "Law", "MarchenkoPastur"]


class Law(Protocol):
  """A law on [0, ∞) that the eigenvalues of some N x N matrix MᵀM follow as N → ∞."""

  def density(self, x: np.ndarray) -> np.ndarray:
    """ρ(x), any shape."""
    ...

  def moment(self, order: int) -> float:
    """∫ x^order ρ(x) dx."""
    ...

  def sample(self, key: Array, size: int) -> Array:
    """The eigenvalues of one drawn size x size matrix MᵀM, rising."""
    ...


def _squared_singular_values(matrix: Float[Array, "n m"]) -> Float[Array, " k"]:
  return jnp.linalg.svd(matrix, compute_uv=False)[::-1] ** 2


@dataclasses.dataclass(frozen=True)
class MarchenkoPastur:
  """XᵀX for X of shape (N/ratio) x N, entries N(0, ratio/N): support (1 ± √ratio)², ratio ≤ 1. Marchenko, Pastur
  1967."""

  ratio: float = 1.0

  def __post_init__(self) -> None:
    if not 0 < self.ratio <= 1:
      raise ValueError(f"ratio={self.ratio}: expected 0 < columns/rows <= 1")

  def edges(self) -> tuple[float, float]:
    """The ends of the support."""
    return (1 - self.ratio**0.5) ** 2, (1 + self.ratio**0.5) ** 2

  def density(self, x: np.ndarray) -> np.ndarray:
    """ρ(x) = √((x₊ − x)(x − x₋)) / (2π ratio x) between the edges, 0 outside."""
    low, high = self.edges()
    inside = np.sqrt(np.maximum((high - x) * (x - low), 0.0))
    return inside / (2 * np.pi * self.ratio * np.where(x > 0, x, 1.0))

  def moment(self, order: int) -> float:
    """Narayana polynomial: Σ_k ratio^k C(order, k) C(order − 1, k)/(k + 1)."""
    return float(sum(self.ratio**k * comb(order, k) * comb(order - 1, k) / (k + 1) for k in range(order)))

  def sample(self, key: Array, size: int) -> Array:
    """The rising squared singular values of one drawn matrix, (size,)."""
    rows = round(size / self.ratio)
    return _squared_singular_values(jax.random.normal(key, (rows, size)) / jnp.sqrt(rows))


@dataclasses.dataclass(frozen=True)
class GinibreProduct:
  """Product of `depth` independent N x N Gaussian matrices of variance 1/N: the Fuss-Catalan law.

  Parametric density: x = sin^{L+1}((L+1)t) / (sin t · sin^L(L t)), ρ = sin² t · sin^{L−1}(L t) / (π sin^L((L+1)t)), 0
  < t < π/(L+1).
  Source: Biane 1998; Haagerup, Möller 2013. depth = 1 is the Ginibre matrix itself (Marchenko-Pastur with ratio 1).
  """

  depth: int = 1

  def edges(self) -> tuple[float, float]:
    """The ends of the support."""
    return 0.0, (self.depth + 1) ** (self.depth + 1) / self.depth**self.depth

  def density(self, x: np.ndarray) -> np.ndarray:
    """ρ(x) > 0 inside the edges, interpolated on 20,000 points of the parametric form."""
    depth = self.depth
    t = np.linspace(0, np.pi / (depth + 1), 20_001)[1:-1]
    grid = np.sin((depth + 1) * t) ** (depth + 1) / (np.sin(t) * np.sin(depth * t) ** depth)
    value = np.sin(t) ** 2 * np.sin(depth * t) ** (depth - 1) / (np.pi * np.sin((depth + 1) * t) ** depth)
    result: np.ndarray = np.exp(np.interp(np.log(x), np.log(grid[::-1]), np.log(value[::-1]))) * (x < self.edges()[1])
    return result

  def moment(self, order: int) -> float:
    """Fuss-Catalan number C((L+1)k, k)/(Lk + 1)."""
    return comb((self.depth + 1) * order, order) / (self.depth * order + 1)

  def sample(self, key: Array, size: int) -> Array:
    """The rising squared singular values of one drawn matrix, (size,)."""
    product = jnp.eye(size)
    for each in jax.random.split(key, self.depth):
      product = jax.random.normal(each, (size, size)) @ product / jnp.sqrt(size)
    return _squared_singular_values(product)


@dataclasses.dataclass(frozen=True)
class HaarOrthogonal:
  """A Haar-distributed rotation: every squared singular value is 1 (an atom; `density` is that of the eigenvalue
  angle, 1/2π)."""

  def density(self, x: np.ndarray) -> np.ndarray:
    """1/2π, of the eigenvalue angle."""
    return np.full(np.shape(x), 1 / (2 * np.pi))

  def moment(self, order: int) -> float:
    """1, at every order."""
    return 1.0

  def matrix(self, key: Array, size: int) -> Float[Array, "size size"]:
    """One rotation or reflection, uniform on O(size)."""
    q, r = jnp.linalg.qr(jax.random.normal(key, (size, size)))
    return q * jnp.sign(jnp.diagonal(r))[None, :]

  def sample(self, key: Array, size: int) -> Array:
    """The rising squared singular values of one drawn matrix, (size,)."""
    return _squared_singular_values(self.matrix(key, size))


@dataclasses.dataclass(frozen=True)
class IdentitySkip:
  """(I + σX_L) … (I + σX_1): the law that every orthogonal mixer gives too (push the rotations through X)."""

  depth: int
  sigma: float
  eta: float = 1e-4  # height above the axis at which the density is read

  def density(self, x: np.ndarray) -> np.ndarray:
    """−Im G(x + iη)/π. Raises NotSolvedError where the equation is not solved."""
    with jax.enable_x64(True):
      layers = full_noise(np.ones((self.depth, 1, 1)), self.sigma)
      return -np.asarray(dyson.checked(layers, np.asarray(x) + 1j * self.eta).g).imag / np.pi

  def moment(self, order: int) -> float:
    """Orders 1 and 2 in closed form, higher ones by `limit_moments`.

    For one factor m₁ = 1 + s, m₂ = 1 + 4s + 2s² (s = σ²); free multiplicative powers add m₂/m₁² − 1 over the factors.
    """
    s = self.sigma**2
    if order == 1:
      return (1 + s) ** self.depth
    if order == 2:
      return (1 + s) ** (2 * self.depth) * (1 + self.depth * ((1 + 4 * s + 2 * s**2) / (1 + s) ** 2 - 1))
    with jax.enable_x64(True):
      return float(moments.limit_moments(full_noise(np.ones((self.depth, 1, 1)), self.sigma), order)[-1])

  def sample(self, key: Array, size: int) -> Array:
    """The rising squared singular values of one drawn matrix, (size,)."""
    product = jnp.eye(size)
    for each in jax.random.split(key, self.depth):
      product = product + self.sigma * jax.random.normal(each, (size, size)) @ product / jnp.sqrt(size)
    return _squared_singular_values(product)
