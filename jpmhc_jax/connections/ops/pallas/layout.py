"""How the arrays of a kernel are cut: blocks of tokens, chunks of features, and the zeros that fill the last ones."""

import dataclasses

from jax.experimental import pallas as pl
import jax.numpy as jnp
from jaxtyping import Array

from jpmhc_jax.connections.ops.pallas import bodies
from jpmhc_jax.connections.ops.pallas.tuning import Blocks

__all__ = ["Layout"]

_TRITON = Blocks(tokens=16, features=64, warps=4)  # a matrix product in Triton needs 16 rows
_TRITON_KERNEL = 1 << 13  # numbers of W in shared memory at a time; Triton keeps up to four such parts
_TPU_LANES, _TPU_BYTES = 128, 1 << 20  # of one block of streams in on-chip memory
_TPU_TOKENS = 512  # of a block at most: Mosaic unrolls over them
_GPU_THREADS = 128  # of the warps that Mosaic GPU computes with: each holds as many features of a chunk
_MOSAIC_GPU = Blocks(tokens=8, features=512)


def _padded(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Layout:
  """How the local arrays are cut: tokens in all and a block, features with and without padding, columns of a kernel."""

  tokens: int
  rows: int
  block: int
  d: int
  shape: bodies.Shape
  columns: int
  warps: int = 4

  @classmethod
  def of(cls, implementation: str, tokens: int, n: int, d: int, columns: int, blocks: Blocks | None = None) -> "Layout":
    """The cut for these sizes by `blocks`, or without them by the constants above.

    These are 16 tokens and 64 features for Triton, 8 and 512 for Mosaic GPU, and for TPUs about a megabyte of streams,
    128 features at a time. Mosaic takes the streams with an axis of their own: a TPU tiles the last two axes of an
    array, so that (n, d) as n·d would be a copy of the streams before and after every kernel. Triton takes the flat
    form, which costs nothing on a GPU.
    """
    make = {"pallas_gpu": cls._of_triton, "pallas_tpu": cls._of_tpu, "mosaic_gpu": cls._of_mosaic_gpu}[implementation]
    return make(tokens, n, d, pl.next_power_of_2(columns), blocks)

  @classmethod
  def _of_triton(cls, tokens: int, n: int, d: int, columns: int, blocks: Blocks | None) -> "Layout":
    blocks = blocks or _TRITON
    chunk = max(_TRITON.tokens, min(blocks.features, pl.next_power_of_2(d), _TRITON_KERNEL // columns))
    shape = bodies.Shape(n, _padded(d, chunk), chunk, apart=False)
    return cls(tokens, _padded(tokens, blocks.tokens), blocks.tokens, d, shape, max(columns, 16), blocks.warps)

  @classmethod
  def _of_tpu(cls, tokens: int, n: int, d: int, columns: int, blocks: Blocks | None) -> "Layout":
    chunk = min(blocks.features, _padded(d, _TPU_LANES)) if blocks else _TPU_LANES
    wide = _padded(d, chunk)
    per_token = max(4 * n * wide, _TPU_LANES * n * (n + 1))  # or a quarter of the sums: 128 lanes for each
    most = blocks.tokens if blocks else min(max(8, _TPU_BYTES // per_token // 8 * 8), _TPU_TOKENS)
    most = min(most, _padded(tokens, 8))
    whole = (block for block in range(most, most // 4, -8) if tokens % block == 0)
    block = next(whole, most)  # without padding, which copies the streams, where the tokens allow it
    shape = bodies.Shape(n, wide, chunk, apart=True)
    return cls(tokens, _padded(tokens, block), block, d, shape, max(columns, _TPU_LANES))

  @classmethod
  def _of_mosaic_gpu(cls, tokens: int, n: int, d: int, columns: int, blocks: Blocks | None) -> "Layout":
    """Tokens are not padded: the last block has fewer."""
    blocks, wide = blocks or _MOSAIC_GPU, _padded(d, _GPU_THREADS)
    chunk = max(c for c in range(_GPU_THREADS, blocks.features + 1, _GPU_THREADS) if wide % c == 0)
    return cls(tokens, tokens, blocks.tokens, d, bodies.Shape(n, wide, chunk, apart=True), columns)

  def width(self, kind: str, shape: tuple[int, ...]) -> int:
    """Columns of the flat form of an array of this shape."""
    if kind == "factors":
      return shape[-2] * self.columns
    return {"streams": self.shape.n * self.shape.d, "vector": self.shape.d}.get(kind, shape[-1])

  def flat(self, kind: str, value: Array) -> Array:
    """The array as the bodies see it, padded with zeros."""
    last, features = value.shape[-1], (0, self.shape.d - self.d)
    if kind in ("rows", "columns"):
      padded = jnp.pad(value, ((0, 0), features, (0, self.columns - last))).reshape(-1, self.columns)
      return padded if kind == "rows" else padded.T
    tokens = (0, self.rows - self.tokens)
    if kind in ("streams", "factors"):
      last_padding = features if kind == "streams" else (0, self.columns - last)
      padded = jnp.pad(value.reshape(self.tokens, -1, last), (tokens, (0, 0), last_padding))
      return padded if kind == "streams" and self.shape.apart else padded.reshape(self.rows, -1)
    return jnp.pad(value.reshape(self.tokens, last), (tokens, (0, self.width(kind, value.shape) - last)))

  def flat_shape(self, kind: str, width: int) -> tuple[int, ...]:
    """The shape of a result as the bodies see it."""
    return (self.rows, self.shape.n, self.shape.d) if kind == "streams" and self.shape.apart else (self.rows, width)

  def trimmed(self, kind: str, array: Array, leading: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """A flat result without its padding, in the shape of the tokens; `shape` is that of all devices' tokens."""
    if kind in ("streams", "factors"):
      array = array.reshape(self.rows, shape[-2], -1)[: self.tokens, :, : shape[-1]]
      return array.reshape(*leading, *shape[-2:])
    return array[: self.tokens, : shape[-1]].reshape(*leading, shape[-1])

  def spec(self, kind: str, width: int) -> pl.BlockSpec:
    """A block of tokens, or the whole of a kernel."""
    if kind == "streams" and self.shape.apart:
      return pl.BlockSpec((self.block, self.shape.n, self.shape.d), lambda i: (i, 0, 0))
    if kind == "rows":
      return pl.BlockSpec((self.shape.n * self.shape.d, width), lambda i: (0, 0))
    if kind == "columns":
      return pl.BlockSpec((self.columns, width), lambda i: (0, 0))
    return pl.BlockSpec((self.block, width), lambda i: (i, 0))
