"""A derivative rule of one's own under every transformation, against the plain formula that it stands for."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.core.derivatives import custom_derivative


@functools.partial(custom_derivative, nondiff_argnums=(1,))
def ruled(x, power, y):
  return jnp.sin(x) * y**power


def _forward(x, power, y):
  return ruled(x, power, y), (x, y)


def _backward(power, saved, cotangent):
  x, y = saved
  return cotangent * jnp.cos(x) * y**power, cotangent * jnp.sin(x) * power * y ** (power - 1)


ruled.defvjp(_forward, _backward)


def plain(x, power, y):
  return jnp.sin(x) * y**power


def looped(f):
  return lambda x, y: jax.lax.scan(lambda carry, _: (f(carry, 3, y) + carry, None), x, None, length=3)[0]


TRANSFORMS = {
  "jvp": lambda f: lambda x, y: jax.jvp(f, (x, y), (y, x))[1],
  "linearize": lambda f: lambda x, y: jax.linearize(f, x, y)[1](x, y),
  "jacfwd": lambda f: jax.jacfwd(f, argnums=(0, 1)),
  "jacrev": lambda f: jax.jacrev(f, argnums=(0, 1)),
  "forward over reverse": lambda f: jax.hessian(lambda x, y: jnp.sum(f(x, y)), argnums=(0, 1)),
  "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f, argnums=(0, 1))),
  "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f, argnums=(0, 1))),
  "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f, argnums=(0, 1))),
  "third": lambda f: jax.jacfwd(jax.jacrev(jax.jacfwd(f))),
  "vmap of jvp": lambda f: jax.vmap(lambda x, y: jax.jvp(f, (x, y), (y, x))[1]),
  "vmap over one argument": lambda f: (
    lambda x, y: jax.vmap(jax.jacrev(jax.jacfwd(f, argnums=(0, 1))), in_axes=(0, None))(x, y[0])
  ),
  "recomputed": lambda f: jax.jacfwd(jax.jacrev(jax.checkpoint(f))),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transformation_sees_the_same_function(transform):
  with jax.enable_x64(True):
    x = jnp.linspace(0.1, 1.0, 2)
    y = x + 1
    transformed, expected = (jax.jit(TRANSFORMS[transform](looped(f)))(x, y) for f in (ruled, plain))
    chex.assert_trees_all_close(transformed, expected, rtol=1e-12, atol=1e-12)


def test_without_a_compiler_too():
  x = jnp.linspace(0.1, 1.0, 2)
  for transform in ("jvp", "forward over reverse", "vmap of jvp"):
    transformed, expected = (TRANSFORMS[transform](lambda x, y, f=f: f(x, 2, y))(x, x) for f in (ruled, plain))
    chex.assert_trees_all_close(transformed, expected, rtol=1e-5)


def test_reverse_mode_runs_the_backward_rule_and_keeps_what_it_saves():
  calls = []

  @custom_derivative
  def halved(x, y):
    return jnp.sin(x) * y

  def backward(saved, cotangent):
    calls.append(saved)
    return 2 * cotangent * saved, None  # not the true derivative: whoever sees it ran this rule

  halved.defvjp(lambda x, y: (halved(x, y), jnp.cos(x)), backward)
  x = jnp.ones(4)
  to_x, to_y = jax.grad(lambda x, y: jnp.sum(halved(x, y)), argnums=(0, 1))(x, x)
  np.testing.assert_allclose(to_x, 2 * jnp.cos(x))
  np.testing.assert_allclose(to_y, 0 * x)
  assert len(calls) == 1 and calls[0].shape == (4,)
  _, moved = jax.jvp(halved, (x, x), (x, x))
  np.testing.assert_allclose(moved, 2 * jnp.cos(x))  # forward mode is its transpose


def test_a_tangent_rule_is_taken_where_there_is_one():
  @custom_derivative
  def product(pair, scale=2.0):
    return {"value": scale * pair[0] * pair[1]}

  def backward(saved, cotangent):
    (a, b), scale = saved
    bar = cotangent["value"]
    return (scale * b * bar, scale * a * bar), jnp.sum(a * b * bar)

  def tangent(saved, pair, scale):
    (a, b), factor = saved
    return {"value": factor * (pair[0] * b + a * pair[1]) + scale * a * b}

  product.defvjp(lambda pair, scale: (product(pair, scale), (pair, scale)), backward, tangent)
  a, b = jnp.arange(3.0), jnp.arange(3.0) + 2
  moved = jax.jvp(product, ((a, b),), ((b, a),))[1]["value"]  # the default argument counts
  np.testing.assert_allclose(moved, 2 * (b * b + a * a))
  hessian = jax.hessian(lambda scale: jnp.sum(product((a, b), scale)["value"] ** 2))(3.0)
  np.testing.assert_allclose(hessian, 2 * jnp.sum((a * b) ** 2))
