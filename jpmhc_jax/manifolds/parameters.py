"""Manifolds that parameters live on: tangents, retractions, transport, distance, for leaves `(*batch, n, p)`.

Each manifold is a frozen dataclass with the same methods, which `optim.riemannian` turns into optax transformations:

  gradient(point, ambient)          Riemannian gradient of a function with Euclidean gradient `ambient`
  tangent(point, ambient)           orthogonal projection onto the tangent space, in the manifold's metric
  inner(point, a, b)                the metric, one number per matrix
  retract(point, tangent, method)   a point of the manifold with first derivative `tangent`; '' is the default method
  transport(point, new_point, v)    v carried to the tangent space at `new_point`
  distance(point)                   largest violation of the defining equations, one number per matrix
  project(matrix)                   a near point of the manifold (the nearest one, where that has a formula)
  random(key, shape)                a random point, uniform where the manifold has a uniform measure
  check_shape(shape)                raises ValueError for a shape that cannot hold a point

Methods expect float32 or float64, and are differentiable to any order, at zero tangents too. A step longer than 100
(`retractions.LONGEST`) is shortened to it, so that new points are on the manifold to rounding for steps of any size.
Where several points are nearest, a projection takes one of them and has the derivative 0; where many shortest paths
lead to a new point (to the antipode), transport is the projection to its tangent space.

Sources: Edelman, Arias & Smith 1998; Absil, Mahony & Sepulchre 2008; Douik & Hassibi 2019 for doubly stochastic ones.
"""

import dataclasses
import functools
import math
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jpmhc_jax.core.errors import check_choice
from jpmhc_jax.linalg import scaling
from jpmhc_jax.manifolds import retractions
from jpmhc_jax.manifolds.retractions import gram, identity_like, matmul, skew_part, symmetric, transpose

__all__ = [
  "Birkhoff", "Grassmann", "Iso", "MANIFOLDS", "Manifold", "Matrix", "Oblique", "Orthogonal", "Scalars", "Sphere",
  "Stiefel",
]  # fmt: skip

_NEWTON_STEPS = 50  # at most; from anywhere a dozen reach rounding

Matrix = Float[Array, "*batch n p"]
Scalars = Float[Array, "*batch"]


