"""Time and error of the spectral methods: the default solver at its target sizes, every published one beside it.

  python -m experiments.benchmarks.spectral [--parts=deep,wide,calls,long,published] [--quick]
      [--out experiments/benchmarks/results/spectral_cpu.json]

Parts that are not run keep what the file at --out holds of them.

Expect (2 CPU cores): 400 grid points of n = 4, L = 100 different layers in under 10 s with residual ≤ 1e-8 (1.3 to
2.9 s measured once compiled); n = 64, L = 10 solved too, but slowly (25 to 32 s for 96 points, 50 s for 32 on a busy
machine). The published methods agree with the default and with Monte
Carlo where every AᵀA is a multiple of the identity, and are off by 15 to 50 % elsewhere.
`error` is the relative L1 error of G(x + 0.05i) against the default, `monte_carlo` the same of samples with N = 200.
"""

import argparse
import json
import pathlib
import sys
import time

import jax
import numpy as np

from experiments.benchmarks import timing
from jpmhc_jax.core import arguments
from jpmhc_jax.core.errors import UserError
from jpmhc_jax.spectral import correlated, dyson, monte_carlo, published
from jpmhc_jax.spectral.layers import full_noise

METHODS = ("scalar", "operator", "z1_mapping", "subordination", "s_transform", "twisted")
DEPTHS = ((1, True), (2, True), (2, False), (10, False))
STACKS = tuple((kind, depth, equal) for kind in ("haar", "bistochastic") for depth, equal in DEPTHS)
SIZES = {"deep": (4, 100, 400), "wide": (64, 10, 96)}  # streams, layers, grid points
RECURSIONS = {"calls": (4, 24, 400), "long": (4, 84, 400)}  # the same of repeated weights, two layers a call
RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "spectral_cpu.json"
Z = np.linspace(0.05, 4, 30) + 0.05j


def mixers(kind: str, layers: int, n: int, rng: np.random.Generator) -> np.ndarray:
  """Haar rotations, or Sinkhorn-balanced exponentials of Gaussian logits."""
  gauss = rng.normal(size=(layers, n, n))
  if kind == "haar":
    return np.linalg.qr(gauss)[0]
  matrix = np.exp(gauss)
  for _ in range(300):
    matrix /= matrix.sum(1, keepdims=True)
    matrix /= matrix.sum(2, keepdims=True)
  return matrix


def size(n: int, layers: int, points: int, repeats: int) -> dict:
  """The default solver on different layers: compile time, best and median of the repeats, worst residual."""
  rng = np.random.default_rng(0)
  stack = full_noise(mixers("bistochastic", layers, n, rng), np.sqrt(0.3 / layers) * rng.uniform(0.5, 1.5, layers))
  z = jax.numpy.asarray(np.linspace(0.02, 4, points) + 0.02j)
  seconds = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    result = jax.block_until_ready(dyson.resolvent(stack, z))
    seconds.append(time.perf_counter() - start)
  return {
    "streams": n,
    "layers": layers,
    "points": points,
    "first_call_s": seconds[0],
    "median_s": float(np.median(seconds[1:])),
    "residual": float(np.max(result.residual)),
    "iterations_mean": float(np.mean(result.iterations)),
  }


def recursion(n: int, layers: int, points: int, repeats: int) -> dict:
  """The solver for repeated weights: Haar mixers, reads 1/n, writes 1, correlation 0.8 of the calls, Σ σ² = ½.

  Points are warm-started along their curve, here a ray. cpu_s is the processor time of one pass.
  """
  weights = [layer % 2 for layer in range(layers)]
  covariance = correlated.tied_covariance(np.sqrt(0.5 / layers), weights, 0.8)
  ends = np.full((layers, n), 1 / n), np.ones((layers, n))
  stack = correlated.correlated_noise(mixers("haar", layers, n, np.random.default_rng(0)), *ends, covariance)
  z = jax.numpy.asarray(np.geomspace(1e-3, 20, points) * np.exp(0.05j))
  seconds, cpu = [], []
  for _ in range(repeats + 1):
    start, used = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(correlated.resolvent(stack, z))
    seconds.append(time.perf_counter() - start)
    cpu.append(time.process_time() - used)
  return {
    "streams": n,
    "layers": layers,
    "points": points,
    "first_call_s": seconds[0],
    "median_s": float(np.median(seconds[1:])),
    "cpu_s": float(np.median(cpu[1:])),
    "residual": float(np.max(result.residual)),
    "iterations_mean": float(np.mean(result.iterations)),
  }


