"""One hyper-connection block and its parts: against the PyPI package, plain residual, and what a copy of memory costs.

  python -m experiments.benchmarks.block [--tokens=4096] [--widths=128,512] [--rounds=20] [--out=FILE]
      [--sections=blocks,forms,adjoints,roofline,scaling,beside_peers] [--implementation=xla]

Forward and backward of a whole block (coefficients, read, tanh for a sub-layer, mix and write) in milliseconds, ours
with three mixers beside a plain residual x + tanh(x) and, where PyTorch and `hyper-connections` are installed, its HC
and mHC layers, eager and compiled; the Cayley block in its other forms (norm, generator, segments, bf16 streams); the
Sinkhorn block by the rule of its gradient; then every part against the time of a copy measured in the same rounds
(roofline), and the block as n, d and the number of tokens grow, with the temporaries that the compiler planned.
Runs on the first device that JAX has. `--implementation=pallas_gpu` or `pallas_tpu` measures the kernels there.
"""

import argparse
from collections.abc import Callable
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import peers, timing
from jpmhc_jax.config import schema
from jpmhc_jax.connections.ops import base, vjp
from jpmhc_jax.core import arguments
from jpmhc_jax.core.process import restart_with_fast_allocation
from jpmhc_jax.models.connections import hyper_connection_fn

Thunk = Callable[[], Any]
MIXERS = ("identity", "cayley", "sinkhorn")
FORMS: dict[str, dict[str, Any]] = {  # of the Cayley block; streams are as wide in each
  "rmsnorm": {},
  "layernorm": {"norm": "layernorm"},
  "rmsnorm_per_stream": {"norm": "rmsnorm_per_stream"},
  "per_stream": {"projection": "per_stream"},
  "gated": {"generator": "gated"},
  "static": {"generator": "static"},
  "2 segments": {"segments": 2},
  "bfloat16": {"dtype": "bfloat16"},
}
SECTIONS = ("blocks", "forms", "adjoints", "roofline", "scaling", "beside_peers")
PEERS = ("HC", "mHC, Sinkhorn-20")  # families of the PyPI package, see `peers.SHARED`


def compiled_gradient(function: Callable[..., Any], *arguments: Any) -> tuple[Thunk, float]:
  """Forward and backward pass, and the MiB of temporaries that the compiler planned for it."""
  out = jax.eval_shape(function, *arguments)
  cotangent = jax.tree.map(lambda s: jax.random.normal(jax.random.key(3), s.shape, s.dtype), out)

  def both(arguments: Any, cotangent: Any) -> Any:
    values, pullback = jax.vjp(function, *arguments)
    return values, pullback(cotangent)

  compiled = jax.jit(both).lower(arguments, cotangent).compile()
  return lambda: compiled(arguments, cotangent), compiled.memory_analysis().temp_size_in_bytes / 2**20


def our_block(
  mixer: str, tokens: int, n: int, d: int, computed_by: str, dtype: str = "float32", **form: Any
) -> tuple[Thunk, float]:
  """x' = H x + b ⊗ tanh(aᵀ x), with gradients for streams and parameters; the apply stage by an implementation."""
  connection = schema.Connection(mixer=mixer, streams=n, implementation=computed_by, **form)
  rule = hyper_connection_fn(connection, d * connection.segments, 0)
  parameters = rule.init(jax.random.key(0))
  streams = jax.random.normal(jax.random.key(1), (tokens, n, d)).astype(dtype)
  return compiled_gradient(lambda p, x: rule(p, x, jnp.tanh), parameters, streams)


def plain_residual(tokens: int, d: int) -> tuple[Thunk, float]:
  """x + tanh(x): what one stream costs."""
  return compiled_gradient(lambda x: x + jnp.tanh(x), jax.random.normal(jax.random.key(1), (tokens, d)))


