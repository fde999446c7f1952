"""A whole connection in both modes of differentiation, to second order, against differences in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.connections import expand
from jpmhc_jax.models.connections import hyper_connection_fn

N, D = 4, 8
FORMS = {
  "default": {},
  "identity": {"mixer": "identity"},
  "static": {"generator": "static", "init": "round_robin"},
  "gated": {"generator": "gated"},
  "layer norm": {"norm": "layernorm"},
  "norm of each stream": {"norm": "rmsnorm_per_stream"},
  "per stream": {"projection": "per_stream"},
  "segments": {"segments": 2},
}


@pytest.mark.parametrize("form", FORMS)
def test_jvp_and_the_hessian_of_a_connection_match_differences(form):
  fields = FORMS[form]
  rule = hyper_connection_fn(schema.Connection(**({"mixer": "cayley", "streams": N} | fields)), D, 0)
  with jax.enable_x64(True):
    cast = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)  # noqa: E731
    parameters = cast(rule.init(jax.random.key(0)))
    width = D // fields.get("segments", 1)
    streams = expand(jax.random.normal(jax.random.key(1), (2, 3, width), jnp.float64), N)
    streams = streams + 0.3 * jax.random.normal(jax.random.key(2), streams.shape, jnp.float64)
    point = (parameters, streams)
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(3), x.shape, x.dtype), point)
    cotangent = jax.random.normal(jax.random.key(4), streams.shape, jnp.float64)

    @jax.jit
    def derivatives(parameters, streams):
      def slope(p, x):
        value, pullback = jax.vjp(lambda p, x: rule(p, x, jnp.tanh), p, x)
        return value, pullback(cotangent)

      return jax.jvp(slope, (parameters, streams), direction)

    def moved(sign, step=1e-5):
      return derivatives(*jax.tree.map(lambda x, v: x + sign * step * v, point, direction))[0]

    (_, slope), (forward, second) = derivatives(*point)
    ahead, behind = moved(1), moved(-1)
    numeric = jax.tree.map(lambda a, b: (a - b) / 2e-5, ahead, behind)
    through_reverse = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (slope, direction)), strict=True))
    np.testing.assert_allclose(jnp.vdot(cotangent, forward), through_reverse, rtol=1e-9)
    np.testing.assert_allclose(forward, numeric[0], atol=1e-7)
    largest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(second))
    chex.assert_trees_all_close(second, numeric[1], rtol=1e-7, atol=1e-7 * largest)
