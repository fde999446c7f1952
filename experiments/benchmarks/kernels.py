"""Block sizes of every kernel, and whether `auto` takes kernels, measured on the device that is here.

  python -m experiments.benchmarks.kernels [--minutes=8] [--tokens=65536] [--sizes=4x512,8x512,4x128]
      [--dtypes=bfloat16,float32] [--kernels=…] [--implementations=…] [--rounds=10] [--out=FILE]
  python -m experiments.benchmarks.kernels --interpret
  python -m experiments.benchmarks.kernels --topology=h100

Every kernel of every implementation that the device has, with every candidate for its blocks, is compiled, compared
with the formulas in float64 on a few tokens, and timed beside the formulas in rounds of all of them: by the events that
the device itself recorded in a profiler trace, or by the clock where it recorded none; the output says which. Then a
whole connection with its gradient (Cayley, around tanh) decides `auto` for its number of streams: the implementation
with the lowest ratio to the formulas, if that is below 0.97. The table is written after every kernel, over the packaged
one or to --out. What it has of this device and these versions is not measured again: a second call goes on. After
--minutes it stops, whatever is left.

--interpret checks every candidate in interpret mode on tiny shapes, on any machine. --topology compiles every candidate
for a device that is elsewhere. Neither times or writes anything. Exit code 1: a candidate was wrong
or failed.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import math
import pathlib
import sys
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from experiments.benchmarks.device_time import interleaved
from experiments.benchmarks.kernel_cases import candidates, drawn, error, expected, has, KERNELS, Size
from jpmhc_jax.config import schema
from jpmhc_jax.connections.ops import base, pallas
from jpmhc_jax.connections.ops.base import BY_KERNELS
from jpmhc_jax.connections.ops.pallas import tuning
from jpmhc_jax.connections.ops.pallas.tuning import Auto, Blocks, Device, Row
from jpmhc_jax.core import arguments, sharding
from jpmhc_jax.core.files import to_json, write_atomically
from jpmhc_jax.core.process import add_xla_flag
from jpmhc_jax.models.connections import hyper_connection_fn
from jpmhc_jax.training.plan import devices_of

TABLE = pathlib.Path(pallas.__file__).with_name(tuning.FILE)
CHECKED = 83  # tokens of a comparison: no block divides them
GAIN = 0.97  # kernels are to save 3 % of a connection: less is within what runs differ by


@dataclasses.dataclass
class Bench:
  """The device, the time that is left, and the table as far as it has been measured."""

  kind: str
  implementations: Sequence[str]
  ends: float  # time.monotonic
  rounds: int
  out: pathlib.Path
  device: Device
  longest: float = 0.0  # seconds of a step
  wrong: int = 0

  def steps(self, steps: Sequence[tuple[str, Size]]) -> Iterator[tuple[str, Size]]:
    """The steps, as long as another one that takes as long as the longest so far ends in time."""
    for k, step in enumerate(steps):
      began = time.monotonic()
      if began + self.longest > self.ends:
        left = ", ".join(f"{name} {size}" for name, size in steps[k:])
        print(f"time is up: the same command goes on with {left}")
        return
      yield step
      self.longest = max(self.longest, time.monotonic() - began)

  def rows(self, implementation: str, kernel: str, size: Size) -> list[Row]:
    """What the table has of this already."""
    asked = (implementation, kernel, size.n, size.d, size.dtype)
    return [r for r in self.device.blocks if (r.implementation, r.kernel, r.streams, r.width, r.dtype) == asked]

  def write(self, measured: dict[str, Any], **fields: Any) -> None:
    """Puts fields into the device's part of the table, and the table into its file."""
    self.device = dataclasses.replace(self.device, measured={**self.device.measured, **measured}, **fields)
    found = json.loads(self.out.read_text()) if self.out.exists() else {}
    text = to_json(found | {self.kind: dataclasses.asdict(self.device)}, indent=1)
    tuning.parse(text, str(self.out))
    write_atomically(self.out, text + "\n")