def parts(tokens: int, n: int, d: int, computed_by: str) -> dict[str, tuple[Thunk, float]]:
  """Every part with the bytes that it cannot avoid moving (streams and vectors; coefficients are small)."""
  by = base.stream_ops(computed_by, n)
  keys = jax.random.split(jax.random.key(0), 6)
  x, g = (jax.random.normal(key, (tokens, n, d)) for key in keys[:2])
  y = jax.random.normal(keys[2], (tokens, d))
  h, b = jax.random.normal(keys[3], (n, n, tokens)), jax.random.normal(keys[4], (n, tokens))
  w = jax.random.normal(keys[5], (n, d, n * n + 2 * n))
  streams, vector = x.nbytes, y.nbytes

  def part(function: Callable[..., Any], *arguments: Any) -> Thunk:
    compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: compiled(*arguments)

  def backward(function: Callable[..., Any], *arguments: Any) -> Thunk:
    """The gradients of all arguments but the last, which is the cotangent."""
    return part(lambda *a: jax.vjp(function, *a[:-1])[1](a[-1]), *arguments)

  def read(x: Any, b: Any) -> Any:
    return vjp.read(x, b, by)

  def mix(x: Any, h: Any, b: Any, y: Any) -> Any:
    return vjp.mix_and_write(x, h, b, y, by)

  def norm(x: Any, w: Any) -> Any:
    return vjp.statistics(x, w, by)

  return {
    "copy": (part(lambda x: x + 1, x), 2 * streams),
    "read": (part(read, x, b), streams + vector),
    "read backward": (backward(read, x, b, y), 2 * streams + vector),
    "mix and write": (part(mix, x, h, b, y), 2 * streams + vector),
    "mix and write backward": (backward(mix, x, h, b, y, g), 3 * streams + 2 * vector),
    "norm and projection": (part(norm, x, w), streams),
    "norm and projection backward": (backward(norm, x, w, norm(x, w)), 2 * streams),
  }


def medians(thunks: dict[str, Thunk], rounds: int) -> dict[str, float]:
  """Median milliseconds of interleaved rounds."""
  return {name: statistics.median(samples) for name, samples in timing.interleaved(thunks, rounds=rounds).items()}


def compare(tokens: int, n: int, d: int, rounds: int, with_peers: bool, computed_by: str) -> list[dict[str, Any]]:
  """Rows of milliseconds: ours, plain residual and, if asked for, the package."""
  built = {f"jpmhc_jax {mixer}": our_block(mixer, tokens, n, d, computed_by) for mixer in MIXERS}
  built["plain residual"] = plain_residual(tokens, d)
  thunks = {name: thunk for name, (thunk, _) in built.items()}
  for family in PEERS if with_peers and not peers.missing() else ():
    for how, compiled in (("eager", False), ("torch.compile", True)):
      thunks[f"hyper-connections {family}, {how}"] = peers.block(family, n, d, tokens, compiled)
  times = medians(thunks, rounds)
  temporaries = {name: temporary for name, (_, temporary) in built.items()}
  return [
    {"block": name, "tokens": tokens, "n": n, "d": d, "ms": ms, "temporary_MiB": temporaries.get(name)}
    for name, ms in times.items()
  ]


def forms(tokens: int, n: int, d: int, rounds: int, computed_by: str) -> list[dict[str, Any]]:
  """The Cayley block by norm, generator, segments and dtype, and its ratio to the first."""
  built = {name: our_block("cayley", tokens, n, d, computed_by, **form) for name, form in FORMS.items()}
  samples = timing.interleaved({name: thunk for name, (thunk, _) in built.items()}, rounds=rounds)
  return [
    {"form": name, "tokens": tokens, "n": n, "d": d, "ms": statistics.median(samples[name]),
     "over_rmsnorm": timing.ratio(samples, name, "rmsnorm"), "temporary_MiB": temporary}
    for name, (_, temporary) in built.items()
  ]  # fmt: skip


