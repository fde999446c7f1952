"""Fused attention against the formulas: rules of differentiation, padding, meshes, and the kernels of both platforms."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jpmhc_jax.config import schema
from jpmhc_jax.core import sharding
from jpmhc_jax.models import attention, products
from jpmhc_jax.models.attention import attend, Fused
from jpmhc_jax.training.mesh import make_mesh

LENGTH = 5  # a multiple of neither 2 nor 128
CUDNN = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"


def _drawn(length, dtype, batch=2, heads=2, head=8):
  rng = np.random.default_rng(length)
  return [jnp.asarray(rng.normal(size=(batch, length, heads, head)), dtype) for _ in range(4)]


@jax.custom_jvp
def _once(parts):
  return parts


@_once.defjvp
def _refused(primals, tangents):
  raise NotImplementedError("a kernel is differentiated that has a backward pass only")


def _plain(query, key, value, causal):
  scores = jnp.einsum("bthk,bshk->bhts", query, key)
  hidden = jnp.tril(jnp.ones(scores.shape[-2:])) == 0 if causal else jnp.arange(scores.shape[-1])[None] >= LENGTH
  return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(jnp.where(hidden[None, None], -jnp.inf, scores), axis=-1), value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _kernel(query, key, value, causal):
  """A kernel as JAX's are: for scaled queries, without forward mode and without a second derivative."""
  return _plain(*_once((query, key, value)), causal)


_kernel.defvjp(
  lambda *arguments: (_kernel(*arguments), _once(arguments[:3])),
  lambda causal, parts, cotangent: jax.vjp(functools.partial(_plain, causal=causal), *_once(parts))[1](cotangent),
)


class Fake(Fused):
  """The class of the kernels around one that runs anywhere and fast."""

  def _cudnn(self, query, key, value):
    return _kernel(query, key, value, self.causal)

  def _splash(self, query, key, value):
    return jnp.swapaxes(_kernel(*(jnp.swapaxes(part, 1, 2) for part in (query, key, value)), self.causal), 1, 2)


@pytest.fixture
def fused(monkeypatch):
  """Makes `attend` take the fake kernel of a platform."""

  def on(platform, kernel=Fake):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    monkeypatch.setattr(attention, "refusal", lambda *arguments: "")
    monkeypatch.setattr(attention, "Fused", kernel)

  return on


def _derivatives(function, causal, cotangent):
  """Value, tangent, first and second derivatives."""
  function = functools.partial(function, causal=causal)

  def pulled(*parts):
    out, pullback = jax.vjp(function, *parts)
    return out, pullback(cotangent)

  def all_of(*parts):
    first, again = jax.vjp(pulled, *parts)
    over = jax.vmap(lambda part: jax.grad(lambda p: jnp.sum(function(p[None], *(x[:1] for x in parts[1:])) ** 2))(part))
    return first, again(first), jax.jvp(function, parts, parts), jax.jvp(pulled, parts, parts), over(parts[0])

  return jax.jit(all_of)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_kernel_has_every_derivative_of_the_formula(platform, causal, fused):
  with jax.enable_x64(True):
    *parts, cotangent = _drawn(LENGTH, jnp.float64)
    plain = _derivatives(functools.partial(attend, implementation="xla"), causal, cotangent)(*parts)
    fused(platform)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), _derivatives(attend, causal, cotangent)(*parts), plain
    )
