"""The kernels as drop-in operators: padding to blocks, the grid, and `jax.shard_map` under a mesh.

A caller hands over arrays as the portable operators take them (streams (*tokens, n, d), coefficients tokens last or
token-free). Each instance owns a block of tokens and all their features; what does not fill a block is padded with
zeros. Under a mesh every device runs the kernel on its own tokens: nothing in here moves between devices.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jpmhc_jax.connections.kernels import bodies
from jpmhc_jax.connections.portable import einsum
from jpmhc_jax.core.layout import batch_split

_TRITON_TOKENS, _TRITON_CHUNK = 16, 64  # a matrix product in Triton needs 16 rows
_MOSAIC_LANES, _MOSAIC_BYTES = 128, 1 << 20  # of one block of streams in on-chip memory
_MOSAIC_TOKENS = 512  # of a block at most: Mosaic unrolls over them


@dataclasses.dataclass(frozen=True)
class Kernels:
  """Operators on one kind of device: 'gpu' (Triton) or 'tpu' (Mosaic). `interpret` runs them anywhere, slowly."""

  platform: str
  interpret: bool = False

  def read(self, x: Array, weights: Array) -> Array:
    """Σ_j a_j x_j."""
    return self._run(bodies.read, [_streams(x), _coefficient(weights, 1, x)], [_vector(x)])[0]

  def read_backward(self, x: Array, weights: Array, cotangent: Array) -> tuple[Array, Array]:
    """x̄ and ā."""
    arguments = [_streams(x), _coefficient(weights, 1, x), _vector(x, cotangent)]
    to_x, to_weights = self._run(bodies.read_backward, arguments, [_streams(x), _per_token(x, x.shape[-2])])
    return to_x, _unflatten(to_weights, weights, 1)

  def mix(self, x: Array, mixer: Array, weights: Array, y: Array) -> Array:
    """Σ_j H_ij x_j + b_i y."""
    arguments = [_streams(x), _vector(x, y), _coefficient(mixer, 2, x), _coefficient(weights, 1, x)]
    return self._run(bodies.mix, arguments, [_streams(x)])[0]

  def mix_backward(
    self, x: Array, mixer: Array, weights: Array, y: Array, cotangent: Array
  ) -> tuple[Array, Array, Array, Array]:
    """x̄, H̄, b̄ and ȳ."""
    n = x.shape[-2]
    arguments = [
      _streams(x), _vector(x, y), _coefficient(mixer, 2, x), _coefficient(weights, 1, x), _streams(cotangent)
    ]  # fmt: skip
    results = [_streams(x), _vector(x), _per_token(x, n * n), _per_token(x, n)]
    to_x, to_y, to_mixer, to_weights = self._run(bodies.mix_backward, arguments, results)
    return to_x, _unflatten(to_mixer, mixer, 2), _unflatten(to_weights, weights, 1), to_y

  def statistics(self, x: Array, kernel: Array) -> tuple[Array, Array]:
    """Σ x W, (k, *tokens), and Σ x², (*tokens)."""
    arguments = [_streams(x), _Operand("rows", kernel)]
    products, square = self._run(bodies.statistics, arguments, [_per_token(x, kernel.shape[-1]), _per_token(x, 1)])
    return jnp.moveaxis(products, -1, 0), square[..., 0]

  def statistics_backward(self, x: Array, kernel: Array, of_products: Array, of_square: Array) -> tuple[Array, Array]:
    """x̄ and W̄; W̄ sums over tokens, so it is a matrix product outside the kernel."""
    rows = jnp.moveaxis(of_products, 0, -1)
    arguments = [
      _streams(x), _Operand("columns", kernel), _Operand("token", rows), _Operand("token", of_square[..., None])
    ]  # fmt: skip
    (to_x,) = self._run(bodies.statistics_backward, arguments, [_streams(x)])
    return to_x, einsum("...nd,...k->ndk", x.astype(rows.dtype), rows)

  def _run(self, body: Callable[..., None], arguments: "list[_Operand]", results: "list[_Operand]") -> list[Array]:
    """Runs a body over all tokens, on every device's own part of them."""
    local = functools.partial(_call, self, body, [a.kind for a in arguments], results)
    values = [a.value for a in arguments]
    split = batch_split(next(a.value.shape[0] for a in arguments if a.kind not in ("rows", "columns")))
    if not split:
      return local(*values)
    per_token, whole = PartitionSpec(split), PartitionSpec()
    specs = tuple(whole if a.kind in ("rows", "columns") else per_token for a in arguments)
    return jax.shard_map(local, in_specs=specs, out_specs=[per_token] * len(results), check_vma=False)(*values)


