"""What keeps a compiler from merging operations that are faster apart."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def fusion_barrier(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """x, rounded to its own precision: the same numbers, behind an operation that no compiler's library call takes in.

  XLA on the CPU grows a call of its library for products and sums over all the elementwise operations around, in which
  that library is slow. An `optimization_barrier` does not stop it: barriers are gone before it looks.
  """
  precision = jnp.finfo(x.dtype)
  return jax.lax.reduce_precision(x, precision.nexp, precision.nmant)