def bench_of(names: Sequence[str], minutes: float, rounds: int, out: pathlib.Path) -> Bench:
  """Of those implementations that the device has, with what the file has of this device in these versions of JAX."""
  kind, environment = sharding.device_kind(), timing.environment()
  found = tuning.parse(out.read_text(), str(out)).get(kind) if out.exists() else None
  if found is None or any(found.measured.get(name) != environment[name] for name in ("jax", "jaxlib")):
    driver = jax.devices()[0].client.platform_version
    found = Device({"date": datetime.date.today().isoformat(), **environment, "driver": driver})
  return Bench(kind, on(sharding.platform(), names), time.monotonic() + 60 * minutes, rounds, out, found)


def on(platform: str, names: Sequence[str]) -> list[str]:
  """The implementations for a platform, of these."""
  return [name for name in names if BY_KERNELS[name].platform == platform]


def compiled(name: str, function: Callable[..., Any], values: Any, mesh: Any = None) -> Callable[[], Any]:
  """The function of these values (arrays or shapes) as a program of this name; mesh: of devices that are elsewhere."""
  program: Any = lambda values: function(**values)  # noqa: E731
  program.__name__ = name
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh else contextlib.nullcontext():
    made = jax.jit(program).lower(values).compile()
  return lambda: made(values)


def build(makers: dict[str, Callable[[], Any]]) -> dict[str, Any]:
  """What the makers make, in threads, for compilers are outside Python; what fails is said and left out."""

  def one(name: str) -> Any:
    try:
      return makers[name]()
    except Exception as problem:  # whatever a compiler raises: the next candidate may compile
      print(f"    {name} failed: {type(problem).__name__}: {str(problem).splitlines()[0][:200]}")
      return None

  with futures.ThreadPoolExecutor() as pool:
    made = dict(zip(makers, pool.map(one, makers), strict=True))
  return {name: value for name, value in made.items() if value is not None}


def by_each(kernel: str, ways: dict[str, Any], *values: Any) -> dict[str, Callable[[], Any]]:
  """Programs of a kernel by each of these operators; values, and a mesh, as `compiled` takes them."""
  bind = functools.partial
  return build({name: bind(compiled, name, bind(KERNELS[kernel], ops), *values) for name, ops in ways.items()})


def named(kernel: str, implementation: str, blocks: Blocks) -> str:
  """As mix_pallas_gpu_16_64_4."""
  return "_".join(map(str, (kernel, implementation, *dataclasses.astuple(blocks))))


def tried(kernel: str, implementations: Sequence[str], size: Size, **fields: Any) -> dict[str, Any]:
  """Operators with each candidate for the blocks of a kernel, by the name of the program."""
  return {
    named(kernel, name, blocks): dataclasses.replace(BY_KERNELS[name], blocks=blocks, **fields)
    for name in implementations
    if has(name, kernel, size.n)
    for blocks in candidates(name, kernel, size)
  }


def right(kernel: str, ways: dict[str, Any], size: Size) -> dict[str, Any]:
  """The ways whose results are those of the formulas in float64."""
  few = dataclasses.replace(size, tokens=min(size.tokens, CHECKED))
  operands = drawn(few)
  exact = expected(kernel, operands)
  made = build(by_each(kernel, ways, operands))
  errors = {name: error(kernel, results, exact, few) for name, results in made.items()}
  for name in errors:
    if not errors[name] <= 1:
      print(f"    {name}: WRONG, {errors[name]:.3g} times the bound from the formulas in float64")
  good = {name: ways[name] for name in errors if errors[name] <= 1}
  worst = max((errors[name] for name in good), default=math.nan)
  print(f"  {kernel}, {size}: {len(good)} of {len(ways)} candidates right, at most {worst:.2f} of the bound away")
  return good


