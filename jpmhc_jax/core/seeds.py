"""The seeds that a run may have."""

from jpmhc_jax.core.errors import require

LARGEST_SEED = 2**32 - 1  # JAX and NumPy's legacy generator tell seeds apart by 32 bits
SEED_RANGE = f"0 to {LARGEST_SEED}"


def check_seed(field: str, seed: int) -> None:
  """Raises ConfigError unless the seed is one that no other seed starts like: 0 to 2³²−1."""
  require(0 <= seed <= LARGEST_SEED, field, seed, SEED_RANGE)
