"""Memory traffic of a layer of four streams as the compilers of TPUs and GPUs plan it, without such a device.

  python -m experiments.benchmarks.traffic --topology=v5e:2x2 [--topology=h100] [--tokens=65536] [--width=512]
      [--streams=4] [--out=FILE]

A scan over layers, each a connection (Cayley) around tanh(u W), is compiled with its gradient for one device of every
topology (TPUs need libtpu, GPUs JAX's CUDA plugin), with every way to compute the apply stage, one by one or with one
pass from a connection to the next (`connections.chain`), and float32 and bfloat16 streams. The compiled bodies of the
two largest loops, one forward and one backward (which recomputes the layer), are read: what each operation, but those
of loops inside, reads and writes in the device's main memory, in units of one copy of the streams; of what is stored
for all layers the slice of one. `apart` is the part of it that only moves streams: what the loop stores for the
backward pass, takes from there, and copies into its next round. Where the compiler says how many cycles it expects
(TPUs, kernels not counted), these are added up; `compile_s` are seconds of this machine.
"""

import argparse
import functools
import math
import re
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from jpmhc_jax.config import schema
from jpmhc_jax.connections import Chain, Link
from jpmhc_jax.connections.ops import base, xla, xla_tpu
from jpmhc_jax.connections.ops.pallas import Kernels
from jpmhc_jax.core import arguments, sharding
from jpmhc_jax.models.connections import hyper_connection_fn
from jpmhc_jax.training.plan import devices_of

LAYERS = 7  # no other axis is as long: an axis of it is a stack of what is stored for every layer
DTYPES = (jnp.float32, jnp.bfloat16)
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1}
_ARRAY = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\](\{{[^}}]*\}})?")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\) -> .*?\{\n(.*?)^\}", re.M | re.S)
_OPERATION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*)")
_MOVES = re.compile(r"^copy|dynamic[-_](update[-_])?slice")
_FREE = ("parameter", "bitcast", "tuple", "get-tuple-element", "constant", "while")


def main_memory_bytes(shapes: str) -> int:
  """Bytes of all arrays in a type of HLO text that are in main memory (a TPU's on-chip memory is S(1))."""
  total = 0
  for dtype, axes, arrangement in _ARRAY.findall(shapes):
    if "S(1)" not in arrangement:
      lengths = [int(length) for length in axes.split(",") if length]
      total += _BYTES[dtype] * math.prod(lengths[1:] if lengths[:1] == [LAYERS] else lengths)
  return total


def body_traffic(body: str) -> tuple[int, int, int]:
  """Bytes that the operations of a computation in HLO text read and write, those that only move, and the cycles."""
  shapes: dict[str, str] = {}
  moved = apart = cycles = 0
  for line in body.splitlines():
    operation = _OPERATION.match(line)
    if not operation:
      continue
    name, shape, kind, rest = operation.groups()
    shapes[name] = shape
    if kind in _FREE or kind.endswith("-done"):
      continue
    arguments = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
    here = sum(main_memory_bytes(s) for s in (shape, *(shapes.get(a, "") for a in arguments)))
    moved += here
    apart += here if _MOVES.search(name) else 0
    expected = re.search(r'estimated_cycles":"(\d+)"', line)
    cycles += int(expected[1]) if expected else 0
  return moved, apart, cycles


