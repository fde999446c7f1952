"""Compiled projections, alone and with their vector-Jacobian product: one a manifold and size, for all of this room."""

from collections.abc import Callable
import functools

import jax
from jax import Array
import pytest

from jpmhc_jax.mixers import Mixer

Compiled = Callable[[Array, Array], tuple[Array, Array]]


@functools.cache
def _compiled(manifold: Mixer, n: int) -> Compiled:
  def value_and_pullback(logits: Array, cotangent: Array) -> tuple[Array, Array]:
    value, pullback = jax.vjp(lambda x: manifold.project(x, n), logits)
    return value, pullback(cotangent)[0]

  return jax.jit(value_and_pullback)


@functools.cache
def _projected(manifold: Mixer, n: int) -> Callable[[Array], Array]:
  return jax.jit(lambda logits: manifold.project(logits, n))


@pytest.fixture(scope="session")
def projected() -> Callable[[Mixer, int], Callable[[Array], Array]]:
  return _projected


@pytest.fixture(scope="session")
def compiled() -> Callable[[Mixer, int], Compiled]:
  return _compiled
