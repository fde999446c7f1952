"""Time of every projection, forward and forward+backward, tokens last, beside the usual trailing layout.

  python -m experiments.benchmarks.projections [--tokens 4096] [--streams 4] [--rounds 40] [--out runs/projections.json]

Expect (2 CPU cores, 4,096 tokens, n = 4): Cayley near 0.2 ms forward, Sinkhorn-20 near 0.35 ms forward and 0.75 ms
with its backward; the trailing-layout references, a log-domain unrolled Sinkhorn and the batched iteration of
Cayley, 20 to 70 times slower. On a loaded machine only the ratios mean something.
"""

import argparse
from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

from experiments.benchmarks import timing
from jpmhc_jax.core import arguments
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.mixers import FAMILIES, make, Mixer


def sinkhorn_trailing(logits: Array, sweeps: int = 20) -> Array:
  """The usual code: (tokens, n, n), log domain, a Python loop that autodiff unrolls."""
  x = jnp.clip(logits, -10, 10)
  for _ in range(sweeps):
    x = x - jax.nn.logsumexp(x, axis=-1, keepdims=True)
    x = x - jax.nn.logsumexp(x, axis=-2, keepdims=True)
  return jnp.exp(x)


def cayley_trailing(logits: Array, alpha: float = 0.1, steps: int = 2) -> Array:
  """The published iteration with batched matrix products, (tokens, n, n)."""
  w = logits - jnp.swapaxes(logits, -1, -2)
  identity = jnp.eye(logits.shape[-1])[None]
  y = identity + alpha * w
  for _ in range(steps):
    y = identity + 0.5 * alpha * (w @ (identity + y))
  return y


def candidates(streams: int, tokens: int) -> dict[str, tuple[Callable[[Array], Array], tuple[int, ...]]]:
  """Name -> (projection, shape of its logits)."""
  found: dict[str, tuple[Callable[[Array], Array], tuple[int, ...]]] = {}
  named: dict[str, Mixer] = {name: make(name) for name in FAMILIES if name not in ("birkhoff", "identity")}
  named["sinkhorn gauss_seidel"] = make("sinkhorn", adjoint="gauss_seidel")
  named["sinkhorn unrolled"] = make("sinkhorn", adjoint="unrolled")
  named["iso newton"] = make("iso", method="newton")
  named["iso newton_schulz"] = make("iso", method="newton_schulz")
  for name, manifold in named.items():
    try:
      shape = (*manifold.logit_shape(streams), tokens)
    except ConfigError:
      continue  # the family does not exist for this many streams
    found[name] = (functools.partial(manifold.project, n=streams), shape)
  trailing = (tokens, streams, streams)
  return found | {"trailing sinkhorn": (sinkhorn_trailing, trailing), "trailing cayley": (cayley_trailing, trailing)}


def compiled_pair(
  project: Callable[[Array], Array], shape: tuple[int, ...]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
  """Forward, and forward with the pullback of a random cotangent, ready to be timed."""
  logits = jax.random.normal(jax.random.key(0), shape)
  cotangent = jax.random.normal(jax.random.key(1), jax.eval_shape(project, logits).shape)

  def both(x: Array, g: Array) -> tuple[Array, Array]:
    value, pullback = jax.vjp(project, x)
    return value, pullback(g)[0]

  forward, backward = jax.jit(project), jax.jit(both)
  return (lambda: forward(logits)), (lambda: backward(logits, cotangent))


def measure(streams: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
  """One row a candidate: medians and the ratio to Cayley measured in the same rounds."""
  pairs = {name: compiled_pair(*candidate) for name, candidate in candidates(streams, tokens).items()}
  rows: dict[str, dict[str, Any]] = {name: {"name": name} for name in pairs}
  for column, index in (("forward", 0), ("forward_backward", 1)):
    samples = timing.interleaved({name: pair[index] for name, pair in pairs.items()}, rounds)
    for name in pairs:
      rows[name][f"{column}_ms"] = round(timing.summary(samples[name]).median_ms, 4)
      rows[name][f"{column}_over_cayley"] = round(timing.ratio(samples, name, "cayley"), 2)
  return list(rows.values())


def table(rows: list[dict[str, Any]]) -> str:
  """The rows as aligned text, fastest forward+backward first."""
  lines = [f"{'family':30s} {'fwd ms':>9s} {'/cayley':>8s} {'fwd+bwd ms':>11s} {'/cayley':>8s}"]
  for row in sorted(rows, key=lambda row: row["forward_backward_ms"]):
    lines.append(
      f"{row['name']:30s} {row['forward_ms']:9.3f} {row['forward_over_cayley']:8.2f} "
      f"{row['forward_backward_ms']:11.3f} {row['forward_backward_over_cayley']:8.2f}"
    )
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tokens", type=arguments.whole(1), default=4096)
  parser.add_argument("--streams", type=arguments.whole(2, 64), default=4)
  parser.add_argument("--rounds", type=arguments.whole(1), default=40)
  parser.add_argument("--out", type=arguments.path, default="runs/projections.json")
  options = parser.parse_args()
  rows = measure(options.streams, options.tokens, options.rounds)
  print(table(rows))
  timing.write_json(options.out, {"tokens": options.tokens, "streams": options.streams, "rows": rows})
  print(f"written to {options.out}")


if __name__ == "__main__":
  main()
