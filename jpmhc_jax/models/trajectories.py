"""Several rollouts of one example: noise on its latent, and the choice of one answer.

Trajectory 0 is the plain rollout. In the others z_L, or the latent of a model with one, becomes z + σ ε, ε ~ N(0, 1),
before every supervision step. The noise depends on the seed, the example, the trajectory and the step, and on nothing
else: not on the batch that an example stands in, nor on the mesh, nor on K, so that more trajectories add to fewer.
Source: 2605.19943, where every trajectory has noise.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from jpmhc_jax.models.blocks import Latent

_MULTIPLIER = 0x9E3779B1  # odd: no token's weight loses bits


def example_keys(key: Key[Array, ""], tokens: Int[Array, "b s"], identifiers: Int[Array, "b"]) -> Key[Array, "b"]:
  """A key for each row, the same for the same tokens and identifier in every batch."""
  weights = np.power(np.uint32(_MULTIPLIER), np.arange(1, tokens.shape[1] + 1, dtype=np.uint32), dtype=np.uint32)
  sums = jnp.sum((tokens.astype(jnp.uint32) + 1) * weights[None], axis=1, dtype=jnp.uint32)
  return jax.vmap(lambda number, row: jax.random.fold_in(jax.random.fold_in(key, number), row))(sums, identifiers)


def disturbed(
  latents: tuple[Latent, Latent | None], keys: Key[Array, "b"], trajectory: Array, step: Array, sigma: float
) -> tuple[Latent, Latent | None]:
  """The latents with the noise of one supervision step on the last one; those of trajectory 0 as they are."""
  z_h, z_l = latents
  z = z_h if z_l is None else z_l

  def of_row(key: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, trajectory), step), z.shape[1:], jnp.float32)

  noise = jnp.where(trajectory > 0, sigma, 0.0) * jax.vmap(of_row)(keys)
  noisy = z + noise.astype(z.dtype)
  return (noisy, None) if z_l is None else (z_h, noisy)


def choose(q: Float[Array, "k b"], predictions: Int[Array, "k b s"], choice: str) -> Int[Array, "b"]:
  """The trajectory that answers each row; ties go to the first.

  halting: the largest q. vote: the answer that most trajectories give, among equals that of the largest mean σ(q).
  """
  if choice == "halting":
    return jnp.argmax(q, axis=0)
  same = jnp.all(predictions[:, None] == predictions[None], axis=-1).astype(jnp.float32)
  votes = jnp.sum(same, axis=1)
  means = jnp.sum(same * jax.nn.sigmoid(q.astype(jnp.float32))[None], axis=1) / votes
  return jnp.argmax(votes + 0.5 * means, axis=0)  # a mean is below 1: it never outweighs a vote
