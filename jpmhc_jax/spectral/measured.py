"""Spectra of an actual function's Jacobian: exact when it is small, matrix-free from Jacobian-vector products when
not."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.core.errors import UserError

__all__ = [
  "Operator", "Product", "Products", "Quadrature", "check_finite", "extreme_singular_values", "golub_kahan",
  "hutch_plus_plus", "hutchinson", "lanczos_quadrature", "operator", "singular_values",
]  # fmt: skip

Product = Callable[[Float[Array, " _"]], Float[Array, " _"]]


@dataclasses.dataclass(frozen=True)
class Products:
  """(x, context) -> (v ↦ J v, u ↦ Jᵀ u), on flat vectors, of `function(x, *context)` with respect to x.

  J v is the reverse derivative of the (linear) reverse derivative, so that both products come from one backward pass.
  Equal for equal functions, so that programs compiled for one point serve every other.
  """

  function: Callable[..., Array]

  def __call__(self, at: Float[Array, "..."], context: tuple[Any, ...]) -> tuple[Product, Product]:
    value, pull = jax.vjp(self._flat(at, context), jnp.ravel(at))
    _, push = jax.vjp(lambda u: pull(u)[0], jnp.zeros_like(value))
    return lambda v: push(v)[0], lambda u: pull(u)[0]

  def dense(self, at: Float[Array, "..."], context: tuple[Any, ...]) -> Float[Array, "outputs inputs"]:
    """The whole Jacobian, one reverse pass per output."""
    result: Array = jax.jacrev(self._flat(at, context))(jnp.ravel(at))
    return result

  def _flat(self, at: Array, context: tuple[Any, ...]) -> Product:
    return lambda x: jnp.ravel(self.function(x.reshape(at.shape), *context))


class Operator(NamedTuple):
  """The Jacobian of a function at a point."""

  products: Products
  at: jax.Array
  context: tuple[Any, ...]

  @property
  def inputs(self) -> int:
    """Columns of the Jacobian."""
    return self.at.size


def operator(function: Callable[..., Array], at: Float[Array, "..."], *context: Any) -> Operator:
  """The Jacobian of `function(x, *context)` -> array, any shapes, with respect to x at a point.

  context: further arguments, pytrees of arrays. The same function object at another point compiles nothing anew.

  >>> jacobian = jp.spectral.operator(lambda x, scale: scale * x, jnp.ones(2), jnp.array(3.0))
  >>> jacobian.inputs, jp.spectral.measure(jacobian).top
  (2, 3.0)
  """
  return Operator(Products(function), jnp.asarray(at), context)


def singular_values(function: Callable[..., Array], at: Float[Array, "..."], *context: Any) -> Float[Array, " values"]:
  """All singular values of the Jacobian, descending. Memory O(inputs · outputs): for a few thousand inputs."""
  result: Array = _dense_values(Products(function), jnp.asarray(at), context)
  return result


@functools.partial(jax.jit, static_argnums=0)
def _dense_values(products: Products, at: Array, context: tuple[Any, ...]) -> Array:
  return jnp.linalg.svd(products.dense(at, context), compute_uv=False)


@functools.partial(jax.jit, static_argnums=(0, 4))
def golub_kahan(
  products: Products, at: Float[Array, "..."], context: tuple[Any, ...], start: Float[Array, " inputs"], steps: int
) -> tuple[Array, Array]:
  """Golub-Kahan-Lanczos bidiagonalisation with full reorthogonalisation: diagonal and superdiagonal, (steps,) each.

  The singular values of the upper bidiagonal matrix approximate the extreme ones of J; steps <= min(inputs, outputs).
  """

  def orthogonal(vector: Array, basis: Array) -> Array:
    for _ in range(2):
      vector = vector - basis.T @ (basis @ vector)
    return vector

  def unit(vector: Array, reference: Array) -> tuple[Array, Array]:
    size = jnp.linalg.norm(vector)
    alive = ~(size <= 10 * jnp.finfo(vector.dtype).eps * reference)  # below: the Krylov space is exhausted; NaN goes on
    return jnp.where(alive, vector / jnp.where(alive, size, 1.0), 0.0), jnp.where(alive, size, 0.0)

  forward, backward = products(at, context)
  outputs = jax.eval_shape(forward, start).size
  right = jnp.zeros((steps + 1, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start))
  left = jnp.zeros((steps, outputs), start.dtype)
  zeros = jnp.zeros(steps, start.dtype)

  def step(k: Array, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
    right, left, diagonal, above = state
    image = forward(right[k])
    u, alpha = unit(orthogonal(image, left), jnp.linalg.norm(image))
    pulled = backward(u)
    v, beta = unit(orthogonal(pulled, right), jnp.linalg.norm(pulled))
    return right.at[k + 1].set(v), left.at[k].set(u), diagonal.at[k].set(alpha), above.at[k].set(beta)

  result: tuple[Array, Array] = jax.lax.fori_loop(0, steps, step, (right, left, zeros, zeros))[2:]
  return result


def extreme_singular_values(jacobian: Operator, key: Array, steps: int = 32) -> np.ndarray:
  """Ritz singular values, descending; the first few are converged after about 30 steps, the last are upper bounds of
  the least."""
  steps = min(steps, jacobian.inputs)
  diagonal, above = _bidiagonal(jacobian, key, steps)
  return np.linalg.svd(np.diag(diagonal) + np.diag(above[:-1], 1), compute_uv=False)


def _bidiagonal(jacobian: Operator, key: Array, steps: int) -> tuple[np.ndarray, np.ndarray]:
  start = jax.random.normal(key, (jacobian.inputs,), jacobian.at.dtype)
  diagonal, above = golub_kahan(jacobian.products, jacobian.at, jacobian.context, start, steps)
  check_finite(diagonal)
  return np.asarray(diagonal, np.float64), np.asarray(above, np.float64)


def check_finite(values: Float[Array, " values"]) -> None:
  """Raises UserError for singular values, or what they are made of, that are NaN or infinite."""
  if not bool(jnp.all(jnp.isfinite(values))):
    raise UserError("the Jacobian is not finite at this point: NaN and infinity have no singular values")


class Quadrature(NamedTuple):
  """Stochastic Lanczos quadrature of the spectral measure of JᵀJ: nodes λ and weights summing to 1, a row a probe."""

  nodes: np.ndarray  # (probes, steps)
  weights: np.ndarray  # (probes, steps)

  def mean(self, function: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """(1/N) tr f(JᵀJ) and its standard error over the probes."""
    each = np.sum(self.weights * function(self.nodes), axis=1)
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else float("inf")

  def log_density(self, log_x: np.ndarray, width: float = 0.2) -> np.ndarray:
    """Density of log λ, each node spread by a Gaussian of the given width in log λ."""
    nodes = np.log(np.maximum(self.nodes.ravel(), 1e-300))
    bumps = np.exp(-0.5 * ((log_x[:, None] - nodes[None, :]) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    result: np.ndarray = bumps @ self.weights.ravel() / len(self.nodes)
    return result


def lanczos_quadrature(jacobian: Operator, key: Array, steps: int = 32, probes: int = 8) -> Quadrature:
  """Spectral measure of JᵀJ from Golub-Kahan runs on Gaussian probes (Ubaru, Chen, Saad 2017).

  B bidiagonal with BᵀB the Lanczos matrix: nodes are its squared singular values, weights the squared first entries of
  the
  right singular vectors. Working with B keeps small singular values that BᵀB would round away.
  """
  steps = min(steps, jacobian.inputs)
  nodes, weights = [], []
  for each in jax.random.split(key, probes):
    diagonal, above = _bidiagonal(jacobian, each, steps)
    _, values, right = np.linalg.svd(np.diag(diagonal) + np.diag(above[:-1], 1))
    nodes.append(values**2)
    weights.append(right[:, 0] ** 2)
  return Quadrature(np.stack(nodes), np.stack(weights))


def hutch_plus_plus(matvec: Callable[[Array], Array], size: int, key: Array, products: int) -> Float[Array, ""]:
  """tr A from `products` matrix-vector products: exact on the top third of the range, Hutchinson on the rest.

  matvec: (size, k) -> (size, k). Variance falls as 1/products² for a decaying spectrum against 1/products for
  Hutchinson's
  estimator. Raises ValueError for products < 3. Source: Meyer, Musco, Musco, Woodruff 2021.
  """
  if products < 3:
    raise ValueError(f"products={products}: expected at least 3, a third each for sketch, range and remainder")
  columns = min(products // 3, size)
  sketch, probe = (jax.random.rademacher(k, (size, columns), float) for k in jax.random.split(key))
  basis, _ = jnp.linalg.qr(matvec(sketch))
  outside = probe - basis @ (basis.T @ probe)
  return jnp.sum(basis * matvec(basis)) + jnp.sum(outside * matvec(outside)) / columns


def hutchinson(matvec: Callable[[Array], Array], size: int, key: Array, products: int) -> Float[Array, ""]:
  """tr A by Rademacher probes: unbiased, standard error √(2/products) |A − diag A|_F."""
  probe = jax.random.rademacher(key, (size, products), float)
  return jnp.sum(probe * matvec(probe)) / products