def methods(kind: str, depth: int, equal: bool, draws: int) -> dict:
  """Every published method on one stack of four streams, against the default and Monte Carlo."""
  rng = np.random.default_rng(0)
  stack = mixers(kind, depth, 4, rng)
  stack = np.stack([stack[0]] * depth) if equal else stack
  sigma = np.sqrt(0.3 / depth)
  layers = full_noise(stack, sigma)
  exact = np.asarray(dyson.checked(layers, Z).g)
  distance = lambda g: float(np.sum(np.abs(g - exact)) / np.sum(np.abs(exact)))  # noqa: E731
  values = np.asarray(monte_carlo.eigenvalues(layers, 50, draws, jax.random.key(0)))
  rows = {}
  for method in METHODS:
    if method == "twisted" and depth > 2:  # its dense Newton unrolls the layers: minutes to compile at depth 10
      continue
    start = time.perf_counter()
    try:
      found = published.resolvent(stack, sigma, Z, method)
    except UserError as refusal:
      if "not for" not in str(refusal):
        rows[method] = {"error": None, "refused": str(refusal), "seconds": time.perf_counter() - start}
      continue
    rows[method] = {"error": distance(found), "seconds": time.perf_counter() - start}
  start = time.perf_counter()
  jax.block_until_ready(dyson.resolvent(layers, jax.numpy.asarray(Z)))
  return {
    "mixers": kind,
    "layers": depth,
    "equal": equal,
    "default_s": time.perf_counter() - start,
    "monte_carlo": distance(monte_carlo.empirical_resolvent(values, Z)),
    "methods": rows,
  }


def describe(row: dict) -> str:
  """One line: error and time of every method."""
  cells = [
    f"{name} {'refused' if found['error'] is None else format(found['error'], '.2g')} ({found['seconds']:.2f} s)"
    for name, found in row["methods"].items()
  ]
  kind = f"{row['mixers']} {row['layers']} {'equal' if row['equal'] else 'unequal'}"
  return f"{kind}: Monte Carlo {row['monte_carlo']:.2g}; {', '.join(cells)}"


def part(name: str, quick: bool) -> list[dict]:
  """The rows of one part, printed as they come."""
  rows: list[dict] = []
  if name == "published":
    for stack in STACKS:
      rows.append(methods(*stack, draws=6 if quick else 40))
      print(describe(rows[-1]), flush=True)
  else:
    measured, (n, layers, points) = (recursion, RECURSIONS[name]) if name in RECURSIONS else (size, SIZES[name])
    rows.append(measured(n, layers, points // 6 if quick else points, repeats=1 if quick else 5))
    print(rows[-1], flush=True)
  return rows


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=arguments.path, default=RESULTS, help="where to write")
  parser.add_argument(
    "--parts",
    type=arguments.names((*SIZES, *RECURSIONS, "published")),
    default="deep,wide,calls,long,published",
    help="which to run",
  )
  parser.add_argument("--quick", action="store_true", help="fewer points, draws and repeats")
  options = parser.parse_args()
  results = json.loads(options.out.read_text()) if options.out.is_file() else {}
  results.pop("environment", None)
  with jax.enable_x64(True):
    for name in options.parts:
      rows = part(name, options.quick)
      command = " ".join(["python -m experiments.benchmarks.spectral", *sys.argv[1:]])
      results[name] = {"command": command, "environment": timing.environment(), "rows": rows}
      timing.write_json(options.out, results)
  return 0


if __name__ == "__main__":
  sys.exit(main())
