"""The fused operators against the plain formulas: values, gradients in float64, static coefficients, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.connections import mix_and_write, read, write

TOKENS, N, D = (2, 3), 4, 5


def _plain_read(x, a):
  return jnp.sum(
    jnp.moveaxis(jnp.broadcast_to(a.reshape(N, *_free(a, 1)), (N, *TOKENS)), 0, -1)[..., None] * x, axis=-2
  )


def _plain_mix(x, h, b, y):
  h = jnp.moveaxis(jnp.broadcast_to(h.reshape(N, N, *_free(h, 2)), (N, N, *TOKENS)), (0, 1), (-2, -1))
  b = jnp.moveaxis(jnp.broadcast_to(b.reshape(N, *_free(b, 1)), (N, *TOKENS)), 0, -1)
  return jnp.matmul(h, x) + b[..., None] * y[..., None, :]


def _free(coefficient, axes):
  return TOKENS if coefficient.ndim > axes else (1,) * len(TOKENS)


def _value_and_pullback(function, arguments, cotangent):
  def both(arguments, cotangent):
    value, pullback = jax.vjp(function, *arguments)
    return value, pullback(cotangent)

  return jax.jit(both)(arguments, cotangent)


def _inputs(static, dtype, d=D):
  rng = np.random.default_rng(0)
  free = () if static else TOKENS
  shapes = ((*TOKENS, N, d), (N, N, *free), (N, *free), (*TOKENS, d))
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes], rng


# Widths at which the gradient of a mixer is summed by a product, in lanes of 8 and in lanes of 16.
@pytest.mark.parametrize("d", [D, 64, 576])
@pytest.mark.parametrize("static", [False, True], ids=["per_token", "static"])
def test_fused_operators_equal_the_formulas_with_every_gradient(static, d):
  with jax.enable_x64(True):
    (x, h, b, y), rng = _inputs(static, jnp.float64, d)
    cases = (
      (read, _plain_read, (x, b)),
      (mix_and_write, _plain_mix, (x, h, b, y)),
      (write, lambda x, b, y: _plain_mix(x, jnp.eye(N, dtype=x.dtype), b, y), (x, b, y)),
    )
    for fused, plain, arguments in cases:
      cotangent = jnp.asarray(rng.normal(size=jax.eval_shape(fused, *arguments).shape))
      out, gradients = _value_and_pullback(fused, arguments, cotangent)
      expected, expected_gradients = _value_and_pullback(plain, arguments, cotangent)
      np.testing.assert_allclose(out, expected, atol=1e-13)
      for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-12)


def test_the_mixer_is_not_transposed():
  """out[i] = Σ_j H[i, j] x[j]: a matrix that moves stream 1 to stream 0 puts x[1] there."""
  h = jnp.zeros((N, N)).at[0, 1].set(1.0)
  x = jnp.arange(N, dtype=jnp.float32)[:, None]
  out = mix_and_write(x, h, jnp.zeros(N), jnp.zeros(1))
  np.testing.assert_array_equal(out[:, 0], [1, 0, 0, 0])


def test_bfloat16_streams_are_mixed_in_float32():
  (x, h, b, y), _ = _inputs(False, jnp.float32)
  half = (x.astype(jnp.bfloat16), h, b, y.astype(jnp.bfloat16))
  out, pullback = jax.vjp(mix_and_write, *half)
  assert out.dtype == jnp.bfloat16
  exact = _plain_mix(half[0].astype(jnp.float32), h, b, half[3].astype(jnp.float32))
  np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8)
  assert [g.dtype for g in pullback(out)] == [jnp.bfloat16, jnp.float32, jnp.float32, jnp.bfloat16]


def test_a_second_derivative_exists():
  """Measured Jacobian spectra push vectors forward through the reverse pass."""
  (x, h, b, y), _ = _inputs(False, jnp.float32)

  def pulled(v):
    return jax.vjp(lambda x: mix_and_write(x, h, b, y), x)[1](v)[0]

  forward = jax.vjp(pulled, jnp.zeros_like(x))[1](x)[0]
  np.testing.assert_allclose(forward, _plain_mix(x, h, b, jnp.zeros_like(y)), atol=1e-5)
