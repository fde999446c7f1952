"""Named random streams: every random number of a run is a pure function of (seed, name, step)."""

import zlib

import jax
from jaxtyping import Array, Int, Key

from jpmhc_jax.core.scalars import check_seed


def key_for(seed: int, name: str, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
  """fold_in(fold_in(key(seed), crc32(name)), step): independent streams without any state to save.

  Raises ConfigError for a seed outside 0 to 2³²−1: JAX keeps 32 bits of it, so that other seeds would start alike.
  """
  check_seed("seed", seed)
  root = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
  return jax.random.fold_in(root, step)