def compile_layers(
  device: jax.Device, operators: Any, chain: Chain | None, dtype: Any, tokens: int, streams: int, width: int
) -> Any:
  """The compiled gradient of a scan over LAYERS layers, whose connections act one by one or as links of a chain."""
  rule = hyper_connection_fn(schema.Connection(mixer="cayley", streams=streams), width, 0)
  place = functools.partial(jax.ShapeDtypeStruct, sharding=jax.sharding.SingleDeviceSharding(device))
  one = jax.eval_shape(rule.init, jax.random.key(0))
  parameters = jax.tree.map(lambda leaf: place((LAYERS, *leaf.shape), leaf.dtype), one)
  weights, vector = place((LAYERS, width, width), dtype), place((tokens, width), dtype)

  def network(parameters: Any, weights: Any, x: Any) -> Any:
    def layer(state: Any, own: Any) -> Any:
      return rule(own[0], state, lambda u: jnp.tanh(u @ own[1])), None

    def link(passing: Any, own: Any) -> Any:
      here, *following = (Link(rule, each) for each in own[0])
      return chain.step(passing, here, lambda u: jnp.tanh(u @ own[1]), following), None  # type: ignore[union-attr]

    state = jnp.broadcast_to(x[:, None], (tokens, streams, width))
    if chain is None:
      return jnp.mean(jax.lax.scan(jax.checkpoint(layer), state, (parameters, weights))[0], axis=-2)
    of_each = [jax.tree.map(lambda leaf, k=k: jnp.roll(leaf, -k, 0), parameters) for k in range(chain.ahead + 1)]
    first = [Link(rule, jax.tree.map(lambda leaf: leaf[0], each)) for each in of_each[: chain.ahead]]
    return jnp.mean(
      jax.lax.scan(jax.checkpoint(link), chain.enter(state, first), (of_each, weights))[0].streams.streams, axis=-2
    )

  def both(parameters: Any, weights: Any, x: Any, cotangent: Any) -> Any:
    value, pullback = jax.vjp(network, parameters, weights, x)
    return value, pullback(cotangent)

  elsewhere = jax.sharding.Mesh([device], ("data",)).abstract_mesh  # which Triton asks for the kind of GPU
  with mock.patch.object(base, "stream_ops", lambda *_: operators), jax.sharding.use_abstract_mesh(elsewhere):
    with mock.patch.object(sharding, "platform", lambda: device.platform):
      return jax.jit(both).lower(parameters, weights, vector, vector).compile()


def measure(topology: str, tokens: int, streams: int, width: int) -> list[dict[str, Any]]:
  """A row for every way to compute and every dtype."""
  device = devices_of(topology)[0]
  kernels = Kernels(device.platform)
  ways: dict[str, tuple[Any, Chain | None]] = {
    "portable": (xla, None), "by stream": (xla_tpu, None), "kernels": (kernels, None),
    "portable, own": (xla, Chain("own")), "by stream, own": (xla_tpu, Chain("own")),
    "kernels, own": (kernels, Chain("own")), "kernels, previous": (kernels, Chain("previous")),
  }  # fmt: skip
  rows = []
  for dtype in DTYPES:
    copy = tokens * streams * width * jnp.dtype(dtype).itemsize
    for way, (operators, chain) in ways.items():
      began = time.perf_counter()
      compiled = compile_layers(device, operators, chain, dtype, tokens, streams, width)
      seconds = time.perf_counter() - began
      text = compiled.as_text()
      bodies = set(re.findall(r"body=%([\w.\-]+)", text[text.index("ENTRY ") :]))
      traffic = sorted(body_traffic(body) for name, body in _COMPUTATION.findall(text) if name in bodies)[-2:]
      rows.append({
        "topology": topology, "dtype": jnp.dtype(dtype).name, "computed": way,
        "forward": traffic[0][0] / copy, "backward": traffic[1][0] / copy,
        "forward apart": traffic[0][1] / copy, "backward apart": traffic[1][1] / copy,
        "Mcycles": sum(cycles for *_, cycles in traffic) / 1e6,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes / copy, "compile_s": seconds,
      })  # fmt: skip
  return rows


def main() -> None:
  """Command line; see the module."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--topology", action="append", required=True, help="as v5e:2x2 or h100; may be repeated")
  parser.add_argument("--tokens", type=arguments.whole(1), default=65536)
  parser.add_argument("--streams", type=arguments.whole(2, 64), default=4)
  parser.add_argument("--width", type=arguments.whole(1), default=512)
  parser.add_argument("--out", type=arguments.path)
  options = parser.parse_args()
  sizes = (options.tokens, options.streams, options.width)
  rows = [row for topology in options.topology for row in measure(topology, *sizes)]
  columns = ("forward", "forward apart", "backward", "backward apart", "temporaries", "Mcycles", "compile_s")
  print("in copies of the streams:".ljust(54) + "".join(f"{column:>16s}" for column in columns))
  for row in rows:
    named = "".join(f"{row[name]:18s}" for name in ("topology", "dtype", "computed"))
    print(named + "".join(f"{row[column]:16.1f}" for column in columns))
  if options.out:
    timing.write_json(options.out, {"tokens, streams, width": sizes, "rows": rows})


if __name__ == "__main__":
  main()
