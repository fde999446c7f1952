"""Kernels in interpret mode and formulas by stream against those in plain JAX in float64; kernels lowered, too."""

import contextlib
import dataclasses
import functools
import itertools
import re
import warnings

import chex
from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from jpmhc_jax.config import schema
from jpmhc_jax.connections import generator, HyperConnection
from jpmhc_jax.connections.ops import base, fused_streams, vjp, xla, xla_tpu
from jpmhc_jax.connections.ops.pallas import Kernels, MosaicGpu
from jpmhc_jax.connections.ops.pallas.layout import Layout
from jpmhc_jax.core import sharding
from jpmhc_jax.models.connections import hyper_connection_fn

PLATFORMS = ("gpu", "tpu")
OPERATORS = (*PLATFORMS, "by_stream")
NAMES = ("streams", "mixer", "read", "write", "output", "kernel")


def _operators(name):
  others = {"by_stream": xla_tpu, "mosaic_gpu": MosaicGpu(interpret=True)}
  return others[name] if name in others else Kernels(name, interpret=True)


def _inputs(tokens, n=3, d=37, k=9, static=False):
  """Float64 arguments with a token of zeros; mixers and weights without token axes when static."""
  rng = np.random.default_rng(0)
  free = () if static else tokens
  shapes = ((*tokens, n, d), (n, n, *free), (n, *free), (n, *free), (*tokens, d), (n, d, k))
  values = [rng.normal(size=shape) for shape in shapes]
  values[0][(0,) * len(tokens)] = 0.0
  return values


def _stage(operators, entered=False):
  """The three operators on the same streams, which are fused or go into each alone."""

  def stage(x, mixer, read, write, y, kernel):
    terms = fused_streams.Terms(read=True, mix=True, kernel_shape=kernel.shape)
    x = fused_streams.enter(x, terms, operators) if entered else x
    products, square = vjp.statistics(x, kernel, operators)
    u = vjp.read(x, read, operators)
    return vjp.mix_and_write(x, mixer, write, y + u, operators), products, square, u

  return stage


def _values_and_gradients(operators, arguments, dtype, used=(1, 1, 1, 1), entered=False):
  arguments = [jnp.asarray(a, dtype) for a in arguments]  # None: as they are

  @jax.jit
  def both(arguments):
    out, pullback = jax.vjp(_stage(operators, entered), *arguments)
    cotangents = [
      use * jnp.cos(jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape) for o, use in zip(out, used, strict=True)
    ]
    return out, pullback(tuple(cotangents))

  return both(arguments)


def _assert_near(actual, expected, tolerance=3e-6):
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    scale = max(float(np.max(np.abs(e))), 1e-3)
    np.testing.assert_allclose(a, e, atol=tolerance * scale)


