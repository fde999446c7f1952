"""Spectra of an actual function's Jacobian: exact when it is small, matrix-free from Jacobian-vector products when
not."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

Product = Callable[[Float[Array, " inputs"]], Float[Array, " outputs"]]


class Operator(NamedTuple):
  """A Jacobian by its products; both act on flat vectors."""

  forward: Callable  # J v
  backward: Callable  # Jᵀ u
  inputs: int


def operator(function: Callable[[Array], Array], at: Float[Array, "..."]) -> Operator:
  """Products with the Jacobian of `function` (array -> array, any shapes) at a point; linearised once."""
  primal = jnp.ravel(at)
  flat = lambda x: jnp.ravel(function(x.reshape(at.shape)))  # noqa: E731
  _, forward = jax.linearize(flat, primal)
  transpose = jax.linear_transpose(forward, primal)
  return Operator(forward, lambda u: transpose(u)[0], primal.size)


def singular_values(function: Callable[[Array], Array], at: Float[Array, "..."]) -> Float[Array, " values"]:
  """All singular values of the Jacobian, descending. Memory O(inputs · outputs): for a few thousand inputs."""
  primal = jnp.ravel(at)
  flat = lambda x: jnp.ravel(function(x.reshape(at.shape)))  # noqa: E731
  jacobian = jax.jacfwd(flat) if primal.size <= jax.eval_shape(flat, primal).size else jax.jacrev(flat)
  return jnp.linalg.svd(jacobian(primal), compute_uv=False)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def golub_kahan(forward: Product, backward: Product, start: Float[Array, " inputs"], steps: int) -> tuple[Array, Array]:
  """Golub-Kahan-Lanczos bidiagonalisation with full reorthogonalisation: diagonal and superdiagonal, (steps,) each.

  The singular values of the upper bidiagonal matrix approximate the extreme ones of J; steps <= min(inputs, outputs).
  """

  def orthogonal(vector, basis):
    for _ in range(2):
      vector = vector - basis.T @ (basis @ vector)
    return vector

  def unit(vector, reference):
    size = jnp.linalg.norm(vector)
    alive = size > 10 * jnp.finfo(vector.dtype).eps * reference  # below: the Krylov space is exhausted
    return jnp.where(alive, vector / jnp.where(alive, size, 1.0), 0.0), jnp.where(alive, size, 0.0)

  outputs = jax.eval_shape(forward, start).size
  right = jnp.zeros((steps + 1, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start))
  left = jnp.zeros((steps, outputs), start.dtype)
  zeros = jnp.zeros(steps, start.dtype)

  def step(k, state):
    right, left, diagonal, above = state
    image = forward(right[k])
    u, alpha = unit(orthogonal(image, left), jnp.linalg.norm(image))
    pulled = backward(u)
    v, beta = unit(orthogonal(pulled, right), jnp.linalg.norm(pulled))
    return right.at[k + 1].set(v), left.at[k].set(u), diagonal.at[k].set(alpha), above.at[k].set(beta)

  return jax.lax.fori_loop(0, steps, step, (right, left, zeros, zeros))[2:]


def extreme_singular_values(jacobian: Operator, key: Array, steps: int = 32) -> np.ndarray:
  """Ritz singular values, descending; the first few are converged after about 30 steps, the last are upper bounds of
  the least."""
  steps = min(steps, jacobian.inputs)
  start = jax.random.normal(key, (jacobian.inputs,))
  diagonal, above = (np.asarray(a, np.float64) for a in golub_kahan(jacobian.forward, jacobian.backward, start, steps))
  return np.linalg.svd(np.diag(diagonal) + np.diag(above[:-1], 1), compute_uv=False)


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
    return bumps @ self.weights.ravel() / len(self.nodes)


def lanczos_quadrature(jacobian: Operator, key: Array, steps: int = 32, probes: int = 8) -> Quadrature:
  """Spectral measure of JᵀJ from Golub-Kahan runs on Gaussian probes (Ubaru, Chen, Saad 2017).

  B bidiagonal with BᵀB the Lanczos matrix: nodes are its squared singular values, weights the squared first entries of
  the
  right singular vectors. Working with B keeps small singular values that BᵀB would round away.
  """
  steps = min(steps, jacobian.inputs)
  nodes, weights = [], []
  for each in jax.random.split(key, probes):
    start = jax.random.normal(each, (jacobian.inputs,))
    diagonal, above = (
      np.asarray(a, np.float64) for a in golub_kahan(jacobian.forward, jacobian.backward, start, steps)
    )
    _, values, right = np.linalg.svd(np.diag(diagonal) + np.diag(above[:-1], 1))
    nodes.append(values**2)
    weights.append(right[:, 0] ** 2)
  return Quadrature(np.stack(nodes), np.stack(weights))
