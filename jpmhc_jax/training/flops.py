"""Floating-point operations of one training step, counted in the traced program."""

import dataclasses

import jax

from jpmhc_jax.data import Dataset
from jpmhc_jax.mixers import flops
from jpmhc_jax.training.state import prepare, Setup
from jpmhc_jax.training.step import make_train_step


def flops_per_step(setup: Setup, dataset: Dataset) -> int:
  """Model FLOPs of one step over the global batch: every matrix product, forward and backward; nothing is compiled.

  What rematerialisation computes twice counts once, and elementwise work is left out, as usual when a share of the
  hardware's peak is meant. Loops count their trips. XLA's own cost analysis counts the body of a loop once, which for a
  recursive network is several times too few (2.9 for two cycles of two updates).
  """
  if setup.config.model.rematerialise != "none":
    model = dataclasses.replace(setup.config.model, rematerialise="none")
    setup = prepare(dataclasses.replace(setup.config, model=model), dataset, setup.mesh)
  state = jax.eval_shape(setup.create)
  return flops.count(make_train_step(setup), state, state.carry.data, products_only=True)
