"""Sweeps: an algebra of config overrides, matched budgets, executors, and a search over the same space.

A sweep file imports what it needs from here and defines `get_sweep()`; see jpmhc_jax/configs/sweeps/mixers.py.
"""

from jpmhc_jax.sweeps.definition import Budget, Sweep
from jpmhc_jax.sweeps.space import between, cases, chain, product, seeds, Space, sweep, zipped

__all__ = ["Budget", "Space", "Sweep", "between", "cases", "chain", "product", "seeds", "sweep", "zipped"]
