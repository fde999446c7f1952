"""Memory of one attention call forward and backward, fused and by formulas, as the compilers of TPUs and GPUs plan it.

  python -m experiments.benchmarks.attention --topology=v5e:2x2 --topology=h100:4 [--batch=768] [--positions=916]
      [--heads=8] [--head=64] [--causal] [--calls=5] [--out=FILE]

With --calls: of so many sub-layers in a row, each with its projections and RMS norm, and the gradient of their weights;
then what a call leaves for the backward pass counts too.

No such device is needed (TPUs need libtpu, GPUs JAX's CUDA plugin). The batch is split over the devices of a topology;
the numbers are GiB of temporaries on one device, for bfloat16 and float32. A compiler of TPUs ends where they do not
fit; then the number is what it asked for. The defaults are the call of the published ARC configuration, 16 puzzle
positions included. cuDNN's own workspace is known only where a GPU is.
"""

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmarks import timing
from jpmhc_jax.config import schema
from jpmhc_jax.core import arguments
from jpmhc_jax.models.attention import attend, refusal
from jpmhc_jax.models.layers import rms_norm
from jpmhc_jax.models.products import dense
from jpmhc_jax.training.mesh import batch_sharding, make_mesh, on_mesh
from jpmhc_jax.training.plan import devices_of, temporaries_in


def temporaries(compile_it: Any) -> int:
  """Bytes that a compiler plans, or asked for in vain."""
  try:
    return compile_it().memory_analysis().temp_size_in_bytes
  except jax.errors.JaxRuntimeError as error:
    asked = temporaries_in(str(error))
    if asked is None:
      raise
    return asked


def one_call(attention: Any, *parts: Any) -> Any:
  """Attention and its gradient, of q, k, v and a cotangent (b, t, h, k)."""
  value, pullback = jax.vjp(attention, *parts[:3])
  return value, pullback(parts[3])


def in_a_row(attention: Any, x: jax.Array, weights: jax.Array) -> Any:
  """Gradient of the weights (calls, 4, h·k, h, k) of attention sub-layers, of streams x (b, t, h, k)."""

  def loss(weights: jax.Array) -> jax.Array:
    features = x.reshape(*x.shape[:2], -1)
    for kernel in weights:
      query, key, value = (dense(features, kernel[i]) for i in range(3))
      out = dense(attention(query, key, value), jnp.moveaxis(kernel[3], 0, -1), axes=2)
      features = rms_norm(features + out, 1e-6)
    return jnp.sum(features.astype(jnp.float32) ** 2)

  return jax.grad(loss)(weights)


def measure(topology: str, shape: tuple[int, int, int, int], causal: bool, calls: int) -> list[dict[str, Any]]:
  """A row for every dtype and implementation."""
  mesh, rows = make_mesh(schema.Mesh(), devices_of(topology)), []
  platform = mesh.devices.ravel()[0].platform
  for dtype in (jnp.bfloat16, jnp.float32):
    part = jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
    weights = jax.ShapeDtypeStruct(
      (calls, 4, shape[2] * shape[3], *shape[2:]), dtype, sharding=NamedSharding(mesh, PartitionSpec())
    )
    program, parts = (in_a_row, (part, weights)) if calls else (one_call, (part,) * 4)
    refused = refusal(platform, shape[-1], jnp.dtype(dtype))
    for implementation in ("xla",) if refused else ("auto", "xla"):
      attention = functools.partial(attend, causal=causal, implementation=implementation)
      function = functools.partial(program, attention)
      began = time.perf_counter()
      size = temporaries(jax.jit(on_mesh(mesh, function)).lower(*parts).compile)
      rows.append({
        "topology": topology, "dtype": jnp.dtype(dtype).name,
        "computed": "fused" if implementation == "auto" else "formulas", "not fused because": refused,
        "temporary_GiB": size / 2**30, "compile_s": time.perf_counter() - began,
      })  # fmt: skip
  return rows


def main() -> None:
  """Command line; see the module."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--topology", action="append", required=True, help="as v5e:2x2 or h100:4; may be repeated")
  parser.add_argument("--batch", type=arguments.whole(1), default=768)
  parser.add_argument("--positions", type=arguments.whole(1), default=916)
  parser.add_argument("--heads", type=arguments.whole(1), default=8)
  parser.add_argument("--head", type=arguments.whole(1), default=64)
  parser.add_argument("--causal", action="store_true")
  parser.add_argument("--calls", type=arguments.whole(0), default=0, help="sub-layers in a row; 0 = one bare call")
  parser.add_argument("--out", type=arguments.path)
  options = parser.parse_args()
  shape = (options.batch, options.positions, options.heads, options.head)
  rows = [row for topology in options.topology for row in measure(topology, shape, options.causal, options.calls)]
  for row in rows:
    print("".join(f"{row[name]:12s}" for name in ("topology", "dtype", "computed")), end="")
    print(f"{row['temporary_GiB']:8.2f} GiB   compiled in {row['compile_s']:.0f} s   {row['not fused because']}")
  if options.out:
    timing.write_json(options.out, {"shape": shape, "causal": options.causal, "calls": options.calls, "rows": rows})


if __name__ == "__main__":
  main()