def measure_kernel(bench: Bench, kernel: str, size: Size) -> None:
  """Adds the fastest blocks of a kernel in every implementation that has it and no row for it yet."""
  ways = tried(kernel, [i for i in bench.implementations if not bench.rows(i, kernel, size)], size)
  if not ways:
    return
  good = right(kernel, ways, size)
  bench.wrong += len(good) < len(ways)
  programs = by_each(kernel, {"formulas": base.stream_ops("xla", size.n), **good}, drawn(size))
  if "formulas" not in programs:
    return
  times, by = interleaved(programs, bench.rounds, bench.ends)
  for implementation in bench.implementations:
    names = {named(kernel, implementation, blocks): blocks for blocks in candidates(implementation, kernel, size)}
    fastest = min(names.keys() & times.keys(), key=times.__getitem__, default=None)
    if fastest is not None:
      blocks, us = names[fastest], (times[fastest], times["formulas"])
      print(f"    {implementation}: {us[0]:.0f} µs with {blocks}, formulas {us[1]:.0f} µs (by {by})")
      row = Row(implementation, kernel, size.n, size.d, size.dtype, *dataclasses.astuple(blocks), *us)
      bench.write({"timed by": by}, blocks=(*bench.device.blocks, row))


def measure_connection(bench: Bench, size: Size) -> None:
  """A connection with its gradient by every implementation that has all its rows, and what `auto` takes by that."""
  ratios = dict(bench.device.measured.get("connections", {}))
  ways = [i for i in bench.implementations if all(bench.rows(i, k, size) for k in KERNELS if has(i, k, size.n))]
  if str(size) in ratios or not ways:
    return
  with mock.patch.object(tuning, "table", lambda: {bench.kind: bench.device}):
    programs = build({name: functools.partial(connection, name, size) for name in ("xla", *ways)})
  if "xla" not in programs:
    return
  times, by = interleaved(programs, bench.rounds, bench.ends)
  ratios[str(size)] = {name: times[name] / times["xla"] for name in times if name != "xla"}
  words = ", ".join(f"{name} × {ratio:.2f}" for name, ratio in ratios[str(size)].items())
  print(f"  a connection, {size}: {times['xla']:.0f} µs by formulas, {words} (by {by})")
  bench.write({"connections": ratios}, auto=tuple(verdicts(ratios)))


def connection(implementation: str, size: Size) -> Callable[[], Any]:
  """x' = H x + b ⊗ tanh(aᵀ x), with gradients for streams and parameters, as a program of this name."""
  config = schema.Connection(mixer="cayley", streams=size.n, implementation=implementation)
  rule = hyper_connection_fn(config, size.d, 0)
  operands = drawn(size)

  def both(parameters: Any, x: Any, g: Any) -> Any:
    value, pullback = jax.vjp(lambda p, x: rule(p, x, jnp.tanh), parameters, x)
    return value, pullback(g)

  values = {"parameters": rule.init(jax.random.key(0)), "x": operands["x"], "g": operands["g"]}
  return compiled(implementation, both, values)


def verdicts(connections: dict[str, dict[str, float]]) -> Iterator[Auto]:
  """For every number of streams who has the lowest ratio, in the geometric mean over widths and dtypes."""
  for n in sorted({int(size.partition("x")[0]) for size in connections}):
    sizes = [ratios for size, ratios in connections.items() if size.startswith(f"{n}x")]
    everywhere = set.intersection(*(set(ratios) for ratios in sizes))
    means = {name: math.exp(sum(math.log(r[name]) for r in sizes) / len(sizes)) for name in everywhere}
    if means:
      best = min(means, key=means.__getitem__)
      yield Auto(n, best if means[best] < GAIN else "xla", means[best])