@dataclasses.dataclass(frozen=True)
class _Operand:
  """An array, or the shape of a result, with its kind.

  streams (*tokens, n, d), vector (*tokens, d), token (*tokens, k), and the whole (n, d, k) kernel for every instance:
  rows as (n·d, k), columns as (k, n·d).
  """

  kind: str
  value: Any


def _streams(x: Array) -> _Operand:
  return _Operand("streams", x)


def _vector(x: Array, y: Array | None = None) -> _Operand:
  """The operand, or the shape of a result, with one d-vector a token of the streams x."""
  return _Operand("vector", jax.ShapeDtypeStruct((*x.shape[:-2], x.shape[-1]), x.dtype) if y is None else y)


def _per_token(x: Array, count: int) -> _Operand:
  return _Operand("token", jax.ShapeDtypeStruct((*x.shape[:-2], count), jnp.float32))


def _coefficient(coefficient: Array, axes: int, x: Array) -> _Operand:
  """Tokens first and flat; a token-free coefficient is repeated (n² numbers beside the n·d of a token's streams)."""
  rows = jnp.moveaxis(jax.lax.collapse(coefficient, 0, axes), 0, -1)
  rows = rows.reshape((1,) * (x.ndim - 1 - rows.ndim) + rows.shape)
  return _Operand("token", jnp.broadcast_to(rows, (*x.shape[:-2], rows.shape[-1])))


def _unflatten(rows: Array, coefficient: Array, axes: int) -> Array:
  """Back to the layout of the coefficient; summed over the tokens where it has none."""
  if coefficient.ndim == axes:
    return jnp.sum(rows, axis=tuple(range(rows.ndim - 1))).reshape(coefficient.shape)
  return jnp.moveaxis(rows, -1, 0).reshape(coefficient.shape)


