"""One compiled (projection, vector-Jacobian product) a manifold and size, shared by the tests of this room."""

from collections.abc import Callable
import functools

import jax
from jax import Array
import pytest

from jpmhc_jax.manifolds import Manifold

Compiled = Callable[[Array, Array], tuple[Array, Array]]


@functools.cache
def _compiled(manifold: Manifold, n: int) -> Compiled:
  def value_and_pullback(logits: Array, cotangent: Array) -> tuple[Array, Array]:
    value, pullback = jax.vjp(lambda x: manifold.project(x, n), logits)
    return value, pullback(cotangent)[0]

  return jax.jit(value_and_pullback)


@pytest.fixture(scope="session")
def compiled() -> Callable[[Manifold, int], Compiled]:
  return _compiled
