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

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Key

__all__ = ["check_square", "Manifold", "Matrix", "Scalars"]

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


def check_square(manifold: object, shape: tuple[int, ...], least: int) -> None:
  """Raises ValueError for a shape other than (…, n, n) with n >= least."""
  if len(shape) < 2 or shape[-2] != shape[-1] or shape[-1] < least:
    raise ValueError(f"shape {shape}: {type(manifold).__name__} needs square matrices (..., n, n) with n >= {least}.")
