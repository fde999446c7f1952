"""Traces of functions of large matrices that are only known by their products."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
