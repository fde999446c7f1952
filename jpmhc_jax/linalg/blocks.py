"""Iterations over blocks of tokens that stay in a core's cache."""

from collections.abc import Callable
import functools
import math
from typing import Any, TypeVar

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jpmhc_jax.core.sharding import platform, split_over

__all__ = ["by_blocks"]

_T = TypeVar("_T")  # a tree of arrays
_BLOCK_BYTES = 32 * 1024  # one matrix per token; measured best of 256 to 2,048 tokens at n = 4 (AMD EPYC, 48 KiB of L1)


def by_blocks(function: Callable[..., _T], matrix: Array, *others: Array) -> _T:
  """function(matrix, *others) on each device's own tokens, and on CPUs block by block of them.

  `matrix` is (n, m, *tokens), `others` have the same token axes behind any others. `function` gets one token axis and
  may return any tree of arrays (..., tokens), each token a function of itself alone. A chain of ten products of 4x4
  matrices then runs three times as fast on the CPU: it never leaves the cache. A loop or branch that asks something of
  all tokens asks those of its device, so that devices exchange nothing.
  """
  arrays, axes = (matrix, *others), matrix.ndim - 2
  local: Callable[..., _T] = functools.partial(_on_one_device, function, axes)
  split = split_over("batch", matrix.shape[2]) if axes else ()
  if not split:
    return local(*arrays)

  def spec(array: Array | jax.ShapeDtypeStruct) -> PartitionSpec:
    return PartitionSpec(*(None,) * (array.ndim - axes), split)

  results = jax.tree.map(spec, jax.eval_shape(local, *arrays))
  specs = tuple(spec(array) for array in arrays)
  sharded: Callable[..., _T] = jax.shard_map(local, in_specs=specs, out_specs=results, check_vma=False)
  return sharded(*arrays)


def _on_one_device(function: Callable[..., Any], axes: int, matrix: Array, *others: Array) -> Any:
  tokens = matrix.shape[matrix.ndim - axes :]
  flat = [array.reshape(*array.shape[: array.ndim - axes], -1) for array in (matrix, *others)]
  count = math.prod(tokens)
  size = max(_BLOCK_BYTES // (matrix.shape[0] * matrix.shape[1] * matrix.dtype.itemsize), 64)
  # Blocks would cut across the devices of a token axis that the compiler splits.
  several = jax.device_count() > 1 and not jax.sharding.get_abstract_mesh().manual_axes
  if count < 2 * size or platform() != "cpu" or several:
    result = function(*flat)
  else:
    result = _loop(function, flat, count, size)
  return jax.tree.map(lambda array: array.reshape(*array.shape[:-1], *tokens), result)


def _loop(function: Callable[..., Any], flat: list[Array], count: int, size: int) -> Any:
  shapes = jax.eval_shape(function, *(jax.ShapeDtypeStruct((*a.shape[:-1], size), a.dtype) for a in flat))

  def body(block: Array, result: Any) -> Any:
    # A last block that would run over the end is moved back: its first tokens are computed twice.
    start = jnp.minimum(block * size, count - size)
    part = function(*(jax.lax.dynamic_slice_in_dim(array, start, size, -1) for array in flat))
    return jax.tree.map(lambda all_, new: jax.lax.dynamic_update_slice_in_dim(all_, new, start, -1), result, part)

  empty = jax.tree.map(lambda shape: jnp.zeros((*shape.shape[:-1], count), shape.dtype), shapes)
  return jax.lax.fori_loop(0, -(-count // size), body, empty)
