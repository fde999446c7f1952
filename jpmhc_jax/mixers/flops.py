"""Exact operation counts of a small pure function, read off its traced program.

One add, subtract, multiply, divide, comparison of two floats (min, max), square root, exponential, logarithm or sigmoid
counts 1; a reduction of k values counts k − 1; a contraction counts one multiply and one add a product; loops count
their trips, one that may end early its largest number of them, and a condition its dearer branch. Moving, selecting,
casting, negating and integer arithmetic count 0. Compilers may share or fuse operations: the count is of the program as
written.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

__all__ = ["count", "forward_and_backward"]

_ELEMENTWISE = frozenset((
  "add", "sub", "mul", "div", "max", "min", "exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt", "logistic", "tanh",
  "square", "integer_pow", "pow", "atan2", "sin", "cos", "add_any", "rem", "erf", "tan", "cbrt", "cumsum",
))  # fmt: skip
_REDUCTIONS = frozenset(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"))


def count(function: Callable[..., Any], *arguments: Any, products_only: bool = False) -> int:
  """Floating-point operations of function(*arguments); arguments may be jax.ShapeDtypeStruct.

  products_only: only contractions and convolutions, the work of a matrix unit. Then a while loop, whose trips nobody
  knows, counts one; else it raises ValueError. A Pallas kernel runs once a grid point, a shard_map once a
  share of its arguments: what several devices repeat on the same share counts once.
  """
  return _count_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr, products_only)


def forward_and_backward(function: Callable[[Array], Array], shape: tuple[int, ...]) -> tuple[int, int]:
  """Operations of function and of its vector-Jacobian product alone, for one float32 argument of the given shape."""
  argument = jax.ShapeDtypeStruct(shape, jnp.float32)
  forward = count(function, argument)
  cotangent = jax.eval_shape(function, argument)
  both = count(lambda x, g: jax.vjp(function, x)[1](g), argument, cotangent)
  return forward, both - forward


def _count_jaxpr(jaxpr: Any, products_only: bool = False) -> int:
  return sum(_count_equation(equation, products_only) for equation in jaxpr.eqns)


def _repeats(name: str, params: Any, products_only: bool) -> int:
  if name == "pallas_call":
    return math.prod(params["grid_mapping"].grid)
  if name == "shard_map":
    entries = (entry for spec in params["in_specs"] for entry in spec if entry is not None)
    axes = {axis for entry in entries for axis in (entry if isinstance(entry, tuple) else (entry,))}
    return math.prod(params["mesh"].shape[axis] for axis in axes)
  if name == "while":
    return _bound(params["cond_jaxpr"].jaxpr, products_only)
  return params["length"] if name == "scan" else 1


def _bound(condition: Any, products_only: bool) -> int:
  """The literal that the condition of a while loop compares its counter with; one trip if only products count."""
  for equation in condition.eqns:
    value = np.asarray(getattr(equation.invars[-1], "val", None))  # a literal's value; None for a variable
    if equation.primitive.name == "lt" and np.issubdtype(value.dtype, np.integer):
      return int(value)
  if products_only:
    return 1
  raise ValueError("flops: a while loop has no bound on its trips; compare a counter with a constant.")


def _count_equation(equation: Any, products_only: bool) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "cond":
    return max(_count_jaxpr(branch.jaxpr, products_only) for branch in params["branches"])
  inner = [value for value in params.values() if hasattr(value, "jaxpr") or hasattr(value, "eqns")]
  if inner:
    repeats = _repeats(name, params, products_only)
    return repeats * sum(_count_jaxpr(getattr(value, "jaxpr", value), products_only) for value in inner)
  out = equation.outvars[0].aval
  if not equation.invars or not jnp.issubdtype(equation.invars[0].aval.dtype, jnp.inexact):
    return 0
  if name == "dot_general":
    (contracting, _), _ = params["dimension_numbers"]
    return int(2 * math.prod(out.shape) * math.prod(equation.invars[0].aval.shape[axis] for axis in contracting))
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval.shape
    return int(2 * math.prod(out.shape) * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]])
  if name in _ELEMENTWISE and not products_only:
    return math.prod(out.shape)
  if name in _REDUCTIONS and not products_only:
    return int(math.prod(equation.invars[0].aval.shape) - math.prod(out.shape))
  return 0
