"""Mixers of a batch that is split over devices: nothing is exchanged, and every token is what it is on one device."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from jpmhc_jax import mixers
from jpmhc_jax.linalg.blocks import by_blocks
from jpmhc_jax.mixers import flops

COLLECTIVE = re.compile(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")
# Those that ask something of all tokens (is one lost? has the last converged?), and one that does not.
CASES = [
  ("cayley", 5), ("birkhoff_newton", 3), ("sinkhorn", 4),
  *(pytest.param(*case, marks=pytest.mark.slow) for case in (("polar", 5), ("iso newton", 6), ("householder", 5))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "n"), CASES)
def test_devices_exchange_nothing_and_agree_with_one(name, n):
  family, _, method = name.partition(" ")
  manifold = mixers.make(family, **({"method": method} if method else {}))
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  shape = manifold.logit_shape(n)
  logits = 3 * np.random.default_rng(0).normal(size=(*shape, 8, 3)).astype(np.float32)
  split = NamedSharding(mesh, PartitionSpec(*(None,) * len(shape), ("data", "fsdp")))

  def both(logits):
    mixer, pullback = jax.vjp(lambda logits: manifold.project(logits, n), logits)
    return mixer, pullback(mixer + mixer[::-1])[0]

  def on_mesh(logits):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return both(logits)

  program = jax.jit(on_mesh).lower(jax.ShapeDtypeStruct(logits.shape, logits.dtype, sharding=split)).compile()
  assert not COLLECTIVE.findall(program.as_text())
  for found, expected in zip(program(jax.device_put(logits, split)), jax.jit(both)(logits), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_operations_of_a_split_batch_are_those_of_the_whole_one():
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

  def repeated(matrix):
    return by_blocks(lambda block: jnp.einsum("ijt,jkt->ikt", block, block) + block, matrix)

  matrix = jnp.ones((3, 3, 8, 5))
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    assert "shard_map" in str(jax.make_jaxpr(repeated)(matrix))
    assert flops.count(repeated, matrix, products_only=True) == 54 * 40
    assert flops.count(repeated, matrix) == (54 + 9) * 40
