"""What the CPU's compiler makes of a connection: arrays in memory, and the arithmetic of bf16 streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.connections.ops import contractions
from jpmhc_jax.models.connections import hyper_connection_fn

FORMS = {
  "dynamic": {},
  "static": {"generator": "static"},
  "identity": {"mixer": "identity"},
  "layernorm": {"norm": "layernorm"},
  "per_stream": {"projection": "per_stream", "mixer": "sinkhorn"},
  "stored": {"parameterisation": "manifold"},
  "segments": {"segments": 2},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_no_intermediate_is_as_large_as_the_streams(form, dtype):
  """Forward and backward, whose results are such arrays; compilers before jax 0.12 remove the barriers it needs."""
  if jax.__version_info__ < (0, 12):
    pytest.skip(f"the CPU's compiler of jax {jax.__version__} ignores barriers")
  config = schema.Connection(streams=8, init="random", **FORMS[form])
  rule = hyper_connection_fn(config, 512 * config.segments, 0)
  parameters = rule.init(jax.random.key(0))
  streams = jax.ShapeDtypeStruct((4096, 8, rule.stream_width), dtype)

  @jax.jit
  def both(parameters, x, cotangent):
    value, pullback = jax.vjp(lambda p, x: rule(p, x, jnp.tanh), parameters, x)
    return value, pullback(cotangent)

  temporaries = both.lower(parameters, streams, streams).compile().memory_analysis().temp_size_in_bytes
  assert temporaries < streams.size * streams.dtype.itemsize


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_products_of_bfloat16_streams_are_as_exact_as_float32(scale):
  """By parts of the coefficients: a product that rounded them would be off by 2⁻⁸."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(40, 96)), jnp.bfloat16)
  coefficients, rows = (jnp.asarray(scale * rng.normal(size=s), jnp.float32) for s in ((96, 24), (24, 40)))
  exact = np.asarray(x, np.float64)
  for found, expected in (
    (contractions.rows_times(x, coefficients), exact @ np.asarray(coefficients, np.float64)),
    (contractions.times_rows(rows, x), np.asarray(rows, np.float64) @ exact),
  ):
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max(), rtol=0)


def test_a_product_as_large_as_the_streams_is_rounded_once():
  rng = np.random.default_rng(0)
  rows, columns = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((40, 24), (24, 96)))
  expected = np.asarray(rows, np.float64) @ np.asarray(columns, np.float64)
  assert contractions.product(rows, columns, jnp.dtype("float32")).dtype == jnp.float32
  rounded = contractions.product(rows, columns, jnp.dtype("bfloat16"))
  assert rounded.dtype == jnp.bfloat16
  off = np.abs(rounded.astype(jnp.float32) - expected)
  assert np.all(off <= 2.0**-8 * np.abs(expected) + 2.0**-15 * np.abs(expected).max())
