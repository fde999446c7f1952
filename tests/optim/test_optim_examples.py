"""The examples in the docstrings run and print what they say."""

import doctest

from jpmhc_jax.optim import adam_atan2, manifold_optimizers


def test_examples():
  for module in (adam_atan2, manifold_optimizers):
    results = doctest.testmod(module)
    assert results.attempted > 0 and results.failed == 0
