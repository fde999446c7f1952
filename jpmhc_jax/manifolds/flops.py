"""Exact operation counts of a small pure function, read off its traced program.

One add, subtract, multiply, divide, comparison of two floats (min, max), square root, exponential, logarithm or sigmoid
counts 1; a reduction of k values counts k − 1; a contraction counts one multiply and one add a product; loops count
their trips. Moving, selecting, casting, negating and integer arithmetic count 0. Compilers may share or fuse
operations: the count is of the program as written.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

_ELEMENTWISE = frozenset((
  "add", "sub", "mul", "div", "max", "min", "exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt", "logistic", "tanh",
  "square", "integer_pow", "pow", "atan2", "sin", "cos", "add_any", "rem", "erf", "tan", "cbrt", "cumsum",
))  # fmt: skip
_REDUCTIONS = frozenset(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"))


def count(function: Callable[..., Any], *arguments: Any) -> int:
  """Floating-point operations of function(*arguments); arguments may be jax.ShapeDtypeStruct."""
  return _count_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def forward_and_backward(function: Callable[[Array], Array], shape: tuple[int, ...]) -> tuple[int, int]:
  """Operations of function and of its vector-Jacobian product alone, for one float32 argument of the given shape."""
  argument = jax.ShapeDtypeStruct(shape, jnp.float32)
  forward = count(function, argument)
  cotangent = jax.eval_shape(function, argument)
  both = count(lambda x, g: jax.vjp(function, x)[1](g), argument, cotangent)
  return forward, both - forward


def _count_jaxpr(jaxpr: Any) -> int:
  return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "scan":
    return params["length"] * _count_jaxpr(params["jaxpr"].jaxpr)
  if name == "while":
    raise ValueError("flops: a while loop has no static trip count; use scan or fori_loop with constant bounds.")
  if name == "cond":
    return max(_count_jaxpr(branch.jaxpr) for branch in params["branches"])
  inner = [value for value in params.values() if hasattr(value, "jaxpr") or hasattr(value, "eqns")]
  if inner:
    return sum(_count_jaxpr(getattr(value, "jaxpr", value)) for value in inner)
  out = equation.outvars[0].aval
  if not equation.invars or not jnp.issubdtype(equation.invars[0].aval.dtype, jnp.inexact):
    return 0
  if name in _ELEMENTWISE:
    return math.prod(out.shape)
  if name in _REDUCTIONS:
    return math.prod(equation.invars[0].aval.shape) - math.prod(out.shape)
  if name == "dot_general":
    (contracting, _), _ = params["dimension_numbers"]
    return 2 * math.prod(out.shape) * math.prod(equation.invars[0].aval.shape[axis] for axis in contracting)
  return 0
