"""The compiled step: its size does not grow with the recursion, and the streams of a recursion do not pile up."""

import dataclasses

import jax
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.training.step import make_train_step


def _lowered(outer, inner, **connection):
  base = tiny.config()
  recursion = dataclasses.replace(base.model.recursion, outer=outer, inner=inner)
  config = tiny.config(
    model=dataclasses.replace(base.model, recursion=recursion),
    connection=dataclasses.replace(base.connection, **connection),
  )
  setup, batch = tiny.setup(config), tiny.dataset(config).batch(0)
  return make_train_step(setup).lower(jax.eval_shape(setup.create), batch)


@pytest.mark.slow
def test_the_program_is_as_long_for_any_number_of_cycles():
  def length(*cycles):
    return len(_lowered(*cycles).as_text().splitlines())

  assert abs(length(2, 2) - length(4, 7)) < 20  # of 6,000


@pytest.mark.slow
def test_cycles_that_are_not_differentiated_store_nothing():
  """Temporaries grow with the differentiated calls only: the streams of a recursion do not pile up."""

  def temporary(*cycles):
    return _lowered(*cycles, streams=4).compile().memory_analysis().temp_size_in_bytes

  assert temporary(6, 2) == temporary(2, 2)


def test_the_default_stores_products_only():
  assert schema.Model().rematerialise == "products"