@pytest.mark.parametrize(
  ("name", "tokens"),
  [
    *itertools.product(OPERATORS, ((17,),)),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (*itertools.product(OPERATORS, ((1,), (2, 64), (2048,))), ("mosaic_gpu", (17,)))
    ),
  ],
  ids=str,
)
def test_values_and_gradients_are_those_of_the_formulas(name, tokens):
  arguments = _inputs(tokens)
  kernels = _operators(name)
  actual = _values_and_gradients(kernels, arguments, jnp.float32, entered=True)
  with jax.enable_x64(True):
    expected = _values_and_gradients(xla, arguments, jnp.float64)
  _assert_near(actual, expected, tolerance=3e-6 * max(1, np.prod(tokens) ** 0.5 / 8))
  again = _values_and_gradients(kernels, arguments, jnp.float32, entered=True)
  chex.assert_trees_all_equal(actual, again)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("entered", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_static_coefficients_and_unused_outputs(name, entered):
  """Coefficients without token axes get the sum over the tokens; an output that nobody uses adds nothing."""
  arguments = _inputs((2, 5), n=4, static=True)
  used = (1, 0, 1, 0)
  actual = _values_and_gradients(_operators(name), arguments, jnp.float32, used, entered)
  with jax.enable_x64(True):
    expected = _values_and_gradients(xla, arguments, jnp.float64, used)
  _assert_near(actual, expected)
  assert not np.any(actual[1][NAMES.index("kernel")])


@pytest.mark.parametrize("name", PLATFORMS)
def test_many_streams_whose_work_is_not_written_out(name):
  arguments = _inputs((3,), n=6, d=20, k=48)
  actual = _values_and_gradients(_operators(name), arguments, jnp.float32, entered=True)
  with jax.enable_x64(True):
    expected = _values_and_gradients(xla, arguments, jnp.float64)
  _assert_near(actual, expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_bfloat16_streams_are_computed_in_float32(name):
  x, mixer, _, write, y, _ = (jnp.asarray(a, jnp.float32) for a in _inputs((4,)))
  x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
  out = vjp.mix_and_write(x, mixer, write, y, _operators(name))
  assert out.dtype == jnp.bfloat16
  exact = vjp.mix_and_write(x.astype(jnp.float32), mixer, write, y.astype(jnp.float32))
  np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_bfloat16_gradients_are_those_of_the_formulas(name):
  arguments = _inputs((5,))
  halves = [name in ("streams", "output") for name in NAMES]
  rounded = [jnp.asarray(a, jnp.bfloat16 if h else jnp.float32) for a, h in zip(arguments, halves, strict=True)]
  out, gradients = _values_and_gradients(_operators(name), rounded, None, entered=True)
  for gradient, argument in zip(gradients, rounded, strict=True):
    assert gradient.dtype == argument.dtype
  expected = _values_and_gradients(xla, rounded, None)
  _assert_near(*(jax.tree.map(lambda a: a.astype(jnp.float32), r) for r in ((out, gradients), expected)), 2**-7)


@pytest.mark.parametrize("name", OPERATORS)
def test_under_a_mesh_every_device_runs_its_own_tokens_without_a_collective(name):
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  batch = ("data", "fsdp")
  arguments = [jnp.asarray(a, jnp.float32) for a in _inputs((8, 3))]
  specs = [
    PartitionSpec(batch), PartitionSpec(None, None, batch), PartitionSpec(None, batch), PartitionSpec(None, batch),
    PartitionSpec(batch), PartitionSpec(),
  ]  # fmt: skip
  placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arguments, specs, strict=True)]
  kernels = _operators(name)

  @jax.jit
  def run(*arguments):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      out, pullback = jax.vjp(
        lambda *per_token: _stage(kernels, entered=True)(*per_token, arguments[-1]), *arguments[:-1]
      )
      return out, pullback(out)

  compiled = run.lower(*placed).compile()
  moved = re.findall(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", compiled.as_text())
  assert not moved
  expected = jax.vjp(lambda *per_token: _stage(xla)(*per_token, arguments[-1]), *arguments[:-1])
  _assert_near(compiled(*placed), (expected[0], expected[1](expected[0])))


def _target(platform):
  """(lowering platform, context): recent JAX asks which GPU a Triton kernel is lowered for."""
  if platform == "tpu":
    return "tpu", contextlib.nullcontext()
  device = getattr(jax.sharding, "AbstractDevice", None)
  if device is None or jax.__version_info__ < (0, 11):
    return "cuda", contextlib.nullcontext()
  mesh = jax.sharding.AbstractMesh(
    (), (), abstract_device=device(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="cuda")
  )
  return "cuda", jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(("tokens", "n", "d"), [(17, 3, 37), (4096, 4, 512)])
def test_every_kernel_lowers_for_its_target(platform, tokens, n, d):
  lowered = _lowered(Kernels(platform), tokens, n, d)
  assert len(re.findall(r"custom_call @(?:tpu_custom_call|__gpu\$xla.gpu.triton|triton_kernel_call)", lowered)) == 6


@pytest.mark.slow
def test_every_kernel_of_mosaic_gpu_lowers_without_a_gpu():
  assert len(re.findall("custom_call @mosaic_gpu", _lowered(MosaicGpu(), 17, 3, 37))) == 5  # statistics are formulas


def _lowered(kernels, tokens, n, d):
  arguments = [jnp.asarray(a, jnp.float32) for a in _inputs((tokens,), n, d, k=24)]
  name, context = _target(kernels.platform)

  def both(arguments):
    out, pullback = jax.vjp(_stage(kernels, entered=True), *arguments)
    return out, pullback(out)

  with context:
    return jax.jit(both).trace(arguments).lower(lowering_platforms=(name,)).as_text()


@pytest.mark.parametrize("n", [1, 4, 8, 16])
@pytest.mark.parametrize("d", [64, 512, 4096])
def test_what_a_tpu_kernel_holds_fits_its_memory(n, d):
  """Sums of the mixer's gradient take a row of 128 lanes each: at n = 16 more than the streams."""
  sharding = Layout.of("pallas_tpu", 4096, n, d, 1)
  streams, sums = (4 * sharding.block * width for width in (n * sharding.shape.d, 128 * n * (n + 1)))
  assert streams <= 2 << 20 and sums <= 4 << 20  # of 16 MiB, with three arrays of streams in two buffers each


def test_a_tpu_takes_the_streams_as_they_are():
  """It tiles the last two axes: streams as (tokens, n·d) would be copied before and after every kernel."""
  assert Layout.of("pallas_tpu", 1856, 8, 768, 1).rows == 1856
  arguments = [jnp.asarray(a, jnp.float32) for a in _inputs((1024,), 4, 128, k=24)]

  def both(arguments):
    out, pullback = jax.vjp(_stage(Kernels("tpu"), entered=True), *arguments)
    return out, pullback(out)

  lowered = jax.jit(both).trace(arguments).lower(lowering_platforms=("tpu",)).as_text()
  assert "tensor<1024x4x128xf32>" in lowered and "tensor<1024x512xf32>" not in lowered


def _applied(config, x):
  module = HyperConnection(hyper_connection_fn(config, 4, 0), rngs=nnx.Rngs(0))
  return nnx.jit(lambda module, x: module(x, jnp.tanh))(module, x)


def test_a_fall_back_is_announced():
  config = schema.Connection(implementation="pallas_gpu", streams=2)
  x = jnp.ones((3, 2, 4))
  base.announce.cache_clear()
  with pytest.warns(
    UserWarning, match="implementation='pallas_gpu': the devices are 'cpu'; the formulas in plain JAX run"
  ):
    out = _applied(config, x)
  plain = _applied(schema.Connection(streams=2), x)
  np.testing.assert_array_equal(out, plain)


def test_more_streams_than_kernels_take_are_announced(monkeypatch):
  base.announce.cache_clear()
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  assert isinstance(base.stream_ops("pallas_gpu", 16), Kernels)
  with pytest.warns(UserWarning, match="streams=17 is above 16; the formulas in plain JAX run instead"):
    assert base.stream_ops("pallas_gpu", 17) is xla


def test_a_norm_without_a_kernel_is_announced():
  base.announce.cache_clear()
  x, parameters = jnp.ones((16, 2, 16)), {"projection": jnp.ones((2, 16, 4))}
  with pytest.warns(UserWarning, match="pallas_tpu.*norm='none' has no kernel; the formulas in plain JAX run"):
    out = generator.project(x, parameters, "none", 1e-6, Kernels("tpu", interpret=True))
  np.testing.assert_array_equal(out, generator.project(x, parameters, "none", 1e-6))


@pytest.mark.parametrize("name", OPERATORS)
def test_streams_that_are_projected_each_alone_take_the_same_kernels(name):
  rule = hyper_connection_fn(schema.Connection(projection="per_stream", norm="rmsnorm_per_stream"), 16, 0)
  parameters = rule.init(jax.random.key(0))
  streams = jax.random.normal(jax.random.key(1), (5, 3, 4, 16))

  def both(parameters, streams, operators):
    value, pullback = jax.vjp(lambda p, x: generator.project(x, p, rule.norm, 1e-6, operators), parameters, streams)
    return value, pullback(jnp.cos(value))

  with warnings.catch_warnings():
    warnings.simplefilter("error")  # nothing falls back
    found = jax.jit(functools.partial(both, operators=_operators(name)))(parameters, streams)
  expected = jax.jit(functools.partial(both, operators=xla))(parameters, streams)
  chex.assert_trees_all_close(found, expected, rtol=1e-7, atol=2e-5)


@pytest.mark.parametrize("name", OPERATORS)
def test_no_tokens_need_no_kernel(name):
  x, mixer, weights = jnp.zeros((2, 0, 4, 16)), jnp.zeros((4, 4, 2, 0)), jnp.zeros((4, 2, 0))
  kernels = _operators(name)
  assert vjp.mix_and_write(x, mixer, weights, x[..., 0, :], kernels).shape == x.shape
  (products, square), pullback = jax.vjp(lambda w: vjp.statistics(x, w, kernels), jnp.ones((4, 16, 24)))
  assert products.shape == (24, 2, 0) and square.shape == (2, 0)
  assert not jnp.any(pullback((products, square))[0])


FORMS = {
  "dynamic": {},
  "static": {"generator": "static"},
  "identity": {"mixer": "identity"},
  "layernorm": {"norm": "layernorm", "generator": "gated"},
  "per_stream": {"projection": "per_stream"},
  "stored": {"parameterisation": "manifold"},
  "segments": {"segments": 2},
}
ABLATED = {"identity": None, "mean": None, "permutation": (0,)}


@pytest.mark.filterwarnings("ignore:.*has no kernel:UserWarning")
@pytest.mark.parametrize(
  ("form", "ablation", "name"),
  [
    *((form, "none", name) for form in FORMS for name in ("tpu", "by_stream")),
    # What replaces a mixer has done so before any operator runs.
    *(("dynamic", ablation, "by_stream") for ablation in ABLATED),
    *(pytest.param(form, "none", "gpu", marks=pytest.mark.slow) for form in FORMS),
  ],
)
def test_blocks_by_kernels_are_blocks_by_formulas(name, form, ablation, monkeypatch):
  config = schema.Connection(**{"streams": 3, "init": "random", "init_scale": 1.0} | FORMS[form])
  rule = hyper_connection_fn(config, 16, 0)
  rule = dataclasses.replace(rule, ablation=ablation, ablated_indices=ABLATED.get(ablation))
  parameters = rule.init(jax.random.key(0)) | {"layer_index": jnp.asarray(0)}
  streams = jax.random.normal(jax.random.key(1), (5, 3, rule.stream_width))

  @jax.jit
  def both(parameters, streams):
    value, pullback = jax.vjp(lambda p, x: rule(p, x, jnp.tanh), parameters, streams)
    return (
      value,
      pullback(jnp.cos(value))[1:],
      {k: v for k, v in pullback(jnp.cos(value))[0].items() if k != "layer_index"},
    )

  expected = both(parameters, streams)
  monkeypatch.setattr(base, "stream_ops", lambda *_: _operators(name))
  both.clear_cache()
  _assert_near(both(parameters, streams), expected, tolerance=2e-5)


def test_second_derivatives_by_stream_are_those_of_the_formulas(monkeypatch):
  """What measures a Jacobian differentiates the backward pass, which hands factors on in place of their products."""
  rule = hyper_connection_fn(schema.Connection(streams=3, init="random", init_scale=1.0), 8, 0)
  parameters = rule.init(jax.random.key(0))
  x, c, v = (jax.random.normal(jax.random.key(seed), (5, 3, 8)) for seed in range(3))

  def second(x, c, v):
    def gradient(x, c):
      return jax.vjp(lambda x: rule(parameters, x, jnp.tanh), x)[1](c)[0]

    return jax.vjp(gradient, x, c)[1](v)

  expected = jax.jit(second)(x, c, v)
  monkeypatch.setattr(base, "stream_ops", lambda *_: xla_tpu)
  _assert_near(jax.jit(lambda *arguments: second(*arguments))(x, c, v), expected, tolerance=2e-5)


def test_fused_streams_take_only_the_operators_they_were_made_for():
  x, mixer, weights = jnp.ones((5, 3, 8)), jnp.ones((3, 3, 5)), jnp.ones((3, 5))
  reading = fused_streams.enter(x, fused_streams.Terms(read=True), xla_tpu)
  with pytest.raises(ValueError, match="mix_and_write: the streams were fused for other operators"):
    vjp.mix_and_write(reading, mixer, weights, x[:, 0], xla_tpu)
  with pytest.raises(ValueError, match="statistics: the streams were fused for other operators"):
    vjp.statistics(reading, jnp.ones((3, 8, 4)), xla_tpu)
  mixing = fused_streams.enter(x, fused_streams.Terms(mix=True), xla_tpu)
  with pytest.raises(ValueError, match="read: the streams"):
    vjp.read(mixing, weights, xla_tpu)
  with pytest.raises(ValueError, match="write: the streams"):
    vjp.write(mixing, weights, x[:, 0])
