"""What a mixer costs: parameters and FLOPs of a module beside the published tables; memory of the backward pass over T.

  python -m experiments.mixer_costs.run [--quick] [--check] [--record]

Parameters and FLOPs at n = 4, d = 512; the published numbers are of per-token logits for every family.
Memory: temporaries that the compiler plans for the gradient of Sinkhorn's projection at 4,096 tokens, float32. Their
bytes depend on the machine (cores, host devices) and are noted; what is checked is how they grow with the sweeps.
"""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp

from experiments.claim import Cache, Claim, Number, table
from jpmhc_jax import mixers
from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.models.connections import hyper_connection_fn

FOLDER = pathlib.Path(__file__).resolve().parent
N, WIDTH, TOKENS = 4, 512, 4096
PARAMETERS = {"sinkhorn": 49_188, "cayley": 102_400, "grassmann": 32_796, "permutation": 28_694}
OPTIONS = {"permutation": "basis=jpmhc"}
FLOPS = {"sinkhorn": (320, 256), "cayley": (128, 128), "grassmann": (8, 64)}
SWEEPS = (5, 20, 80)


def parameters(mixer: str) -> int:
  """Numbers learned by one connection: JPmHC's form for Cayley, mHC's for the others, as their counts imply."""
  connection = schema.Connection(mixer=mixer, options=OPTIONS.get(mixer, ""))
  if mixer == "cayley":
    connection = configs.load("arc1:cayley").connection
  shapes = jax.eval_shape(hyper_connection_fn(connection, WIDTH, 0).init, jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def backward_memory(sweeps: int, adjoint: str, tokens: int) -> int:
  """Bytes of temporaries in the compiled gradient of Σ P∘G with respect to the logits."""
  manifold = mixers.Sinkhorn(sweeps=sweeps, adjoint=adjoint)

  def loss(logits: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(manifold.project(logits, N) * weights)

  shape = jax.ShapeDtypeStruct((N, N, tokens), jnp.float32)
  return int(jax.jit(jax.grad(loss)).lower(shape, shape).compile().memory_analysis().temp_size_in_bytes)


def counts() -> dict[str, Number]:
  """Parameters and FLOPs of every mixer; they are exact."""
  numbers: dict[str, Number] = {}
  rows: list[list[Any]] = []
  for mixer, published in PARAMETERS.items():
    count = parameters(mixer)
    forward, backward = mixers.parse(mixer, OPTIONS.get(mixer, "")).flops(N)
    numbers[f"{mixer}/parameters"] = Number(count, 0)
    numbers[f"{mixer}/flops forward"], numbers[f"{mixer}/flops backward"] = Number(forward, 0), Number(backward, 0)
    claimed = " + ".join(map(str, FLOPS[mixer])) if mixer in FLOPS else ""
    rows.append([mixer, f"{count:,}", f"{published:,}", f"{forward} + {backward}", claimed])
  print(table(["mixer", "parameters", "published", "FLOPs a token, forward + backward", "published"], rows))
  return numbers


def memory() -> dict[str, Number]:
  """The implicit backward's memory is flat over T; the exact one's grows by two vectors of n numbers a sweep."""
  implicit, unrolled = (
    {sweeps: backward_memory(sweeps, adjoint, TOKENS) for sweeps in SWEEPS} for adjoint in ("implicit", "unrolled")
  )
  rows = [[f"T = {t}", implicit[t] / 2**20, unrolled[t] / 2**20, unrolled[t] / implicit[t]] for t in SWEEPS]
  print(f"\ntemporaries of the gradient in MiB, {TOKENS} tokens")
  print(table(["sweeps", "implicit", "unrolled", "ratio"], rows))
  bytes_noted = {f"memory/T={t}/implicit": Number.noted(size) for t, size in implicit.items()}
  bytes_noted |= {f"memory/T={t}/unrolled": Number.noted(size) for t, size in unrolled.items()}
  vectors = 2 * N * 4 * TOKENS * (SWEEPS[-1] - SWEEPS[0])  # float32; where tokens run in blocks, of one block
  return bytes_noted | {
    "memory/implicit, largest over smallest": Number.bounded(max(implicit.values()) / min(implicit.values()), most=1.1),
    "memory/unrolled, growth over two vectors a sweep": Number.bounded(
      (unrolled[80] - unrolled[5]) / vectors, most=1.1
    ),
    "memory/unrolled over implicit, T=80": Number.bounded(unrolled[80] / implicit[80], least=2.0),
  }


def measure(quick: bool, cache: Cache) -> dict[str, Number]:
  """Both tables; there is nothing to cut short and nothing to keep."""
  del quick, cache
  return counts() | memory()


CLAIM = Claim(FOLDER, measure, seeds="none: nothing is drawn", budget="compilation only")

if __name__ == "__main__":
  sys.exit(CLAIM.command())
