"""Functions with a derivative rule of their own that works in reverse and in forward mode.

`jax.custom_vjp` forbids `jax.jvp`, and with it `jacfwd`, `linearize` and `hessian`. `jax.custom_jvp` lets JAX transpose
the forward rule operation by operation, which gives up a backward pass that was written by hand. `custom_derivative`
has the interface of `custom_vjp` and both modes: its tangent is a primitive that is linear in the tangents, lowered as
the forward rule and transposed as the backward rule. Reverse mode traces and keeps what it does under `custom_vjp`.

Higher derivatives are nested `jax.jvp` or `jax.grad`. `jax.experimental.jet` has no rule for functions with a
derivative rule of their own: in jax 0.10 and 0.12 it fails on any `jax.custom_jvp`, and so on these. Mixers without
one take it: identity, unconstrained, permutation, circulant, kronecker and quaternion.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import inspect
from typing import Any, cast, Generic, ParamSpec, TypeVar

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class custom_derivative(Generic[_Arguments, _Result]):  # noqa: N801, beside jax.custom_vjp
  """A function f(*primals) whose derivative is given by a backward rule, usable in both modes and at any order.

  `defvjp(forward, backward, tangent=None)` takes what `jax.custom_vjp.defvjp` takes:

      forward(*arguments)                       -> (f(*arguments), saved)
      backward(*nondiff, saved, cotangents)     -> a cotangent for each differentiable argument; None for zero
      tangent(*nondiff, saved, *tangents)       -> the tangent of the result, linear in the tangents

  Without `tangent`, the forward derivative is the transpose of `backward`, which must then be linear in the cotangents
  and made of operations that JAX can transpose. The rules must be differentiable themselves where a second derivative
  is asked for, and may close over no traced values. `nondiff_argnums` are static: hashable and no arrays.
  """

  def __init__(self, function: Callable[_Arguments, _Result], nondiff_argnums: Sequence[int] = ()):
    functools.update_wrapper(self, function)
    self._signature = inspect.signature(function)
    self._nondiff = tuple(nondiff_argnums)
    self._call = jax.custom_jvp(function, nondiff_argnums=self._nondiff)

  def __call__(self, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
    bound = self._signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return cast(_Result, self._call(*bound.args))

  def defvjp(
    self, forward: Callable[..., Any], backward: Callable[..., Any], tangent: Callable[..., Any] | None = None
  ) -> None:
    """Defines the derivative; see the class."""

    def rule(*arguments: Any) -> tuple[Any, Any]:
      *static, primals, tangents = arguments
      result, saved = forward(*self._merged(static, primals))
      residuals, residual_tree = jax.tree.flatten(saved)
      linear, linear_tree = jax.tree.flatten(tangents)
      outputs, output_tree = jax.tree.flatten(result)

      def pull(residuals: Sequence[Any], cotangents: Sequence[Any]) -> list[Array]:
        trees = backward(
          *static, jax.tree.unflatten(residual_tree, residuals), jax.tree.unflatten(output_tree, cotangents)
        )
        return jax.tree.leaves(jax.tree.map(_or_zero, tangents_like, tuple(trees)))

      def push(residuals: Sequence[Any], tangents: Sequence[Any]) -> list[Array]:
        if tangent is None:
          # The derivative of a linear map is the map, so that its own backward pass is the transpose, at any point.
          anywhere = [jnp.zeros(o.shape, o.dtype) for o in outputs_like]
          return jax.vjp(lambda bars: pull(residuals, bars), anywhere)[1](list(tangents))[0]
        saved = jax.tree.unflatten(residual_tree, residuals)
        moved = tangent(*static, saved, *jax.tree.unflatten(linear_tree, tangents))
        return jax.tree.leaves(jax.tree.map(_or_zero, jax.tree.unflatten(output_tree, outputs_like), moved))

      outputs_like = [_like(o) for o in outputs]
      tangents_like = jax.tree.map(_like, tangents)
      moved = _linear.bind(*residuals, *linear, rule=_Rule(push, pull, tuple(outputs_like), len(residuals)))
      return result, jax.tree.unflatten(output_tree, moved)

    self._call.defjvp(rule)

  def _merged(self, static: Sequence[Any], primals: Sequence[Any]) -> list[Any]:
    rest, fixed = iter(primals), dict(zip(self._nondiff, static, strict=True))
    return [fixed[i] if i in fixed else next(rest) for i in range(len(static) + len(primals))]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def valued(formula: Callable[..., Any], value: Any, *arguments: Any) -> Any:
  """`value`, to be differentiated as formula(*arguments), which it equals: a kernel has run in place of the formula."""
  return value


@valued.defjvp
def _valued_jvp(formula: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
  return valued(formula, *primals), jax.jvp(formula, tuple(primals[1:]), tuple(tangents[1:]))[1]


def _like(x: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))


def _or_zero(like: jax.ShapeDtypeStruct, x: Any) -> Any:
  return jnp.zeros(like.shape, like.dtype) if x is None else x


@dataclasses.dataclass(frozen=True, eq=False)
class _Rule:
  """A linear map of `_linear`: push(residuals, tangents), its transpose pull(residuals, cotangents), results."""

  push: Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]
  pull: Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]
  outputs: tuple[jax.ShapeDtypeStruct, ...]
  residuals: int

  def apply(self, *arguments: Any) -> Sequence[Any]:
    return self.push(arguments[: self.residuals], arguments[self.residuals :])


_linear = Primitive("linear_with_transpose")
_linear.multiple_results = True


@_linear.def_impl
def _apply(*arguments: Any, rule: _Rule) -> Sequence[Any]:
  return rule.apply(*arguments)


@_linear.def_abstract_eval
def _results(*arguments: Any, rule: _Rule) -> list[jax.core.ShapedArray]:
  return [jax.core.ShapedArray(o.shape, o.dtype) for o in rule.outputs]


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, rule: _Rule) -> tuple[Sequence[Any], Sequence[Any]]:
  """Linear in the last arguments; the derivative by a residual goes through the operations of the forward rule."""
  residuals, linear = primals[: rule.residuals], primals[rule.residuals :]
  result = _linear.bind(*primals, rule=rule)
  terms = []
  if not all(isinstance(t, ad.Zero) for t in tangents[rule.residuals :]):
    terms.append(_linear.bind(*residuals, *map(ad.instantiate_zeros, tangents[rule.residuals :]), rule=rule))
  varied = [i for i, t in enumerate(tangents[: rule.residuals]) if not isinstance(t, ad.Zero)]
  if varied:

    def of_residuals(*values: Array) -> Sequence[Any]:
      replaced = dict(zip(varied, values, strict=True))
      return rule.push([replaced.get(i, r) for i, r in enumerate(residuals)], linear)

    terms.append(jax.jvp(of_residuals, [residuals[i] for i in varied], [tangents[i] for i in varied])[1])
  return result, [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]


def _transpose(cotangents: Sequence[Any], *arguments: Any, rule: _Rule) -> list[Any]:
  """The backward rule, as operations: further derivatives differentiate these, as they do under `custom_vjp`."""
  linear = arguments[rule.residuals :]
  bars = rule.pull(arguments[: rule.residuals], [ad.instantiate_zeros(c) for c in cotangents])
  return [None] * rule.residuals + [
    bar if ad.is_undefined_primal(x) else None for bar, x in zip(bars, linear, strict=True)
  ]


def _batch(arguments: Sequence[Any], axes: Sequence[int | None], *, rule: _Rule) -> tuple[Sequence[Any], list[int]]:
  """Every tangent is batched, a residual only where it is."""
  size = next(x.shape[a] for x, a in zip(arguments, axes, strict=True) if a is not None)

  def in_front(i: int, x: Any, axis: int | None) -> Any:
    if axis is not None:
      return jnp.moveaxis(x, axis, 0)
    return x if i < rule.residuals else jnp.broadcast_to(x, (size, *x.shape))

  over = ([None if a is None else 0 for a in axes[: rule.residuals]], 0)
  batched = _Rule(
    lambda residuals, tangents: jax.vmap(rule.push, over, axis_size=size)(list(residuals), list(tangents)),
    lambda residuals, cotangents: jax.vmap(rule.pull, over, axis_size=size)(list(residuals), list(cotangents)),
    tuple(jax.ShapeDtypeStruct((size, *o.shape), o.dtype) for o in rule.outputs),
    rule.residuals,
  )
  moved = [in_front(i, x, a) for i, (x, a) in enumerate(zip(arguments, axes, strict=True))]
  return _linear.bind(*moved, rule=batched), [0] * len(rule.outputs)


ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_apply, multiple_results=True))
