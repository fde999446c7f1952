"""Floating-point operations of one training step, counted in the traced program."""

import jax

from jpmhc_jax.data import Dataset
from jpmhc_jax.manifolds import flops
from jpmhc_jax.training.state import Setup
from jpmhc_jax.training.step import make_train_step


def flops_per_step(setup: Setup, dataset: Dataset) -> int:
  """Operations of one step over the global batch, forward, backward and optimiser; nothing is compiled.

  Loops count their trips. XLA's own cost analysis counts the body of a loop once, which for a recursive network is
  several times too few (2.9 for two cycles of two updates).
  """
  state = jax.eval_shape(setup.create)
  batch = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in dataset.batch(0).items()}
  return flops.count(make_train_step(setup), state, batch)
