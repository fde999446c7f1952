"""Jacobians of a map at a point: singular values and log-volume, exact or estimated with a standard error."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.fields import check_whole

__all__ = ["EXACT", "PointMap", "jacobian", "log_volume", "singular_values"]

EXACT = 64  # up to this many singular values a Jacobian is written out
PointMap = Callable[[Array], Array]  # (m,) -> (k,)


def jacobian(f: PointMap, x: Float[Array, " m"]) -> Float[Array, "k m"]:
  """∂f/∂x at x, by min(m, k) Jacobian products."""
  wide = jax.eval_shape(f, x).shape[0] < len(x)
  result: Array = (jax.jacrev(f) if wide else jax.jacfwd(f))(x)
  return result


def singular_values(f: PointMap, x: Float[Array, " m"]) -> Float[Array, " r"]:
  """All min(m, k) singular values of ∂f/∂x, largest first.

  >>> jp.transport.singular_values(lambda x: jnp.array([3.0, 1.0]) * x, jnp.ones(2)).tolist()
  [3.0, 1.0]
  """
  return jnp.linalg.svd(jacobian(f, x), compute_uv=False)


def log_volume(
  f: PointMap, x: Float[Array, " m"], key: Key[Array, ""] | None = None, steps: int = 24, probes: int = 8
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """log Π σ_i of ∂f/∂x at x and its standard error.

  Exact, by Cholesky's factor of JᵀJ (J Jᵀ for k < m), with error 0 up to min(m, k) = 64; above, ½ tr log JᵀJ by
  `probes` Lanczos quadratures of `steps` steps from Rademacher vectors, with the standard error over probes. That error
  does not tell the bias of the quadrature, which decays as e^(−4 steps/√κ) with the condition number κ of JᵀJ.
  Differentiable. Raises ConfigError for an estimate without a key or with fewer than two probes.
  Source: Ubaru, Chen & Saad 2017.

  >>> value, error = jp.transport.log_volume(lambda x: jnp.array([4.0, 0.5]) * x, jnp.ones(2))
  >>> round(float(value), 4), float(error)
  (0.6931, 0.0)
  """
  k, m = jax.eval_shape(f, x).shape[0], len(x)
  if min(m, k) <= EXACT:
    j = jacobian(f, x)
    gram = j.T @ j if m <= k else j @ j.T
    factor = jnp.linalg.cholesky(gram)
    return jnp.sum(jnp.log(jnp.diagonal(factor))), jnp.zeros((), x.dtype)
  if key is None:
    raise ConfigError(f"key=None: expected a random key, because {min(m, k)} singular values are estimated")
  check_whole("probes", probes, ge=2)
  _, push = jax.linearize(f, x)
  pull = jax.linear_transpose(push, x)

  def gram_product(v: Array) -> Array:
    product: Array = pull(push(v))[0] if m <= k else push(pull(v)[0])
    return product

  vectors = jax.random.rademacher(key, (probes, min(m, k)), x.dtype)
  samples = jax.vmap(lambda v: _log_quadrature(gram_product, v, min(steps, min(m, k))))(vectors)
  return jnp.mean(samples), jnp.std(samples, ddof=1) / probes**0.5


def _log_quadrature(matvec: Callable[[Array], Array], start: Array, steps: int) -> Array:
  """½ vᵀ log(A) v by the Gauss quadrature of `steps` Lanczos steps, orthogonalised twice against all before."""
  n, size = len(start), jnp.linalg.norm(start)

  def step(basis: Array, i: Array) -> tuple[Array, tuple[Array, Array]]:
    image = matvec(basis[i])
    alpha = jnp.vdot(basis[i], image)
    rest = image
    for _ in range(2):
      rest = rest - basis.T @ (basis @ rest)
    square = jnp.vdot(rest, rest)
    going = square > jnp.finfo(start.dtype).tiny
    beta = jnp.where(going, jnp.sqrt(jnp.where(going, square, 1.0)), 0.0)
    vector = jnp.where(going, rest / jnp.where(going, beta, 1.0), 0.0)
    return basis.at[i + 1].set(vector), (alpha, beta)

  basis = jnp.zeros((steps + 1, n), start.dtype).at[0].set(start / size)
  _, (alphas, betas) = jax.lax.scan(step, basis, jnp.arange(steps))
  nodes, vectors = jnp.linalg.eigh(jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1))
  logs = jnp.log(jnp.maximum(nodes, jnp.finfo(start.dtype).tiny))
  result: Array = 0.5 * size**2 * jnp.vdot(vectors[0] ** 2, logs)
  return result
