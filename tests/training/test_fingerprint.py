"""Equal numbers for equal bits, whatever the layout; another number for any single changed bit."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from jpmhc_jax.training.integrity import fingerprint

DTYPES = (jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_, jnp.uint8)


def _leaves():
  values = np.random.default_rng(0).integers(0, 2, (8, 6))
  return [jnp.asarray(values, dtype) for dtype in DTYPES] + [jnp.float32(3.0)]


def test_one_number_a_leaf_and_the_same_on_every_layout():
  leaves = _leaves()
  mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  split = NamedSharding(mesh, PartitionSpec("a", "b"))
  spread = [jax.device_put(leaf, split if leaf.ndim else NamedSharding(mesh, PartitionSpec())) for leaf in leaves]
  assert fingerprint(spread) == fingerprint(leaves) == fingerprint(jax.device_get(leaves))
  assert len(fingerprint(leaves)) == len(DTYPES) + 1


@pytest.mark.parametrize("leaf", range(len(DTYPES)))
def test_a_changed_bit_or_two_swapped_elements_change_it(leaf):
  leaves = jax.device_get(_leaves())
  whole = fingerprint(leaves)
  changed = leaves[leaf].copy()
  changed.view(np.uint8).reshape(-1)[13 * changed.itemsize] ^= 1
  assert fingerprint([*leaves[:leaf], changed, *leaves[leaf + 1 :]]) != whole
  rows = leaves[leaf][np.array([1, 0, *range(2, 8)])]
  assert fingerprint([*leaves[:leaf], rows, *leaves[leaf + 1 :]]) != whole


def test_minus_zero_and_the_kinds_of_nan_are_told_apart():
  zero = np.zeros(3, np.float32)
  assert fingerprint([zero]) != fingerprint([-zero])
