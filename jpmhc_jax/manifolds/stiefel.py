"""Matrices with orthonormal columns: Stiefel, orthogonal and Grassmann manifolds, and rotations that keep the mean."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jpmhc_jax.core.errors import check_choice
from jpmhc_jax.manifolds import retractions
from jpmhc_jax.manifolds.base import check_square, Manifold, Matrix, Scalars
from jpmhc_jax.manifolds.retractions import gram, identity_like, matmul, skew_part, symmetric

__all__ = ["Grassmann", "Iso", "Orthogonal", "Stiefel"]


@dataclasses.dataclass(frozen=True)
class Stiefel(Manifold):
  """Orthonormal columns, X^T X = I.

  metric="euclidean": <A, B> = tr A^T B, gradient G - X sym(X^T G).
  metric="canonical": <A, B> = tr A^T (I - X X^T / 2) B, gradient G - X G^T X.
  Retractions: cayley (exact; order 2 for the canonical metric), cayley_iterative (`sweeps` fixed-point steps; beyond
  length 1, about as far as they converge, a step is shortened to it), cayley_qr (those followed by QR, the published
  Grassmann step), qr (order 1), polar (order 2, Euclidean metric).

  Leaves (*batch, n, p) with n >= p. Raises ConfigError for an unknown metric or retraction.
  Source: Edelman, Arias & Smith 1998; Wen & Yin 2013 (Cayley).

  >>> stiefel = jp.manifolds.Stiefel()
  >>> x = jnp.eye(3)[:, :2]
  >>> v = stiefel.tangent(x, jnp.ones((3, 2)))
  >>> v.tolist()  # xᵀv is skew
  [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
  >>> bool(stiefel.distance(stiefel.retract(x, v)) < 1e-6)
  True
  """

  metric: str = "euclidean"
  retraction: str = "cayley"
  sweeps: int = 2  # as published

  RETRACTIONS: ClassVar[tuple[str, ...]] = ("cayley", "cayley_iterative", "cayley_qr", "qr", "polar")

  def __post_init__(self) -> None:
    check_choice("metric", self.metric, ("euclidean", "canonical"))
    check_choice("retraction", self.retraction, self.RETRACTIONS)

  def tangent(self, point: Matrix, ambient: Matrix) -> Matrix:
    """V − X sym(XᵀV), for both metrics."""
    # The projection is the same in both metrics: their normal spaces agree, {X S: S symmetric}.
    return ambient - matmul(point, symmetric(gram(point, ambient)))

  def gradient(self, point: Matrix, ambient: Matrix) -> Matrix:
    """G − X sym(XᵀG) for the Euclidean metric, G − X GᵀX for the canonical one."""
    if self.metric == "canonical":
      return ambient - matmul(point, gram(ambient, point))
    return self.tangent(point, ambient)

  def inner(self, point: Matrix, a: Matrix, b: Matrix) -> Scalars:
    """tr AᵀB, or tr Aᵀ(I − X Xᵀ/2)B for the canonical metric."""
    product = jnp.sum(a * b, axis=(-2, -1))
    if self.metric == "canonical":
      product -= 0.5 * jnp.sum(gram(point, a) * gram(point, b), axis=(-2, -1))
    return product

  def retract(self, point: Matrix, tangent: Matrix, method: str = "") -> Matrix:
    """A point along the tangent vector by one of RETRACTIONS. Raises ConfigError for another method."""
    method = method or self.retraction
    check_choice("method", method, self.RETRACTIONS)
    if method == "cayley":
      return retractions.cayley(point, tangent)
    if method == "cayley_iterative":
      return retractions.cayley_iterative(point, retractions.shortened(tangent, 1.0), self.sweeps)
    step = retractions.shortened(tangent)
    if method == "qr":
      return retractions.qr(point + step)
    if method == "polar":
      return retractions.with_care(tangent, lambda step: retractions.polar_near(point + step))
    return retractions.qr(retractions.cayley_iterative(point, step, self.sweeps))

  def transport(self, point: Matrix, new_point: Matrix, vector: Matrix) -> Matrix:
    """The rotation of the plane of both points, then the tangent projection; of square points X A ↦ Y A."""
    # The one rotation that carries a square X to Y is Y Xᵀ: the translation of the group, with no condition on XᵀY.
    if point.shape[-2] == point.shape[-1]:
      return matmul(new_point, skew_part(gram(point, vector)))
    # The rotation is isometric and exact, and the projection removes rounding; near the antipode it is all there is.
    return self.tangent(new_point, retractions.carry_along(point, new_point, vector))

  def distance(self, point: Matrix) -> Scalars:
    """max |XᵀX − I|."""
    product = gram(point, point)
    return jnp.max(jnp.abs(product - identity_like(product)), axis=(-2, -1))

  def project(self, matrix: Matrix) -> Matrix:
    """The orthonormal polar factor, which is the nearest point."""
    return retractions.polar(matrix)

  def random(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Uniform points: QR of normal matrices. Raises ValueError as `check_shape` does."""
    self.check_shape(shape)
    return retractions.qr(jax.random.normal(key, shape))

  def check_shape(self, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the shape is (…, n, p) with n >= p."""
    if len(shape) < 2 or shape[-2] < shape[-1]:
      raise ValueError(f"shape {shape}: {type(self).__name__} needs (..., n, p) with n >= p; transpose the leaf.")


@dataclasses.dataclass(frozen=True)
class Orthogonal(Stiefel):
  """Square orthogonal matrices O(n); steps keep the sign of the determinant. Both metrics and Cayley are of order 2.

  >>> orthogonal = jp.manifolds.Orthogonal()
  >>> orthogonal.tangent(jnp.eye(2), jnp.array([[1.0, 2.0], [0.0, 1.0]])).tolist()
  [[0.0, 1.0], [-1.0, 0.0]]
  >>> orthogonal.project(jnp.array([[0.0, 3.0], [-2.0, 0.0]])).round(4).tolist()
  [[0.0, 1.0], [-1.0, 0.0]]
  """

  def check_shape(self, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the shape is (…, n, n)."""
    check_square(self, shape, 1)


@dataclasses.dataclass(frozen=True)
class Grassmann(Stiefel):
  """Subspaces spanned by orthonormal columns U; functions of U U^T. Horizontal vectors have U^T Z = 0.

  Gradient and projection G - U U^T G; the metric is Euclidean. Here cayley, qr and polar all have order 2: they
  span the same subspace up to O(|Z|^3).

  Source: Edelman, Arias & Smith 1998.

  >>> u = jnp.eye(2)[:, :1]
  >>> jp.manifolds.Grassmann().tangent(u, jnp.array([[5.0], [1.0]])).tolist()
  [[0.0], [1.0]]
  """

  def tangent(self, point: Matrix, ambient: Matrix) -> Matrix:
    """V − U UᵀV, the horizontal part."""
    return ambient - matmul(point, gram(point, ambient))

  def gradient(self, point: Matrix, ambient: Matrix) -> Matrix:
    """G − U UᵀG."""
    return self.tangent(point, ambient)


@dataclasses.dataclass(frozen=True)
class Iso(Orthogonal):
  """Mean-preserving rotations {H: H^T H = I, H 1 = 1}, a copy of O(n - 1) on the complement of 1.

  With C = I - 1 1^T / n, which commutes with H, the tangent vectors are H S with S = C S C skew. Cayley and polar steps
  along them keep H 1 = 1; QR would not, so it is not offered. Random points have determinant 1: the identity's side.

  Source: IsoHC (M. Yang, 2026), there as a projection.

  >>> iso = jp.manifolds.Iso()
  >>> h = iso.random(jax.random.key(0), (3, 3))
  >>> bool(iso.distance(h) < 1e-5) and bool(jnp.allclose(h @ jnp.ones(3), 1, atol=1e-5))
  True
  """

  RETRACTIONS: ClassVar[tuple[str, ...]] = ("cayley", "cayley_iterative", "polar")

  def tangent(self, point: Matrix, ambient: Matrix) -> Matrix:
    """H S with S the skew part of C HᵀV C."""
    return super().tangent(point, _centre(ambient))

  def gradient(self, point: Matrix, ambient: Matrix) -> Matrix:
    """The gradient of O(n) for C G C."""
    return super().gradient(point, _centre(ambient))

  def retract(self, point: Matrix, tangent: Matrix, method: str = "") -> Matrix:
    """A step of O(n) along a tangent vector, which keeps H 1 = 1. Raises ConfigError for an unknown method."""

    def restored(new_point: Matrix) -> Matrix:
      return retractions.tidied(_centre(new_point) + 1 / point.shape[-1])  # a long step turns rounding of the mean too

    plain = functools.partial(super().retract, point, method=method)
    if (method or self.retraction) == "cayley_iterative":
      return plain(tangent)
    return retractions.with_care(tangent, plain, restored)

  def distance(self, point: Matrix) -> Scalars:
    """The larger of max |HᵀH − I| and max |H 1 − 1|."""
    rows = jnp.max(jnp.abs(jnp.sum(point, axis=-1) - 1), axis=-1)
    return jnp.maximum(super().distance(point), rows)

  def project(self, matrix: Matrix) -> Matrix:
    """The polar factor of C M C + 11ᵀ/n, which is the nearest point."""
    return retractions.polar(_centre(matrix) + 1 / matrix.shape[-1])

  def random(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Uniform points of determinant 1. Raises ValueError as `check_shape` does."""
    self.check_shape(shape)
    point = self.project(jax.random.normal(key, shape))  # the polar factor of a Gaussian is uniform
    swapped = point.at[..., :2].set(point[..., 1::-1])  # swapping two columns flips the determinant and keeps H 1 = 1
    return jnp.where(jnp.linalg.det(point)[..., None, None] < 0, swapped, point)

  def check_shape(self, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the shape is (…, n, n) with n >= 2."""
    check_square(self, shape, 2)


def _centre(matrix: Matrix) -> Matrix:
  """C M C: zero row and column sums."""
  rows = matrix - jnp.mean(matrix, axis=-1, keepdims=True)
  return rows - jnp.mean(rows, axis=-2, keepdims=True)
