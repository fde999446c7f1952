"""The kernels as drop-in operators: padding to blocks, the grid, and `jax.shard_map` under a mesh.

A caller hands over arrays as the operators in plain JAX take them (streams (*tokens, n, d), coefficients tokens last or
token-free). Each instance owns a block of tokens and all their features; what does not fill a block is padded with
zeros. Under a mesh every device runs the kernel on its own tokens: nothing in here moves between devices.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jpmhc_jax.connections.ops import xla
from jpmhc_jax.connections.ops.composed import Advanced, Composed, Flowing, Operands
from jpmhc_jax.connections.ops.contractions import einsum, seen
from jpmhc_jax.connections.ops.pallas import bodies, tuning
from jpmhc_jax.connections.ops.pallas.layout import Layout
from jpmhc_jax.core.sharding import split_over

__all__ = ["Kernels"]


@dataclasses.dataclass(frozen=True)
class Kernels:
  """`StreamOps` on one kind of device: 'gpu' (Triton) or 'tpu' (Mosaic).

  interpret: runs them anywhere, slowly.  blocks: these for every kernel, in place of the measured ones (see `tuning`).
  """

  platform: str
  interpret: bool = False
  blocks: tuning.Blocks | None = None

  fuses: ClassVar[bool] = True
  most: ClassVar[int] = 16  # streams: with more W does not fit a processor's own memory

  @property
  def implementation(self) -> str:
    """'pallas_gpu' or 'pallas_tpu'."""
    return f"pallas_{self.platform}"

  def read(self, x: Array, weights: Array) -> Array:
    """Σ_j a_j x_j."""
    return self._run(bodies.read, [_streams(x), _coefficient(weights, 1, x)], [_vector(x)])[0]

  def weights_backward(self, x: Array, weights: Array, cotangent: Array) -> Array:
    """ā."""
    arguments = [_streams(x), _vector(x, cotangent)]
    return _unflatten(self._run(bodies.weights_backward, arguments, [_per_token(x, x.shape[-2])])[0], weights, 1)

  def mix(self, x: Array, mixer: Array, weights: Array, y: Array) -> Array:
    """Σ_j H_ij x_j + b_i y."""
    arguments = [_streams(x), _vector(x, y), _coefficient(mixer, 2, x), _coefficient(weights, 1, x)]
    return self._run(bodies.mix, arguments, [_streams(x)])[0]

  def coefficients_backward(
    self, x: Array, mixer: Array, weights: Array, y: Array, cotangent: Array
  ) -> tuple[Array, Array, Array]:
    """H̄, b̄ and ȳ."""
    n = x.shape[-2]
    arguments = [_streams(x), _vector(x, y), _coefficient(weights, 1, x), _streams(cotangent)]
    results = [_vector(x), _per_token(x, n * n), _per_token(x, n)]
    to_y, to_mixer, to_weights = self._run(bodies.coefficients_backward, arguments, results)
    return _unflatten(to_mixer, mixer, 2), _unflatten(to_weights, weights, 1), to_y

  def statistics(self, x: Array, kernel: Array) -> tuple[Array, Array]:
    """Σ x W, (k, *per_kernel), and Σ x², (*per_kernel)."""
    x = seen(x, kernel)
    arguments = [_streams(x), _Operand("rows", kernel)]
    factors = jax.ShapeDtypeStruct((*x.shape[:-2], 1, kernel.shape[-1]), jnp.float32)
    products, square = self._run(bodies.statistics, arguments, [_Operand("factors", factors), _per_token(x, 1)])
    return jnp.moveaxis(products[..., 0, :], -1, 0), square[..., 0]

  def kernel_backward(self, x: Array, kernel: Array, of_products: Array) -> Array:
    """W̄: a sum over tokens, so it is a matrix product outside the kernels."""
    rows = jnp.moveaxis(of_products, 0, -1)
    return einsum("...nd,...k->ndk", seen(x, kernel).astype(rows.dtype), rows)

  def streams_backward(
    self,
    x: Array,
    mixed: tuple[Array, Array | None] | None = None,
    read: tuple[Array, Array] | None = None,
    projected: tuple[Array, Array, Array] | None = None,
  ) -> Array:
    """x̄ = Hᵀ x̄' + a ū + (W s̄ + 2 x q̄), all terms in one pass; see `StreamOps`."""
    arguments = {"x": _streams(x)}
    if mixed is not None:
      cotangent, mixer = mixed
      arguments["cotangent"] = _streams(cotangent)
      if mixer is not None:
        arguments["mixer"] = _coefficient(mixer, 2, x)
    if read is not None:
      vector, weights = read
      arguments |= {"vector": _vector(x, vector), "weights": _coefficient(weights, 1, x)}
    if projected is not None:
      kernel, of_products, of_square = projected
      leading, parts = x.shape[:-2], x.shape[-2] // kernel.shape[0]
      rows = jnp.moveaxis(of_products, 0, -1).reshape(*leading, parts, kernel.shape[-1])
      arguments |= {
        "kernel": _Operand("columns", kernel),
        "products": _Operand("factors", rows),
        "square": _Operand("token", of_square.reshape(*leading, parts)),
      }
    else:
      del arguments["x"]
    body = functools.partial(bodies.streams_backward, names=tuple(arguments))
    return self._run(body, list(arguments.values()), [_streams(x)])[0]

  def advance(self, operands: Operands, epsilon: float | None) -> Advanced:
    """x' = H x + b ⊗ y with its norm, its statistics and the next read in one pass; see `StreamOps`."""
    x, mixer, weights, y, kernel, read = operands
    if x.shape[-2] > self.most_in_one_pass:
      return self._composed.advance(operands, epsilon)
    arguments = {"x": _streams(x), "y": _vector(x, y), "weights": _coefficient(weights, 1, x)}
    results = {"streams": _streams(x)}
    if mixer is not None:
      arguments["mixer"] = _coefficient(mixer, 2, x)
    if epsilon is not None:
      results["scale"] = _per_token(x, x.shape[-2])
    if kernel is not None:
      arguments["kernel"] = _Operand("rows", kernel)
      factors = jax.ShapeDtypeStruct((*x.shape[:-2], 1, kernel.shape[-1]), jnp.float32)
      results |= {"products": _Operand("factors", factors), "square": _per_token(x, 1)}
    if read is not None:
      arguments["read"], results["vector"] = _coefficient(read, 1, x), _vector(x)
    body = functools.partial(
      bodies.advance, names=tuple(arguments), results=tuple(results), width=x.shape[-1], epsilon=epsilon
    )
    made = dict(zip(results, self._run(body, list(arguments.values()), list(results.values())), strict=True))
    result = Advanced(made["streams"], vector=made.get("vector"))
    if epsilon is not None:
      result = result._replace(scale=jnp.moveaxis(made["scale"], -1, 0))
    if kernel is not None:
      result = result._replace(products=jnp.moveaxis(made["products"][..., 0, :], -1, 0), square=made["square"][..., 0])
    return result

  def advance_backward(
    self, operands: Operands, epsilon: float | None, advanced: Advanced, flowing: Flowing
  ) -> Operands:
    """Every gradient of `advance` in one pass over x and x̄', W̄ apart; see `StreamOps`."""
    x, mixer, weights, y, kernel, read = operands
    if x.shape[-2] > self.most_in_one_pass:
      return self._composed.advance_backward(operands, epsilon, advanced, flowing)
    n, leading = x.shape[-2], x.shape[:-2]
    arguments = {
      "x": _streams(x),
      "y": _vector(x, y),
      "weights": _coefficient(weights, 1, x),
      "cotangent": _streams(flowing.streams),
    }
    results = {"streams": _streams(x), "output": _vector(x), "weights": _per_token(x, n)}
    if mixer is not None:
      arguments["mixer"], results["mixer"] = _coefficient(mixer, 2, x), _per_token(x, n * n)
    to_kernel = None
    if kernel is not None and flowing.products is not None and flowing.square is not None:
      to_kernel = self.kernel_backward(advanced.streams, kernel, flowing.products)
      rows = jnp.moveaxis(flowing.products, 0, -1).reshape(*leading, 1, kernel.shape[-1])
      arguments["kernel"], arguments["products"] = _Operand("columns", kernel), _Operand("factors", rows)
      arguments["square"] = _Operand("token", flowing.square.reshape(*leading, 1))
    if flowing.vector is not None and flowing.weights is not None:
      arguments |= {"vector": _vector(x, flowing.vector), "read": _coefficient(flowing.weights, 1, x)}
    if read is not None:
      results["read"] = _per_token(x, n)
    body = functools.partial(
      bodies.advance_backward, names=tuple(arguments), results=tuple(results), width=x.shape[-1], epsilon=epsilon
    )
    made = dict(zip(results, self._run(body, list(arguments.values()), list(results.values())), strict=True))
    return Operands(
      made["streams"],
      None if mixer is None else _unflatten(made["mixer"], mixer, 2),
      _unflatten(made["weights"], weights, 1),
      made["output"],
      to_kernel,
      None if read is None else _unflatten(made["read"], read, 1),
    )

  @property
  def most_in_one_pass(self) -> int:
    """Streams; with more a GPU's shared memory cannot hold what one pass keeps: its operators run one by one."""
    return 4 if self.platform == "gpu" else self.most

  @property
  def _composed(self) -> Composed:
    return Composed(
      self.mix, xla.write, self.read, self.statistics, self.coefficients_backward, xla.write_backward,
      self.kernel_backward, self.weights_backward, self.streams_backward,
    )  # fmt: skip

  def launch(
    self,
    body: Callable[..., None],
    layout: Layout,
    arguments: list[tuple[str, Array]],
    results: list[tuple[str, jax.ShapeDtypeStruct]],
  ) -> Sequence[Array]:
    """A body over all blocks of a device; arrays and results as the body sees them, each with its kind."""
    return pl.pallas_call(  # type: ignore[no-any-return]
      functools.partial(body, layout.shape),
      out_shape=[result for _, result in results],
      grid=(layout.rows // layout.block,),
      in_specs=[layout.spec(kind, array.shape[-1]) for kind, array in arguments],
      out_specs=[layout.spec(kind, result.shape[-1]) for kind, result in results],
      compiler_params=triton.CompilerParams(num_warps=layout.warps) if self.platform == "gpu" else None,
      interpret=self.interpret,
    )(*(array for _, array in arguments))

  def _run(self, body: Callable[..., None], arguments: "list[_Operand]", results: "list[_Operand]") -> list[Array]:
    """Runs a body over all tokens, on every device's own part of them."""
    local = functools.partial(_call, self, body, [a.kind for a in arguments], results)
    values = [a.value for a in arguments]
    split = split_over("batch", next(a.value.shape[0] for a in arguments if a.kind not in ("rows", "columns")))
    if not split:
      return local(*values)
    per_token, whole = PartitionSpec(split), PartitionSpec()
    specs = tuple(whole if a.kind in ("rows", "columns") else per_token for a in arguments)
    return jax.shard_map(local, in_specs=specs, out_specs=[per_token] * len(results), check_vma=False)(*values)


@dataclasses.dataclass(frozen=True)
class _Operand:
  """An array, or the shape of a result, with its kind.

  streams (*tokens, n, d), vector (*tokens, d), token (*tokens, k), factors of a matrix product (*tokens, m, k), and the
  whole (n, d, k) kernel for every instance: rows as (n·d, k), columns as (k, n·d).
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


def _call(
  kernels: Kernels, body: Callable[..., None], kinds: list[str], results: list[_Operand], *values: Array
) -> list[Array]:
  """One body over all tokens of this device."""
  leading = values[0].shape[: -2 if kinds[0] == "streams" else -1]
  shapes = [(kind, value.shape) for kind, value in zip(kinds, values, strict=True)]
  shapes += [(r.kind, r.value.shape) for r in results]
  n, d = next(shape[-2:] for kind, shape in shapes if kind == "streams")
  columns = next((shape[-1] for kind, shape in shapes if kind in ("rows", "columns")), 1)
  if 0 in leading:
    return [jnp.zeros(r.value.shape, r.value.dtype) for r in results]
  name = getattr(body, "func", body).__name__
  dtype = next(o.dtype for o in (*values, *(r.value for r in results)) if o.shape[-2:] == (n, d))
  blocks = kernels.blocks or tuning.blocks(kernels.implementation, name, n, d, dtype.name)
  layout = Layout.of(kernels.implementation, math.prod(leading), n, d, columns, blocks)
  arguments = [(kind, layout.flat(kind, value)) for kind, value in zip(kinds, values, strict=True)]
  flat_results = [
    (r.kind, jax.ShapeDtypeStruct(layout.flat_shape(r.kind, layout.width(r.kind, r.value.shape)), r.value.dtype))
    for r in results
  ]
  made = kernels.launch(body, layout, arguments, flat_results)
  return [layout.trimmed(r.kind, array, leading, r.value.shape) for r, array in zip(results, made, strict=True)]