def adjoints(tokens: int, n: int, d: int, rounds: int, computed_by: str) -> list[dict[str, Any]]:
  """The Sinkhorn block by the rule of its gradient, and its ratio to the implicit one."""
  built = {
    rule: our_block("sinkhorn", tokens, n, d, computed_by, options=f"adjoint={rule}")
    for rule in ("unrolled", "implicit", "gauss_seidel")
  }
  samples = timing.interleaved({name: thunk for name, (thunk, _) in built.items()}, rounds=rounds)
  return [
    {"adjoint": name, "tokens": tokens, "n": n, "d": d, "ms": statistics.median(samples[name]),
     "over_implicit": timing.ratio(samples, name, "implicit"), "temporary_MiB": temporary}
    for name, (_, temporary) in built.items()
  ]  # fmt: skip


def roofline(tokens: int, n: int, d: int, rounds: int, computed_by: str) -> list[dict[str, Any]]:
  """Bandwidth of every part and its share of the copy's."""
  found = parts(tokens, n, d, computed_by)
  times = medians({name: thunk for name, (thunk, _) in found.items()}, rounds)
  copy = found["copy"][1] / times["copy"]
  return [
    {"part": name, "tokens": tokens, "n": n, "d": d, "ms": times[name], "MB": size / 1e6,
     "GB_per_s": size / times[name] / 1e6, "of_copy": size / times[name] / copy}
    for name, (_, size) in found.items()
  ]  # fmt: skip


def scaling(rounds: int, computed_by: str) -> list[dict[str, Any]]:
  """The Cayley block as n, d and tokens grow."""
  cases = [(1024, n, 128) for n in (1, 2, 4, 8, 16)] + [(1024, 4, d) for d in (32, 64, 256, 512)]
  cases += [(tokens, 4, 128) for tokens in (256, 4096)]
  built = {case: our_block("cayley", *case, computed_by) for case in cases}
  times = medians({str(case): thunk for case, (thunk, _) in built.items()}, rounds)
  return [
    {"tokens": case[0], "n": case[1], "d": case[2], "ms": times[str(case)], "temporary_MiB": built[case][1],
     "ns_per_stream_feature": 1e6 * times[str(case)] / (case[0] * case[1] * case[2])}
    for case in cases
  ]  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
  """Aligned columns."""
  for row in rows:
    print("  ".join(f"{v:>11.3f}" if isinstance(v, float) else f"{v!s:>11}" for v in row.values()))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tokens", type=arguments.whole(1), default=4096)
  parser.add_argument("--widths", type=arguments.wholes(1), default="128,512")
  parser.add_argument("--rounds", type=arguments.whole(1), default=20)
  parser.add_argument("--out", type=arguments.path, default=None)
  parser.add_argument(
    "--sections",
    type=arguments.names(SECTIONS),
    default=",".join(SECTIONS),
    help="the others stay as they are in --out",
  )
  parser.add_argument("--implementation", default="auto", choices=base.IMPLEMENTATIONS)
  options = parser.parse_args()
  widths, computed_by = options.widths, options.implementation

  def size(d: int) -> tuple[int, int, int, int]:
    return options.tokens, 4, d, options.rounds

  measures: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "blocks": lambda: [row for d in widths for row in compare(*size(d), False, computed_by)],
    "forms": lambda: [row for d in widths for row in forms(*size(d), computed_by)],
    "adjoints": lambda: [row for d in widths for row in adjoints(*size(d), computed_by)],
    "beside_peers": lambda: [row for d in widths for row in compare(*size(d), True, computed_by)],
    "roofline": lambda: [row for d in widths for row in roofline(*size(d), computed_by)],
    "scaling": lambda: scaling(options.rounds, computed_by),
  }
  sections = {title: measures[title]() for title in options.sections}
  for title, rows in sections.items():
    print(f"\n{title}: {', '.join(rows[0])}")
    show(rows)
  if options.out:
    kept = timing.earlier(options.out)
    command = timing.environment()["command"]
    timing.write_json(
      options.out,
      {
        **kept,
        **sections,
        "commands": kept.get("commands", {}) | dict.fromkeys(sections, command),
        "implementation": computed_by,
        "rounds": options.rounds,
        "peers": peers.missing() or peers.versions(),
      },
    )


if __name__ == "__main__":
  restart_with_fast_allocation()
  main()
