"""Backward passes written out, against automatic differentiation of the plain formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.models.products import attend, convolve, dense, silu_gated


def _plain_attention(q, k, v):
  scores = jnp.einsum("bhtk,bhsk->bhts", q, k) / jnp.sqrt(q.shape[-1])
  return jnp.einsum("bhts,bhsk->bhtk", jax.nn.softmax(scores, axis=-1), v)


def _plain_convolution(x, kernel, stride):
  """Σ over the taps, tap by tap."""
  side, (height, width) = kernel.shape[0], x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), *((side // 2,) * 2,) * 2, (0, 0)))
  taps = [
    jnp.einsum("bhwc,ck->bhwk", padded[:, i : i + height, j : j + width], kernel[i, j])
    for i in range(side)
    for j in range(side)
  ]
  return sum(taps)[:, ::stride, ::stride]


def _convolutions(stride):
  return lambda x, kernel: convolve(x, kernel, stride), lambda x, kernel: _plain_convolution(x, kernel, stride)


CASES = {
  "dense": (dense, lambda x, w: jnp.einsum("abi,ijk->abjk", x, w), ((2, 3, 4), (4, 5, 6))),
  "dense_narrow": (dense, lambda x, w: jnp.einsum("abi,ij->abj", x, w), ((2, 3, 7), (7, 2))),
  "dense_two_axes": (
    lambda x, w: dense(x, w, 2), lambda x, w: jnp.einsum("abij,ijk->abk", x, w), ((2, 3, 4, 2), (4, 2, 5))
  ),
  "attend": (attend, _plain_attention, ((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 4))),
  "convolve": (*_convolutions(1), ((2, 5, 4, 3), (3, 3, 3, 2))),
  "convolve_by_two": (*_convolutions(2), ((2, 5, 4, 3), (3, 3, 3, 2))),
  "convolve_wide_by_two": (*_convolutions(2), ((2, 6, 7, 3), (5, 5, 3, 2))),
  "convolve_points": (*_convolutions(1), ((2, 3, 4, 3), (1, 1, 3, 2))),
  "silu_gated": (silu_gated, lambda g, u: jax.nn.silu(g) * u, ((3, 4), (3, 4))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_values_and_first_and_second_derivatives_are_those_of_the_formula(name):
  ours, plain, shapes = CASES[name]
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    arguments = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
    cotangent = jnp.asarray(rng.normal(size=jax.eval_shape(plain, *arguments).shape))

    def derivatives(function):
      def pulled(*arguments):
        out, pullback = jax.vjp(function, *arguments)
        return out, pullback(cotangent)

      (out, first), again = jax.vjp(pulled, *arguments)
      return out, first, again((out, first))

    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), jax.jit(derivatives, static_argnums=0)(ours),
      jax.jit(derivatives, static_argnums=0)(plain),
    )  # fmt: skip


def test_attention_survives_scores_that_overflow_an_exponential():
  q = jnp.asarray(np.random.default_rng(1).normal(size=(1, 1, 4, 8)), jnp.float32) * 100
  out, pullback = jax.vjp(attend, q, q, q)
  np.testing.assert_allclose(out, _plain_attention(q, q, q), rtol=1e-5)
  assert all(bool(jnp.all(jnp.isfinite(g))) for g in pullback(jnp.ones_like(out)))


def test_nothing_of_the_size_of_the_scores_is_saved():
  q = jnp.ones((1, 2, 64, 4))
  saved = jax.tree.leaves(jax.vjp(attend, q, q, q)[1])
  assert max(leaf.size for leaf in saved) == q.size
