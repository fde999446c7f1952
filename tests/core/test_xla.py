"""`fusion_barrier` changes no number and passes gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.core.xla import fusion_barrier


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_every_number_stays_the_same(dtype):
  with jax.enable_x64(True):
    limits = jnp.finfo(dtype)
    x = jnp.asarray([0.0, -0.0, 1 / 3, -float(limits.max), float(limits.tiny), np.inf, -np.inf, np.nan], dtype)
    found = jax.jit(fusion_barrier)(x)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(np.signbit(found), np.signbit(x))
    np.testing.assert_array_equal(found.astype(jnp.float64), x.astype(jnp.float64))


def test_the_gradient_is_that_of_the_identity():
  weights = jnp.arange(3.0)
  np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(fusion_barrier(x) * weights))(jnp.ones(3)), weights)
