"""Counter-based random words: splitmix64's finaliser (Steele, Lea, Flood 2014), elementwise on uint64 arrays."""

from jaxtyping import UInt64
import numpy as np


def mix(words: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
  """A bijection of 64-bit words under which neighbouring counters look independent."""
  words = words + np.uint64(0x9E3779B97F4A7C15)
  words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return words ^ (words >> np.uint64(31))
