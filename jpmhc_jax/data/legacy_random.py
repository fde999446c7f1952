"""NumPy's legacy random stream, value for value, without its call overhead.

RandomState's bounded integers, shuffles and permutations all reduce to one rule: take 32-bit words of MT19937, keep
the low bits that the bound needs, and reject what exceeds it. The official ARC builder makes 16 million such calls;
at a few microseconds each inside NumPy that is over a minute, as plain integers here it is seconds. NumPy froze this
stream (NEP 19).
"""

from collections.abc import Iterator, MutableSequence

import numpy as np

_CHUNK = 1 << 16


class LegacyRandom:
  """Draws as `np.random.seed(seed)` followed by np.random.randint, shuffle and permutation."""

  def __init__(self, seed: int):
    self._words = self._stream(np.random.RandomState(seed))

  @staticmethod
  def _stream(state: np.random.RandomState) -> Iterator[int]:
    while True:
      yield from state.randint(0, 1 << 32, size=_CHUNK, dtype=np.uint32).tolist()

  def at_most(self, largest: int) -> int:
    """Uniform in 0..largest: randint(0, largest + 1). No word is used for largest = 0."""
    if not largest:
      return 0
    mask = (1 << largest.bit_length()) - 1
    while (word := next(self._words) & mask) > largest:
      pass
    return word

  def shuffle(self, items: MutableSequence) -> None:
    """Shuffles in place; also `permutation` of a copy."""
    for i in range(len(items) - 1, 0, -1):
      j = self.at_most(i)
      items[i], items[j] = items[j], items[i]
