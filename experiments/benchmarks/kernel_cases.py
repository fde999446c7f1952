"""What the benchmark of kernels runs: operands, kernels by name, candidates for their blocks, bounds of their error."""

from collections.abc import Callable
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpmhc_jax.connections.ops import xla
from jpmhc_jax.connections.ops.base import BY_KERNELS
from jpmhc_jax.connections.ops.composed import Advanced, Flowing, Operands
from jpmhc_jax.connections.ops.pallas.layout import Layout
from jpmhc_jax.connections.ops.pallas.tuning import Blocks

EPSILON = 1e-5  # of the norm in one pass
_CANDIDATES = {  # tokens, features, warps
  "pallas_gpu": (
    *itertools.product((16, 32), (32, 64, 128), (4,)),
    (16, 128, 8), (32, 64, 8), (64, 32, 4), (64, 32, 8),
  ),
  "mosaic_gpu": tuple(itertools.product((1, 4, 16), (256, 512, 1024), (4,))),
  "pallas_tpu": tuple(itertools.product((32, 64, 128, 256), (128, 256), (4,))),
}  # fmt: skip
_ONE_PASS = {"pallas_gpu": 1024, "mosaic_gpu": 1 << 14, "pallas_tpu": 1 << 14}  # numbers of a stream at a time


@dataclasses.dataclass(frozen=True)
class Size:
  """Tokens, streams n, their width d and dtype."""

  tokens: int
  n: int
  d: int
  dtype: str

  def __str__(self) -> str:
    return f"{self.n}x{self.d} {self.dtype}"

  def operands(self) -> dict[str, Any]:
    """Streams x, x̄' (g) and x' (z) with its scales r, a vector y, coefficients H, a, W, cotangents s̄ and q̄."""
    n, d, tokens, wide = self.n, self.d, self.tokens, jnp.float32
    k = n * n + 2 * n
    shapes = {
      "x": ((tokens, n, d), self.dtype), "g": ((tokens, n, d), self.dtype), "y": ((tokens, d), self.dtype),
      "h": ((n, n, tokens), wide), "a": ((n, tokens), wide), "w": ((n, d, k), wide),
      "s": ((k, tokens), wide), "q": ((tokens,), wide), "z": ((tokens, n, d), self.dtype), "r": ((n, tokens), wide),
    }  # fmt: skip
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}


def drawn(size: Size) -> dict[str, Any]:
  """Normal operands, W as large as after an initialisation; x' and r are what one pass makes of them."""
  shapes = size.operands()
  keys = jax.random.split(jax.random.key(0), len(shapes))
  values = {
    name: jax.random.normal(key, shape.shape, shape.dtype)
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
  }
  made = jax.jit(lambda x, h, a, y, **_: xla.advance(Operands(x, h, a, y), EPSILON))(**values)
  return values | {"w": values["w"] / (size.n * size.d) ** 0.5, "z": made.streams, "r": made.scale}


KERNELS: dict[str, Callable[..., Any]] = {
  "read": lambda ops, x, a, **_: ops.read(x, a),
  "weights_backward": lambda ops, x, a, y, **_: ops.weights_backward(x, a, y),
  "mix": lambda ops, x, h, a, y, **_: ops.mix(x, h, a, y),
  "coefficients_backward": lambda ops, x, h, a, y, g, **_: ops.coefficients_backward(x, h, a, y, g),
  "statistics": lambda ops, x, w, **_: ops.statistics(x, w),
  "streams_backward": lambda ops, x, g, h, y, a, w, s, q, **_: ops.streams_backward(x, (g, h), (y, a), (w, s, q)),
  "advance": lambda ops, x, h, a, y, w, **_: tuple(ops.advance(Operands(x, h, a, y, w, a), EPSILON)),
  "advance_backward": lambda ops, x, g, h, y, a, w, s, q, z, r: ops.advance_backward(
    Operands(x, h, a, y, w, a), EPSILON, Advanced(z, r), Flowing(g, s, q, y, a)
  ),
}
_COMPOSED = ("advance", "advance_backward")  # of several kernels where one does not fit


def has(implementation: str, kernel: str, n: int) -> bool:
  """Whether it is one kernel there, with blocks of its own, for n streams."""
  ops = BY_KERNELS[implementation]
  if kernel in _COMPOSED:
    return n <= ops.most_in_one_pass
  return n <= ops.most and (implementation, kernel) != ("mosaic_gpu", "statistics")


def candidates(implementation: str, kernel: str, size: Size) -> list[Blocks]:
  """Blocks that cut this size differently; what holds without a measurement is the first.

  For one pass only the smaller ones: for an H100 and a v5e the others take minutes to compile, or more of a processor's
  own memory than it has (`--topology`).
  """
  k = size.n * size.n + 2 * size.n
  layouts = {}
  for asked in (None, *(Blocks(*fields) for fields in _CANDIDATES[implementation])):
    cut = Layout.of(implementation, size.tokens, size.n, size.d, k, asked)
    if asked is None or kernel not in _COMPOSED or cut.block * cut.shape.chunk <= _ONE_PASS[implementation]:
      layouts.setdefault(cut, Blocks(cut.block, cut.shape.chunk, cut.warps))
  return list(layouts.values())


def expected(kernel: str, operands: dict[str, Any]) -> list[np.ndarray]:
  """The formulas' results in float64, on the CPU."""
  with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
    wide = {name: jnp.asarray(np.asarray(value), jnp.float64) for name, value in operands.items()}
    made = jax.jit(lambda operands: KERNELS[kernel](xla, **operands))(wide)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(made)]


def error(kernel: str, made: Any, exact: list[np.ndarray], size: Size) -> float:
  """The largest difference over its bound; above 1 the kernel is wrong.

  Of the largest number of a result, a difference may be 2⁻⁷ where bfloat16 comes in between, which has 8 bits: in the
  result itself, or in the streams whose sums one pass makes. Else it may be 8 √(n d) 2⁻²⁴: as many roundings to float32
  in one sum add up as in a random walk, and the largest of all results is a few deviations away.
  """
  halves = size.dtype == "bfloat16" and kernel in _COMPOSED
  worst = 0.0
  for leaf, e in zip(jax.tree.leaves(made), exact, strict=True):
    bound = 2.0**-7 if halves or leaf.dtype == jnp.bfloat16 else 8 * (size.n * size.d) ** 0.5 * 2.0**-24
    difference = np.max(np.abs(np.asarray(leaf).astype(np.float64) - e)) / max(np.max(np.abs(e)), 1e-3)
    worst = max(worst, np.nan_to_num(difference, nan=np.inf) / bound)
  return float(worst)