@runtime_checkable
class Manifold(Protocol):
  """A manifold of matrices (*batch, n, p), float32 or float64: what Riemannian optimisation needs of it.

  Any frozen dataclass with these methods is one. Sources: the module's docstring.

  >>> manifold = jp.manifolds.Sphere()
  >>> isinstance(manifold, jp.manifolds.Manifold)
  True
  >>> x, v = manifold.random(jax.random.key(0), (2, 1)), jnp.ones((2, 1))
  >>> y = manifold.retract(x, manifold.tangent(x, v))
  >>> bool(manifold.distance(y) < 1e-6)
  True
  """

  def gradient(self, point: Matrix, ambient: Matrix) -> Matrix:
    """The tangent vector g with ⟨g, v⟩ = tr(ambientᵀ v) for every tangent v, ⟨·, ·⟩ being the manifold's metric."""
    ...

  def tangent(self, point: Matrix, ambient: Matrix) -> Matrix:
    """The tangent vector at `point` nearest to `ambient` in the manifold's metric."""
    ...

  def inner(self, point: Matrix, a: Matrix, b: Matrix) -> Scalars:
    """⟨a, b⟩ of two tangent vectors, one number per matrix."""
    ...

  def retract(self, point: Matrix, tangent: Matrix, method: str = "") -> Matrix:
    """R_p(v) on the manifold, R_p(0) = p and dR_p(0) v = v. Raises ConfigError for a method that it lacks."""
    ...

  def transport(self, point: Matrix, new_point: Matrix, vector: Matrix) -> Matrix:
    """The tangent vector at `new_point` that `vector`, tangent at `point`, is carried to."""
    ...

  def distance(self, point: Matrix) -> Scalars:
    """The largest violation of the equations that define the manifold, one number per matrix."""
    ...

  def project(self, matrix: Matrix) -> Matrix:
    """A near point of the manifold: the nearest in Frobenius norm, where that has a formula."""
    ...

  def random(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Random points (*batch, n, p), uniform where the manifold has a uniform measure."""
    ...

  def check_shape(self, shape: tuple[int, ...]) -> None:
    """Raises ValueError for a shape that cannot hold a point."""
    ...


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
    """The rotation of the plane of both points, then the tangent projection."""
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

  def transport(self, point: Matrix, new_point: Matrix, vector: Matrix) -> Matrix:
    """X A ↦ Y A: the translation of the group, which is isometric."""
    # X A -> Y A for skew A: the translation of the group, with no condition on X^T Y.
    return matmul(new_point, skew_part(gram(point, vector)))

  def check_shape(self, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the shape is (…, n, n)."""
    _check_square(self, shape, 1)


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
    _check_square(self, shape, 2)


def _centre(matrix: Matrix) -> Matrix:
  """C M C: zero row and column sums."""
  rows = matrix - jnp.mean(matrix, axis=-1, keepdims=True)
  return rows - jnp.mean(rows, axis=-2, keepdims=True)


def _check_square(manifold: object, shape: tuple[int, ...], least: int) -> None:
  if len(shape) < 2 or shape[-2] != shape[-1] or shape[-1] < least:
    raise ValueError(f"shape {shape}: {type(manifold).__name__} needs square matrices (..., n, n) with n >= {least}.")


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


@dataclasses.dataclass(frozen=True)
class Birkhoff(Manifold):
  """Positive doubly stochastic matrices (the inside of the Birkhoff polytope) with the Fisher metric sum A B / P.

  Tangent vectors have zero row and column sums; the gradient is the projection of P * G; the retraction is Sinkhorn
  of P exp(Z / P), order 1. Permutations are limits, never reached: entries are kept above `floor`, and one step
  changes no entry by more than a factor exp(`max_log_step`).

  Leaves (*batch, n, n). Raises ConfigError for another retraction. Source: Douik & Hassibi 2019.

  >>> birkhoff = jp.manifolds.Birkhoff()
  >>> birkhoff.project(jnp.array([[3.0, 1.0], [1.0, 3.0]])).round(4).tolist()
  [[0.75, 0.25], [0.25, 0.75]]
  """

  sweeps: int = 100  # of balancing, at most; what is not balanced by then (near a permutation) Newton's steps finish
  floor: float = 1e-7  # float32 cannot represent smaller entries in p + (new - p)
  max_log_step: float = 5.0

  retraction: ClassVar[str] = "sinkhorn"
  RETRACTIONS: ClassVar[tuple[str, ...]] = ("sinkhorn",)

  def tangent(self, point: Matrix, ambient: Matrix) -> Matrix:
    """Z − (a1ᵀ + 1bᵀ) ∘ P with a and b such that all row and column sums are 0."""
    # Z - (a 1^T + 1 b^T) * P with zero sums:  r a + P b = Z 1,  P^T a + c b = Z^T 1  (r, c the true sums of P).
    # Without a: (diag(c) - P^T diag(1/r) P) b = Z^T 1 - P^T (Z 1 / r), singular along 1, which 1 1^T / n fixes.
    rows, columns = jnp.sum(point, axis=-1, keepdims=True), jnp.sum(point, axis=-2)
    scaled = point / rows
    eye = identity_like(point)
    system = eye * columns[..., None, :] - gram(point, scaled) + 1 / point.shape[-1]
    row_sums = jnp.sum(ambient, axis=-1, keepdims=True)
    right = jnp.sum(ambient, axis=-2)[..., None] - gram(scaled, row_sums)
    b = jnp.linalg.solve(system, right)
    a = (row_sums - matmul(point, b)) / rows
    return ambient - (a + transpose(b)) * point

  def gradient(self, point: Matrix, ambient: Matrix) -> Matrix:
    """The tangent projection of P ∘ G."""
    return self.tangent(point, point * ambient)

  def inner(self, point: Matrix, a: Matrix, b: Matrix) -> Scalars:
    """Σ A B / P, the Fisher metric."""
    return jnp.sum(a * b / jnp.maximum(point, self.floor), axis=(-2, -1))

  def retract(self, point: Matrix, tangent: Matrix, method: str = "") -> Matrix:
    """Sinkhorn of P exp(Z/P). Raises ConfigError for another method."""
    check_choice("method", method or self.retraction, self.RETRACTIONS)
    positive = jnp.maximum(point, self.floor)
    return self._balance(positive * jnp.exp(jnp.clip(tangent / positive, -self.max_log_step, self.max_log_step)))

  def transport(self, point: Matrix, new_point: Matrix, vector: Matrix) -> Matrix:
    """The tangent projection at the new point."""
    return self.tangent(new_point, vector)

  def distance(self, point: Matrix) -> Scalars:
    """The largest of |row sum − 1|, |column sum − 1| and −entry."""
    rows = jnp.max(jnp.abs(jnp.sum(point, axis=-1) - 1), axis=-1)
    columns = jnp.max(jnp.abs(jnp.sum(point, axis=-2) - 1), axis=-1)
    return jnp.maximum(jnp.maximum(rows, columns), jnp.max(-point, axis=(-2, -1)))

  def project(self, matrix: Matrix) -> Matrix:
    """Sinkhorn of the entries, cut off at `floor`."""
    return self._balance(jnp.maximum(matrix, self.floor))

  def random(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Sinkhorn of exponential entries. Raises ValueError as `check_shape` does."""
    self.check_shape(shape)
    return self._balance(jax.random.exponential(key, shape) + self.floor)

  def check_shape(self, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the shape is (…, n, n)."""
    _check_square(self, shape, 1)

  def _balance(self, matrix: Matrix) -> Matrix:
    return _balanced(matrix, self)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _balanced(matrix: Matrix, manifold: Birkhoff) -> Matrix:
  """diag(u) M diag(v) with row and column sums 1, to rounding. No matrix of a batch depends on another."""
  tolerance = 4 * jnp.finfo(matrix.dtype).eps

  def missing(matrix: Array) -> Array:
    return jnp.max(jnp.abs(jnp.sum(matrix, axis=-2, keepdims=True) - 1), axis=-1, keepdims=True)

  # A matrix that is done stays as it is while others go on; one with a NaN is never above the tolerance.
  def unfinished(state: tuple[Array, Array, Array]) -> Array:
    _, going, sweep = state
    return jnp.any(going) & (sweep < manifold.sweeps)

  def balance(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    matrix, going, sweep = state
    columns = matrix / jnp.sum(matrix, axis=-2, keepdims=True)
    rows = columns / jnp.sum(columns, axis=-1, keepdims=True)
    return jnp.where(going, rows, matrix), going & (missing(rows) > tolerance), sweep + 1

  def finished(matrix: Matrix) -> Matrix:
    tokens_last = jnp.moveaxis(matrix, (-2, -1), (0, 1))
    return jnp.moveaxis(scaling.finish(tokens_last, _NEWTON_STEPS), (0, 1), (-2, -1))

  start = (matrix, jnp.ones((*matrix.shape[:-2], 1, 1), bool), jnp.zeros([], jnp.int32))
  matrix, going, _ = jax.lax.while_loop(unfinished, balance, start)
  return jax.lax.cond(jnp.any(going), lambda m: jnp.where(going, finished(m), m), lambda m: m, matrix)


@_balanced.defjvp
def _balanced_jvp(manifold: Birkhoff, primals: tuple[Matrix], tangents: tuple[Matrix]) -> tuple[Matrix, Matrix]:
  # log P = log M + log u + log v, with sums held: dP is P * dM / M less the part that the scaling takes back.
  (matrix,), (tangent,) = primals, tangents
  point = _balanced(matrix, manifold)
  return point, manifold.tangent(point, point * tangent / matrix)


MANIFOLDS: dict[str, Manifold] = {
  "stiefel": Stiefel(),
  "stiefel_canonical": Stiefel(metric="canonical"),
  "orthogonal": Orthogonal(),
  "grassmann": Grassmann(retraction="cayley_qr"),
  "iso": Iso(),
  "birkhoff": Birkhoff(),
  "oblique": Oblique(),
  "sphere": Sphere(),
}
