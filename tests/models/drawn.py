"""Models with normal draws for parameters: no initialiser to compile."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def drawn(create: Callable[[], Any]) -> Any:
  """What `create` returns, every float in it drawn from N(0, 1/16), integers 0."""
  rng = np.random.default_rng(0)

  def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.integer):
      return jnp.zeros(leaf.shape, leaf.dtype)
    return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(16), leaf.dtype)

  return jax.tree.map(fill, jax.eval_shape(create))
