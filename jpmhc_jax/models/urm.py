"""Universal Reasoning Model: one network looped over one latent, with residual streams.

One supervision step, from the carried latent z, with x the scaled input embedding:

    (T − 1) n times without gradient, then n times with gradient:  z ← f(z, x)
    logits = lm_head(z) on the grid,  q = q_head(z[0])

f(h, v) adds v to h and runs the blocks, as in `models.trm`; their SwiGLU has a short convolution over positions
(`model.convolution`). Published: 4 blocks, T = 2 and n = 6, so that of 12 loops the first 6 have no gradient, and at
most 16 supervision steps. Source: 2512.14693 and its code, github zitian-gao/URM @ 905c9f5.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jpmhc_jax.config import schema
from jpmhc_jax.models.blocks import Latent, Visitor
from jpmhc_jax.models.trm import Network, still, TRM


class URM(TRM):
  """The model without its puzzle table. Its one latent stands where TRM has that of the answer; there is no other."""

  latents: ClassVar[tuple[str, ...]] = ("h",)

  @staticmethod
  def calls_of(recursion: schema.Recursion) -> int:
    """Loops of a cycle."""
    return recursion.inner

  def reason(self, network: Network, z_h: Latent, z_l: Latent | None, x: Array) -> tuple[Latent, None]:
    """The latent after all loops, of which those of the last cycle are differentiated."""
    recursion = self.model.recursion

    def loop(network: Network, x: Array, z: Array, number: Array) -> tuple[Array, None]:
      return network(z, jnp.broadcast_to(x, z.shape), number), None

    numbers = jnp.arange(recursion.inner, dtype=jnp.int32)
    if recursion.outer > 1:
      z_h = still(loop, network, z_h, z_h, x, jnp.tile(numbers, recursion.outer - 1), recursion)
    z_h, _ = jax.lax.scan(functools.partial(loop, network, x), jax.lax.stop_gradient(z_h), numbers)
    return z_h, None

  def look(self, z_h: Latent, z_l: Latent | None, x: Array, call: int, visit: Visitor) -> None:
    """One loop with the cycle's `call`-th connections, for diagnostics."""
    self.network(z_h, x, call, visit)
