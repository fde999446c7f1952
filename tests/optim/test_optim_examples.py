"""The examples in the docstrings run and print what they say."""

import doctest
import importlib


def test_examples():
  for name in ("optim.adam_atan2", "optim.manifold_optimizers", "connections.block"):
    results = doctest.testmod(importlib.import_module(f"jpmhc_jax.{name}"))
    assert results.attempted > 0 and results.failed == 0
