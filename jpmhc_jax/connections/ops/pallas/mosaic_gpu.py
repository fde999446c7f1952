"""The kernels by Mosaic GPU, the way to GPUs that Pallas keeps.

JAX's change log of 0.11.0 (https://docs.jax.dev/en/latest/pallas/CHANGELOG.html): "The Triton backend is deprecated and
will be removed in a future version of JAX. To keep using Pallas on GPU, please migrate to the Mosaic GPU backend. To
keep using Triton, switch to the official Triton bindings and jax_triton." Mosaic GPU is for Hopper and later.

The bodies are those of Triton and of TPUs, applied to one token after the other: the 128 threads of an instance share
its features, a coefficient is a scalar. What multiplies by W is left to XLA, whose library has matrix products in
float32; Mosaic GPU's run on tensor cores, which round their factors.

They lower on any machine and, with JAX's CUDA plugin, compile for a GPU that is elsewhere, down to its own code:

    python -m experiments.benchmarks.kernels --topology=h100
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, ClassVar

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
from jaxtyping import Array

from jpmhc_jax.connections.ops import xla
from jpmhc_jax.connections.ops.pallas import bodies
from jpmhc_jax.connections.ops.pallas.layout import Layout
from jpmhc_jax.connections.ops.pallas.operators import Kernels

__all__ = ["MosaicGpu", "Token"]


@dataclasses.dataclass(frozen=True)
class MosaicGpu(Kernels):
  """`StreamOps` on NVIDIA GPUs from Hopper on. What has a W, and one pass, are made of formulas and these kernels."""

  platform: str = "gpu"

  most: ClassVar[int] = 8  # streams that fit its registers
  most_in_one_pass: ClassVar[int] = 0

  @property
  def implementation(self) -> str:
    """'mosaic_gpu'."""
    return "mosaic_gpu"

  def statistics(self, x: Array, kernel: Array) -> tuple[Array, Array]:
    """Σ x W and Σ x², by the formulas."""
    return xla.statistics(x, kernel)

  def streams_backward(
    self,
    x: Array,
    mixed: tuple[Array, Array | None] | None = None,
    read: tuple[Array, Array] | None = None,
    projected: tuple[Array, Array, Array] | None = None,
  ) -> Array:
    """x̄: Hᵀ x̄' + a ū in one pass, W s̄ + 2 x q̄ by the formulas."""
    if mixed is None and read is None:
      return xla.streams_backward(x, projected=projected).astype(x.dtype)
    result = super().streams_backward(x, mixed, read)
    return result if projected is None else result + xla.streams_backward(x, projected=projected).astype(x.dtype)

  def launch(
    self,
    body: Callable[..., None],
    layout: Layout,
    arguments: list[tuple[str, Array]],
    results: list[tuple[str, jax.ShapeDtypeStruct]],
  ) -> Sequence[Array]:
    """Every instance has a block of tokens, the last one what is left."""
    block, shapes, arrays = layout.block, [result for _, result in results], [array for _, array in arguments]

    def tokens(index: Any, *refs: Any) -> None:
      def token(k: Any, carry: None) -> None:
        body(Token(**vars(layout.shape), token=index * block + k), *refs)

      jax.lax.fori_loop(0, jnp.minimum(block, layout.tokens - index * block), token, None)

    grid = (-(-layout.tokens // block),)
    if self.interpret:
      one_by_one = lambda *refs: tokens(pl.program_id(0), *refs)  # noqa: E731
      return pl.pallas_call(one_by_one, out_shape=shapes, grid=grid, interpret=True)(*arrays)  # type: ignore[no-any-return]
    from jax.experimental.pallas import mosaic_gpu  # 0.3 s, for those who use it

    instance = lambda *refs: tokens(jax.lax.axis_index("block"), *refs)  # noqa: E731
    made: Sequence[Array] = mosaic_gpu.kernel(instance, out_type=shapes, grid=grid, grid_names=("block",))(*arrays)
    return made


@dataclasses.dataclass(frozen=True)
class Token(bodies.Shape):
  """One token of streams apart: a chunk is a vector, what a token has one of is a scalar."""

  token: Any = None

  def stream(self, j: Any, first: Any) -> tuple[Any, ...]:
    """The index of a chunk of stream j."""
    return self.token, j, pl.ds(first, self.chunk)

  def vector(self, first: Any) -> tuple[Any, Any]:
    """The index of a chunk of a single vector."""
    return self.token, pl.ds(first, self.chunk)

  def column(self, ref: Any, k: Any) -> jax.Array:
    """Number k of the token."""
    result: jax.Array = ref[self.token, k].astype(jnp.float32)
    return result

  def store_columns(self, ref: Any, columns: Any) -> None:
    """Numbers 0, 1, … of the token."""
    for k, column in enumerate(columns):
      ref[self.token, k] = column

  def dot(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """Σ_d x y of a chunk, a scalar."""
    return jnp.sum(x * y)

  def zeros(self, ref: Any, count: int) -> tuple[jax.Array, ...]:
    """So many scalars."""
    return (jnp.zeros((), jnp.float32),) * count