def measure(bench: Bench, kernels: Sequence[str], sizes: Sequence[Size]) -> int:
  """Everything, size by size; the number of kernels with a candidate that was wrong or did not compile."""
  print(f"{bench.kind}: {', '.join(bench.implementations)}, to {bench.out}")
  for kernel, size in bench.steps([(kernel, size) for size in sizes for kernel in (*kernels, "connection")]):
    if kernel == "connection":
      measure_connection(bench, size)
    else:
      measure_kernel(bench, kernel, size)
  for auto in bench.device.auto:
    print(f"auto, {auto.streams} streams: {auto.implementation}; the fastest kernels over formulas: {auto.ratio:.2f}")
  return bench.wrong


def interpreted(names: Sequence[str], kernels: Sequence[str], sizes: Sequence[Size]) -> int:
  """Checks every candidate on this machine; the number of kernels with a wrong one."""
  wrong = 0
  for kernel, size in itertools.product(kernels, sizes):
    ways = tried(kernel, names, size, interpret=True)
    wrong += len(right(kernel, ways, size)) < len(ways)
  return wrong


def compile_elsewhere(topology: str, names: Sequence[str], kernels: Sequence[str], sizes: Sequence[Size]) -> int:
  """Compiles every candidate for a device that is not here; the number of kernels with one that does not."""
  device, failed = devices_of(topology)[0], 0
  mesh = jax.sharding.Mesh([device], ("data",))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  for size in sizes:
    shapes = {name: shape.update(sharding=place) for name, shape in size.operands().items()}
    for kernel in kernels:
      ways = tried(kernel, on(device.platform, names), size)
      made = by_each(kernel, ways, shapes, mesh)
      print(f"  {kernel}, {size}: {len(made)} of {len(ways)} candidates compile for {device.device_kind}")
      failed += len(made) < len(ways)
  return failed


def sizes_of(text: str) -> tuple[tuple[int, int], ...]:
  """'4x512,8x512' is ((4, 512), (8, 512))."""
  read = arguments.wholes(1, 1 << 16)
  pairs = [read(pair.replace("x", ",")) for pair in text.split(",")]
  if any(len(pair) != 2 for pair in pairs):
    raise argparse.ArgumentTypeError(f"{text!r}: expected streams and width of each size, such as 4x512,8x512")
  return tuple((n, d) for n, d in pairs)


def main() -> None:
  """Command line; see the module."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--minutes", type=arguments.number(0, above=True), default=8.0)
  parser.add_argument("--tokens", type=arguments.whole(1), default=65536)
  parser.add_argument("--sizes", type=sizes_of, default="4x512,8x512,4x128", help="streams and width of each")
  parser.add_argument("--dtypes", type=arguments.names(("bfloat16", "float32")), default="bfloat16,float32")
  parser.add_argument("--kernels", type=arguments.names(KERNELS), default=",".join(KERNELS))
  parser.add_argument("--implementations", type=arguments.names(BY_KERNELS), default=",".join(BY_KERNELS))
  parser.add_argument("--rounds", type=arguments.whole(1), default=10)
  parser.add_argument("--out", type=arguments.path, default=TABLE)
  parser.add_argument("--interpret", action="store_true", help="check every candidate on this machine, on tiny shapes")
  parser.add_argument("--topology", type=arguments.line, help="compile every candidate for a device elsewhere: h100")
  options = parser.parse_args()
  sizes = [Size(options.tokens, n, d, dtype) for n, d in options.sizes for dtype in options.dtypes]
  names, kernels = options.implementations, options.kernels
  if options.interpret:
    sys.exit(bool(interpreted(names, kernels, [Size(17, 2, 16, dtype) for dtype in options.dtypes])))
  if options.topology:
    sys.exit(bool(compile_elsewhere(options.topology, names, kernels, sizes)))
  add_xla_flag("--xla_gpu_enable_command_buffer=")  # kernels launched together do not name their program in a trace
  if sharding.platform() == "cpu":
    sys.exit("there is no GPU or TPU here: nothing is timed (--interpret checks the kernels, --topology compiles them)")
  sys.exit(bool(measure(bench_of(names, options.minutes, options.rounds, options.out), kernels, sizes)))


if __name__ == "__main__":
  main()
