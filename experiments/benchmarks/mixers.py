"""Every mixer family: its projection, the whole block, the PyPI package `hyper-connections` beside it, and memory.

  python -m experiments.benchmarks.mixers [--parts=projections,blocks,peers,memory] [--streams=4,8] [--widths=128,512]
    [--rounds=20] [--out=FILE]

  projections: 4,096 tokens, n = 4 and n = 8, forward and forward+backward, as ratios to Cayley, with the operations
    each needs: a family slower than 3 x Cayley is explained by its operations or by a chain of loops.
  blocks: forward and backward of a whole connection around tanh, n = 4 and 8, d = 128 and 512, 4,096 tokens, gradients
    of streams and parameters; ratio to the Cayley block.
  peers: the same blocks beside those of hyper-connections 0.4.11 (PyTorch, on the same device) for each family it has,
    and its Sinkhorn projection; theirs / ours.
  memory: temporaries the compiler plans for the backward pass as sweeps or steps grow: flat for implicit adjoints.

Medians of ratios within interleaved rounds. What is named is measured anew; the rest stays in the JSON, so that a busy
machine can be asked piece by piece.
"""

import argparse
from collections.abc import Callable
import contextlib
import functools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import peers, projections, timing
from jpmhc_jax.connections import HyperConnectionFn
from jpmhc_jax.core import arguments
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.process import restart_with_fast_allocation
from jpmhc_jax.mixers import FAMILIES, make

TOKENS = 4096
PARTS = ("projections", "blocks", "peers", "memory")
RESULTS = pathlib.Path(__file__).with_name("results") / "mixers_cpu.json"
# Where time is not operations: what a family slower than 3 x Cayley is made of.
REASONS = {
  "orthostochastic": "an 8 x 8 rotation for every 4 x 4 mixer: four times the data and eight times the products",
  "orthostochastic_newton_schulz": "five published quintic steps, gradient of each: 45 dependent 4 x 4 products",
  "sinkhorn_epsilon": "twenty published sweeps and the gradient of each: 160 dependent divisions",
  "sinkhorn unrolled": "twenty sweeps and the gradient of each",
  "birkhoff_newton": "damped Newton steps until the last token is doubly stochastic to rounding",
  "polar": "six dependent Newton steps; beyond n = 4 thirteen steps with an inverse in each",
  "iso newton": "as polar",
  "iso newton_schulz": "five dependent cubic steps; the backward pass as that of polar",
  "sphere": "two rotations of n - 1",
  "choice": "three families at once",
  "hybrid": "two families at once",
}


def projection_rows(streams: int, rounds: int) -> list[dict[str, Any]]:
  """Times and operations of every projection."""
  rows = [row for row in projections.measure(streams, TOKENS, rounds) if not row["name"].startswith("trailing")]
  cayley = sum(make("cayley").flops(streams))
  for row in rows:
    if row["name"] in FAMILIES:
      row["operations"] = sum(make(row["name"]).flops(streams))
      row["operations_over_cayley"] = round(row["operations"] / cayley, 1)
    if row["forward_backward_over_cayley"] > 3:
      row["why"] = REASONS.get(row["name"], "")
  return rows


def our_block(rule: HyperConnectionFn) -> Callable[[], Any]:
  """A compiled forward and backward pass of one connection around tanh."""
  parameters = rule.init(jax.random.key(0))
  shape = (TOKENS, rule.streams, rule.width)
  x, cotangent = (jax.random.normal(jax.random.key(seed), shape) for seed in (1, 2))

  def both(parameters: Any, x: jax.Array, cotangent: jax.Array) -> Any:
    value, pull = jax.vjp(lambda p, x: rule(p, x, jnp.tanh), parameters, x)
    return value, pull(cotangent)

  compiled = jax.jit(both)
  return lambda: compiled(parameters, x, cotangent)


def block_rows(streams: int, width: int, rounds: int) -> list[dict[str, Any]]:
  """Every family's block, and what the block costs above that of the identity mixer, which projects nothing."""
  candidates = {}
  for name in (family for family in FAMILIES if family != "birkhoff"):  # another name of sinkhorn
    with contextlib.suppress(ConfigError):  # a family that does not exist for so many streams
      candidates[name] = our_block(HyperConnectionFn(make(name), streams=streams, width=width))
  samples = timing.interleaved(candidates, rounds, warmup=1)
  rows = []
  for name in candidates:
    ms = timing.summary(samples[name]).median_ms
    cayley, identity = (timing.ratio(samples, name, base) for base in ("cayley", "identity"))
    rows.append({"name": name, "forward_backward_ms": round(ms, 2), "over_cayley": round(cayley, 2),
                 "over_identity": round(identity, 2)})  # fmt: skip
  return rows


