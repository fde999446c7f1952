"""Deep supervision with adaptive halting: the carry that persists from one optimiser step to the next.

Each row of the carry works on its own example for up to `max_steps` supervision steps. A row that halted is replaced at
the NEXT step by the incoming batch row; the others keep their data and ignore the incoming row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jpmhc_jax.config import schema

Batch = dict[str, Int[Array, "b ..."]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
  """State of every row. A pytree, so any leaf may also be a shape, a sharding or a tracer.

  z_h, z_l: latents (b, l, d) or (b, l, n, d), z_l None of a model with one latent; steps: supervision steps taken (b,)
  int32; halted: (b,) bool; data: the example that the row works on, arrays (b, ...) int32.
  """

  z_h: Any
  z_l: Any
  steps: Any
  halted: Any
  data: Any


def initial_carry(latents: tuple[Array, Array | None], batch: Batch) -> Carry:
  """A carry whose rows have all halted, so that the first step takes every row of its batch."""
  rows = latents[0].shape[0]
  return Carry(
    *latents,
    steps=jnp.zeros((rows,), jnp.int32),
    halted=jnp.ones((rows,), bool),
    data=jax.tree.map(jnp.zeros_like, batch),
  )


def refresh(carry: Carry, latents: tuple[Array, Array | None], batch: Batch) -> Carry:
  """Puts a fresh latent, a zero step count and the incoming example where a row had halted."""

  def choose(fresh: Array, old: Array) -> Array:
    return jnp.where(carry.halted.reshape((-1,) + (1,) * (old.ndim - 1)), fresh, old)

  z_h, z_l = jax.tree.map(choose, latents, (carry.z_h, carry.z_l))
  return Carry(
    z_h,
    z_l,
    jnp.where(carry.halted, 0, carry.steps),
    jnp.zeros_like(carry.halted),
    jax.tree.map(choose, batch, carry.data),
  )


def halt(
  steps: Int[Array, "b"], q_halt: Float[Array, "b"], recursion: schema.Recursion, key: Key[Array, ""] | None
) -> Bool[Array, "b"]:
  """Which rows stop after this step. `steps` already counts it.

  Training (with a key): the last step, or q_halt > 0; with probability `exploration` a row must take at least a uniform
  number of steps in {2, …, max_steps}. Evaluation (key None): the last step only.
  """
  last = steps >= recursion.max_steps
  if key is None or recursion.max_steps == 1:
    return last
  explore_key, minimum_key = jax.random.split(key)
  explore = jax.random.uniform(explore_key, steps.shape) < recursion.exploration
  minimum = jax.random.randint(minimum_key, steps.shape, 2, recursion.max_steps + 1)
  return (last | (q_halt > 0)) & (steps >= jnp.where(explore, minimum, 0))