def _padded(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class _Layout:
  """How the local arrays are cut: tokens in all and a block, features with and without padding, columns of a kernel."""

  tokens: int
  rows: int
  block: int
  d: int
  shape: bodies.Shape
  columns: int

  @classmethod
  def of(cls, platform: str, tokens: int, n: int, d: int, columns: int) -> "_Layout":
    """Blocks of 16 tokens and 64 features for Triton; about a megabyte of streams for Mosaic, 128 features at a time.

    Mosaic takes the streams with an axis of their own: a TPU tiles the last two axes of an array, so that (n, d) as n·d
    would be a copy of the streams before and after every kernel. On a GPU the flat form costs nothing.
    """
    if platform == "gpu":
      chunk = min(_TRITON_CHUNK, max(16, pl.next_power_of_2(d)))
      block, shape = _TRITON_TOKENS, bodies.Shape(n, _padded(d, chunk), chunk, apart=False)
    else:
      wide = _padded(d, _MOSAIC_LANES)
      per_token = max(4 * n * wide, _MOSAIC_LANES * n * (n + 1))  # or a quarter of the sums: 128 lanes for each
      most = min(max(8, _MOSAIC_BYTES // per_token // 8 * 8), _MOSAIC_TOKENS, _padded(tokens, 8))
      whole = (block for block in range(most, most // 4, -8) if tokens % block == 0)
      block = next(whole, most)  # without padding, which copies the streams, where the tokens allow it
      shape = bodies.Shape(n, wide, _MOSAIC_LANES, apart=True)
    least = 16 if platform == "gpu" else _MOSAIC_LANES
    return cls(tokens, _padded(tokens, block), block, d, shape, max(pl.next_power_of_2(columns), least))

  def width(self, kind: str, last: int, factor: int) -> int:
    """Columns of the flat form; per-token factors of a product, `factor` wide, are padded like its kernel."""
    wide = {"streams": self.shape.n * self.shape.d, "vector": self.shape.d, "columns": self.shape.n * self.shape.d}
    return self.columns if kind == "rows" or (kind == "token" and last == factor) else wide.get(kind, last)

  def flat(self, kind: str, value: Array, factor: int) -> Array:
    """The array as the bodies see it, padded with zeros."""
    last, features = value.shape[-1], (0, self.shape.d - self.d)
    if kind in ("rows", "columns"):
      padded = jnp.pad(value, ((0, 0), features, (0, self.columns - last))).reshape(-1, self.columns)
      return padded if kind == "rows" else padded.T
    tokens = (0, self.rows - self.tokens)
    if kind == "streams":
      padded = jnp.pad(value.reshape(self.tokens, self.shape.n, last), (tokens, (0, 0), features))
      return padded if self.shape.apart else padded.reshape(self.rows, -1)
    return jnp.pad(value.reshape(self.tokens, last), (tokens, (0, self.width(kind, last, factor) - last)))

  def flat_shape(self, kind: str, width: int) -> tuple[int, ...]:
    """The shape of a result as the bodies see it."""
    return (self.rows, self.shape.n, self.shape.d) if kind == "streams" and self.shape.apart else (self.rows, width)

  def trimmed(self, kind: str, array: Array, leading: tuple[int, ...], last: int) -> Array:
    """A flat result without its padding, in the shape of the tokens."""
    if kind == "streams":
      streams = array.reshape(self.rows, self.shape.n, self.shape.d)[: self.tokens, :, : self.d]
      return streams.reshape(*leading, self.shape.n, self.d)
    return array[: self.tokens, :last].reshape(*leading, last)

  def spec(self, kind: str, width: int) -> pl.BlockSpec:
    """A block of tokens, or the whole of a kernel."""
    if kind == "streams" and self.shape.apart:
      return pl.BlockSpec((self.block, self.shape.n, self.shape.d), lambda i: (i, 0, 0))
    if kind == "rows":
      return pl.BlockSpec((self.shape.n * self.shape.d, width), lambda i: (0, 0))
    if kind == "columns":
      return pl.BlockSpec((self.columns, width), lambda i: (0, 0))
    return pl.BlockSpec((self.block, width), lambda i: (i, 0))


def _call(
  kernels: Kernels, body: Callable[..., None], kinds: list[str], results: list[_Operand], *values: Array
) -> list[Array]:
  """One body over all tokens of this device; the first value is the streams."""
  leading, (n, d) = values[0].shape[:-2], values[0].shape[-2:]
  if 0 in leading:
    return [jnp.zeros(r.value.shape, r.value.dtype) for r in results]
  factor = next((v.shape[-1] for k, v in zip(kinds, values, strict=True) if k in ("rows", "columns")), -1)
  layout = _Layout.of(kernels.platform, math.prod(leading), n, d, max(factor, 1))
  flat = [layout.flat(kind, value, factor) for kind, value in zip(kinds, values, strict=True)]
  lasts = [r.value.shape[-1] for r in results]
  widths = [layout.width(r.kind, last, factor) for r, last in zip(results, lasts, strict=True)]
  found = pl.pallas_call(
    functools.partial(body, layout.shape),
    out_shape=[
      jax.ShapeDtypeStruct(layout.flat_shape(r.kind, w), r.value.dtype) for r, w in zip(results, widths, strict=True)
    ],
    grid=(layout.rows // layout.block,),
    in_specs=[layout.spec(kind, array.shape[-1]) for kind, array in zip(kinds, flat, strict=True)],
    out_specs=[layout.spec(r.kind, w) for r, w in zip(results, widths, strict=True)],
    compiler_params=triton.CompilerParams(num_warps=4) if kernels.platform == "gpu" else None,
    interpret=kernels.interpret,
  )(*flat)
  return [layout.trimmed(r.kind, array, leading, last) for r, array, last in zip(results, found, lasts, strict=True)]