def peer_rows(streams: int, width: int, rounds: int) -> list[dict[str, Any]]:
  """Theirs over ours; torch.compile's best effort counts too where it works."""
  rows = []
  for family, (_, _, convention) in peers.SHARED.items():
    theirs = functools.partial(peers.block, family, streams, width, TOKENS)
    ours = our_block(convention.block(streams, width))
    candidates = {"ours": ours, "eager": theirs(False)}
    compiled = theirs(True)
    try:
      compiled()
      candidates["compiled"] = compiled
    except Exception as error:  # no C++ compiler, or a graph torch.compile does not take: eager stays
      print(f"{family}: torch.compile failed: {str(error).splitlines()[0]}", file=sys.stderr)
    rows.append({"name": family, **_theirs(candidates, rounds)})
  return rows


def peer_projection_rows(streams: int, rounds: int) -> list[dict[str, Any]]:
  """Theirs over ours for the one projection that it offers by itself."""
  manifold = make("sinkhorn", clip=0.0, order="columns_first")
  _, ours = projections.compiled_pair(lambda x: manifold.project(x, streams), (streams, streams, TOKENS))
  candidates = {"ours": ours, "eager": peers.projection(streams, TOKENS)}
  return [{"name": "Sinkhorn-20 projection alone", **_theirs(candidates, rounds)}]


def _theirs(candidates: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
  samples = timing.interleaved(candidates, rounds, warmup=2)
  found = {f"{name}_ms": round(timing.summary(samples[name]).median_ms, 2) for name in candidates}
  return found | {f"{name}_over_ours": round(timing.ratio(samples, name, "ours"), 2) for name in candidates}


def memory_rows() -> list[dict[str, Any]]:
  """MiB of temporaries of one forward and backward pass."""
  cases: dict[str, Callable[[int], Any]] = {
    "sinkhorn implicit": lambda k: make("sinkhorn", sweeps=k),
    "sinkhorn gauss_seidel": lambda k: make("sinkhorn", sweeps=k, adjoint="gauss_seidel"),
    "sinkhorn unrolled": lambda k: make("sinkhorn", sweeps=k, adjoint="unrolled"),
    "birkhoff_newton": lambda k: make("birkhoff_newton", steps=k),
    "polar newton_schulz implicit": lambda k: make("polar", method="newton_schulz", steps=k),
    "polar newton_schulz unrolled": lambda k: make("polar", method="newton_schulz", steps=k, adjoint="unrolled"),
  }
  rows = []
  for name, build in cases.items():
    row: dict[str, Any] = {"name": name}
    for steps in (5, 10, 20, 40, 80):
      manifold = build(steps)
      shape = jax.ShapeDtypeStruct((4, 4, TOKENS), jnp.float32)
      both = jax.jit(lambda x, g, manifold=manifold: jax.vjp(lambda x: manifold.project(x, 4), x)[1](g))
      row[f"T={steps}"] = round(both.lower(shape, shape).compile().memory_analysis().temp_size_in_bytes / 2**20, 2)
    rows.append(row)
  return rows


def table(rows: list[dict[str, Any]]) -> str:
  """The rows as aligned text, every key a column."""
  keys = list(dict.fromkeys(key for row in rows for key in row))
  cells = [keys, *([f"{row[key]:,}" if isinstance(row.get(key), int | float) else str(row.get(key, "")) for key in keys]
           for row in rows)]  # fmt: skip
  widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
  return "\n".join(
    "  ".join(c.ljust(w) if not k else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip()
    for line in cells
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--parts", type=arguments.names(PARTS), default=",".join(PARTS))
  parser.add_argument("--streams", type=arguments.wholes(2, 64), default="4,8")
  parser.add_argument("--widths", type=arguments.wholes(1), default="128,512")
  parser.add_argument("--rounds", type=arguments.whole(1), default=20)
  parser.add_argument("--out", type=arguments.path, default=RESULTS)
  options = parser.parse_args()
  results = timing.earlier(options.out)
  for part in options.parts:
    if part == "peers" and (reason := peers.missing()):
      print(f"peers {reason}")
      continue
    streams, widths = options.streams, options.widths
    pieces: dict[str, Callable[[], list[dict[str, Any]]]] = {
      "projections": {f"n={n}": functools.partial(projection_rows, n, options.rounds) for n in streams},
      "blocks": {f"n={n}, d={d}": functools.partial(block_rows, n, d, options.rounds) for n in streams for d in widths},
      "peers": {f"n={n}, d={d}": functools.partial(peer_rows, n, d, options.rounds) for n in streams for d in widths}
      | {f"n={n}, projection": functools.partial(peer_projection_rows, n, options.rounds) for n in streams},
      "memory": {"MiB": memory_rows},
    }[part]
    for title, measure in pieces.items():
      rows = measure()
      results.setdefault(part, {})[title] = rows
      results.setdefault("commands", {})[f"{part} {title}"] = timing.environment()["command"]
      print(f"\n{part} {title}\n{table(rows)}", flush=True)
      if part == "peers":
        results["peer_versions"] = peers.versions()
      timing.write_json(options.out, results)
  print(f"\nwritten to {options.out}")


if __name__ == "__main__":
  restart_with_fast_allocation()
  main()
