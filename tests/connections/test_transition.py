"""Another number of streams: orthonormal, nearest the identity at the start; streams that begin from several inputs."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.connections import StreamSources, StreamSourcesFn, StreamTransition, StreamTransitionFn
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.manifolds import MANIFOLDS


@pytest.mark.parametrize(("n", "m"), [(2, 3), (2, 4), (1, 3), (4, 2), (3, 1)])
def test_a_transition_starts_as_the_identity_does_and_is_orthonormal(n, m):
  """Equal streams go on as copies; differences from the mean are kept, and for m > n the mean square of all."""
  rule = StreamTransitionFn(inputs=n, outputs=m)
  frame = np.asarray(rule.init()["frame"], np.float64)
  np.testing.assert_allclose(frame.T @ frame, np.eye(min(n, m)), atol=1e-6)
  x = np.random.default_rng(0).normal(size=(5, n, 3))
  out = np.asarray(rule(rule.init(), jnp.asarray(x, jnp.float32)))
  assert out.shape == (5, m, 3)
  few, whole = x[:, : min(n, m)].mean(1, keepdims=True), x.mean(1, keepdims=True)
  expected = np.broadcast_to(whole, out.shape).copy()
  expected[:, : min(n, m)] += np.sqrt(m / n) * (x[:, : min(n, m)] - few)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  if m > n:
    np.testing.assert_allclose((out**2).mean((1, 2)), (x**2).mean((1, 2)), rtol=1e-5)


def test_as_many_streams_pass_as_they_are():
  transition = StreamTransition(StreamTransitionFn(inputs=3, outputs=3))
  streams = jnp.ones((2, 3, 4))
  assert transition(streams) is streams
  assert not jax.tree.leaves(nnx.state(transition))
  np.testing.assert_array_equal(transition.rule.matrix({}), np.eye(3))


def test_a_transition_learns_on_its_manifold():
  transition = StreamTransition(StreamTransitionFn(inputs=2, outputs=4))
  leaf = transition.frame
  _, _, manifold = leaf.get_metadata("role").partition(":")
  manifold, weights = MANIFOLDS[manifold], jax.random.normal(jax.random.key(1), (4, 5))
  gradient = jax.grad(lambda q: jnp.sum(weights * transition.rule({"frame": q}, jnp.arange(10.0).reshape(2, 5))))(
    leaf[...]
  )
  assert float(jnp.max(jnp.abs(gradient))) > 0.1
  step = manifold.retract(leaf[...], -0.01 * manifold.gradient(leaf[...], gradient))
  assert float(manifold.distance(step)) < 1e-5 and float(jnp.max(jnp.abs(step - leaf[...]))) > 1e-3


def test_streams_begin_from_their_inputs_in_turn():
  rng, module = np.random.default_rng(0), StreamSources(
    StreamSourcesFn(widths=(2, 3), streams=3, width=4), rngs=nnx.Rngs(0)
  )  # fmt: skip
  inputs = [rng.normal(size=(5, width)) for width in (2, 3)]
  first, second = (np.asarray(module.kernels0[...]), np.asarray(module.kernels1[...]))
  expected = np.stack([inputs[0] @ first[0], inputs[1] @ second[0], inputs[0] @ first[1]], axis=1)
  np.testing.assert_allclose(module([jnp.asarray(u, jnp.float32) for u in inputs]), expected, rtol=1e-4, atol=1e-5)
  assert {leaf.get_metadata("role") for leaf in (module.kernels0, module.kernels1)} == {"trunk"}


def test_mistakes_are_named():
  with pytest.raises(ConfigError, match="outputs=0: expected"):
    StreamTransitionFn(inputs=2, outputs=0)
  with pytest.raises(ConfigError, match="1 to streams=1 inputs"):
    StreamSourcesFn(widths=(2, 3), streams=1, width=4)
  rule = StreamTransitionFn(inputs=2, outputs=3)
  with pytest.raises(ValueError, match="expected .*n=2, d"):
    rule(rule.init(), jnp.ones((5, 3, 4)))
  sources = StreamSourcesFn(widths=(2,), streams=1, width=4)
  with pytest.raises(ValueError, match="inputs of widths .3,.: expected .2,."):
    sources(sources.init(jax.random.key(0)), [jnp.ones((5, 3))])
