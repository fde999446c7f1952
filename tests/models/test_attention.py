"""Fused attention against the formulas: rules of differentiation, padding, meshes, the kernels of both platforms."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.core import sharding
from jpmhc_jax.models import attention, products
from jpmhc_jax.models.attention import attend, Fused
from jpmhc_jax.models.products import SAVED
from jpmhc_jax.training.mesh import make_mesh

CHECK = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
LENGTH = 5  # a multiple of neither 2 nor 128


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


@pytest.mark.parametrize(("platform", "causal"), [("gpu", False), ("tpu", True)])
def test_a_kernel_has_every_derivative_of_the_formula(platform, causal, fused):
  with jax.enable_x64(True):
    *parts, cotangent = _drawn(LENGTH, jnp.float64)
    plain = _derivatives(functools.partial(attend, implementation="xla"), causal, cotangent)(*parts)
    fused(platform)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), _derivatives(attend, causal, cotangent)(*parts), plain
    )


def test_every_device_of_a_mesh_runs_the_kernel_on_its_own_rows_and_heads(fused):
  mesh = make_mesh(schema.Mesh(data=2, fsdp=2, tensor=2), jax.devices())
  *parts, cotangent = _drawn(LENGTH, jnp.float32, batch=4)

  def both(*parts):
    out, pullback = jax.vjp(attend, *parts)
    return out, pullback(cotangent)

  plain = both(*parts)
  shapes = []

  class Noted(Fake):
    def _splash(self, query, key, value):
      shapes.append(query.shape)
      return super()._splash(query, key, value)

  fused("tpu", Noted)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    split = jax.jit(both)(*jax.device_put(parts, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))))
  assert set(shapes) == {(1, 1, 128, 8)}
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), split, plain)


@pytest.mark.parametrize("causal", [False, True])
def test_the_backward_pass_keeps_the_kernel_s_arguments_its_result_and_one_number_a_row(causal):
  """Under the policy 'products' too, which runs no kernel twice."""
  parts = _drawn(256, jnp.bfloat16)[:3]
  kernel = Fused("tpu", 256, causal)
  saved = jax.make_jaxpr(lambda *parts: jax.tree.leaves(jax.vjp(kernel, *parts)[1]))(*parts).jaxpr.outvars
  large = {id(variable) for variable in saved if variable.aval.size > parts[0].size // 8}
  assert len(large) == 4 and sum(v.aval.size == parts[0].size // 8 for v in saved) == 1

  def loss(*parts):
    return jnp.sum(products.kept(kernel(*parts)).astype(jnp.float32))

  text = str(jax.make_jaxpr(jax.grad(jax.checkpoint(loss, policy=SAVED["products"]), (0, 1, 2)))(*parts))
  assert len(re.findall(r"pallas_call\[", text)) == 3  # forward; keys and values; queries


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_of_tpus_equals_the_formula_to_the_rounding_of_bfloat16(causal, monkeypatch):
  """Over several blocks and padding, forward and backward."""
  monkeypatch.setattr(attention, "_BLOCK", 128)
  length = 150
  *parts, cotangent = _drawn(length, jnp.bfloat16, batch=1)
  kernel = Fused("tpu", length, causal, interpret=True)

  def both(function, *parts):
    out, pullback = jax.vjp(function, *parts)
    return out, *pullback(cotangent.astype(out.dtype))

  def fused(query, key, value):
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    return kernel(scaled, key, value)

  exact = both(functools.partial(attend, causal=causal), *(part.astype(jnp.float32) for part in parts))
  for ours, formula, true in zip(
    jax.jit(functools.partial(both, fused))(*parts), both(functools.partial(attend, causal=causal), *parts), exact,
    strict=True,
  ):  # fmt: skip
    size = np.linalg.norm(true)
    assert np.linalg.norm(np.float32(ours) - true) / size < 2**-8
    assert np.linalg.norm(np.float32(ours) - np.float32(formula)) / size < 2**-7


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_formula_is_that_of_jax(dtype, causal):
  *parts, cotangent = _drawn(7, jnp.dtype(dtype))

  def both(function):
    out, pullback = jax.vjp(function, *parts)
    return out, pullback(cotangent)

  theirs = functools.partial(jax.nn.dot_product_attention, is_causal=causal, implementation="xla")
  epsilon = float(jnp.finfo(dtype).eps)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), atol=8 * epsilon),
    both(functools.partial(attend, causal=causal)), both(theirs),
  )  # fmt: skip


@pytest.mark.parametrize(("platform", "length"), [("gpu", 6), ("gpu", 5), ("tpu", 5)])
def test_a_step_for_an_accelerator_calls_its_kernel(platform, length, monkeypatch):
  """Lowered without such a device, its compiler or its libraries."""
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  monkeypatch.setattr(CHECK, lambda: 91000)
  parts = _drawn(length, jnp.bfloat16)[:3]
  for implementation in ("auto", "xla"):

    def loss(*parts, implementation=implementation):
      return jnp.sum(attend(*parts, implementation=implementation).astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*parts)
    text = traced.lower(lowering_platforms=("cuda" if platform == "gpu" else "tpu",)).as_text()
    names = {"gpu": ("@__cudnn$fmhaSoftmax(", "@__cudnn$fmhaSoftmaxBackward("), "tpu": ("@tpu_custom_call",)}
    assert all((name in text) == (implementation == "auto") for name in names[platform])
    if (platform, implementation) == ("gpu", "auto"):
      assert ("PADDING" in text) == (length % 2 == 1)


def test_where_no_kernel_serves_the_reason_is_said(monkeypatch):
  attention._refusal_of_cudnn.cache_clear()
  monkeypatch.setattr(CHECK, lambda: 91000)
  half, model = jnp.dtype("bfloat16"), schema.Model(width=128, heads=2)
  assert "no fused kernel for a cpu" in attention.refusal("cpu", 64, half)
  assert "not float32" in attention.refusal("gpu", 64, jnp.dtype("float32"))
  assert "not float16" in attention.refusal("tpu", 64, jnp.dtype("float16"))
  assert "multiple of 8" in attention.refusal("gpu", 12, half)
  assert "cuDNN" in attention.method(model, half, "gpu") and "splash" in attention.method(model, half, "tpu")
  assert "not float32" in attention.method(model, jnp.dtype("float32"), "gpu")
  assert "model.attention=xla" in attention.method(dataclasses.replace(model, attention="xla"), half, "gpu")
  attention._refusal_of_cudnn.cache_clear()
