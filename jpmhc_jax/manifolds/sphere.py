"""Unit vectors: the sphere of a whole matrix, and one sphere for every column."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jpmhc_jax.core.errors import check_choice
from jpmhc_jax.manifolds import retractions
from jpmhc_jax.manifolds.base import Manifold, Matrix, Scalars

__all__ = ["Oblique", "Sphere"]


@dataclasses.dataclass(frozen=True)
class Sphere(Manifold):
  """Matrices of Frobenius norm 1. Retractions: normalise (order 2), exp (the geodesic).

  The projection of 0 has equal entries. Transport is parallel along the shortest geodesic; to the antipode, up to
  rounding, it is the identity.

  Raises ConfigError for an unknown retraction. Source: Absil, Mahony & Sepulchre 2008.

  >>> sphere, x = jp.manifolds.Sphere(), jnp.array([[1.0], [0.0]])
  >>> print(sphere.retract(x, jnp.array([[0.0], [jnp.pi / 4]])).round(4).ravel())  # an eighth of a great circle
  [0.7071 0.7071]
  """

  retraction: str = "exp"

  RETRACTIONS: ClassVar[tuple[str, ...]] = ("exp", "normalise")
  AXES: ClassVar[tuple[int, ...]] = (-2, -1)

  def __post_init__(self) -> None:
    check_choice("retraction", self.retraction, self.RETRACTIONS)

  def _dot(self, a: Matrix, b: Matrix) -> Matrix:
    return jnp.broadcast_to(jnp.sum(a * b, axis=self.AXES, keepdims=True), a.shape)

  def tangent(self, point: Matrix, ambient: Matrix) -> Matrix:
    """V − ⟨X, V⟩ X."""
    return ambient - point * self._dot(point, ambient)

  def gradient(self, point: Matrix, ambient: Matrix) -> Matrix:
    """G − ⟨X, G⟩ X."""
    return self.tangent(point, ambient)

  def inner(self, point: Matrix, a: Matrix, b: Matrix) -> Scalars:
    """tr AᵀB."""
    return jnp.sum(a * b, axis=(-2, -1))

  def retract(self, point: Matrix, tangent: Matrix, method: str = "") -> Matrix:
    """cos|V| X + sin|V| V/|V|, or X + V normalised. Raises ConfigError for another method."""
    method = method or self.retraction
    check_choice("method", method, self.RETRACTIONS)
    if method == "normalise":
      return self.project(point + retractions.shortened(tangent, axes=self.AXES))
    step = retractions.shortened(tangent, axes=self.AXES)
    cosine, sinc = _cosine_and_sinc(jnp.sum(step * step, axis=self.AXES, keepdims=True))
    return cosine * point + sinc * step

  def transport(self, point: Matrix, new_point: Matrix, vector: Matrix) -> Matrix:
    """Parallel along the shortest geodesic."""
    # Parallel along the geodesic is the reflection in p + q: it takes p to −q, and the part of v along the path turns.
    total = point + new_point
    square = self._dot(total, total)
    opposite = square <= float(jnp.finfo(square.dtype).eps)
    share = jnp.where(opposite, 0.0, 2 / jnp.where(opposite, 1.0, square))
    return self.tangent(new_point, vector - total * (share * self._dot(total, vector)))

  def distance(self, point: Matrix) -> Scalars:
    """max | |X| − 1 |."""
    return jnp.max(jnp.abs(jnp.sqrt(self._dot(point, point)) - 1), axis=(-2, -1))

  def project(self, matrix: Matrix) -> Matrix:
    """M/|M|; equal entries for 0."""
    entries = math.prod(matrix.shape[axis] for axis in self.AXES)
    return retractions.normalised(matrix, self.AXES, zero=entries**-0.5)

  def random(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Uniform points. Raises ValueError as `check_shape` does."""
    self.check_shape(shape)
    return self.project(jax.random.normal(key, shape))

  def check_shape(self, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the shape is (…, n, p) with entries."""
    if len(shape) < 2 or 0 in shape[-2:]:
      raise ValueError(f"shape {shape}: {type(self).__name__} needs (..., n, p); add an axis of length 1 to a vector.")


def _cosine_and_sinc(square: Array) -> tuple[Array, Array]:
  """cos x and sin(x)/x of x², with derivatives of any order at 0: below 1 by their series in x²."""
  small = square < 1
  low, angle = jnp.where(small, square, 0.0), jnp.sqrt(jnp.where(small, 1.0, square))

  def series(first: int) -> Array:
    # Σ (−x²)^k / (2k + first)!, to below the rounding of float64.
    total = jnp.zeros_like(low)
    for k in range(9, -1, -1):
      total = total * -low + 1 / math.factorial(2 * k + first)
    return total

  return jnp.where(small, series(0), jnp.cos(angle)), jnp.where(small, series(1), jnp.sin(angle) / angle)


@dataclasses.dataclass(frozen=True)
class Oblique(Sphere):
  """Matrices with columns of norm 1: a product of p spheres.

  >>> jp.manifolds.Oblique().project(jnp.array([[3.0, 0.0], [0.0, 2.0]])).tolist()
  [[1.0, 0.0], [0.0, 1.0]]
  """

  AXES: ClassVar[tuple[int, ...]] = (-2,)
