"""The published mean dense gradient norms: 0.39 Sinkhorn, 0.10 Cayley, 0.84 Grassmann. On a tiny TRM, three seeds.

  python -m experiments.gradient_norms.run [--quick] [--check] [--record]

The recipe of experiments/mixer_ordering at one learning rate, once with the norm and read/write form that each family
was published with and once with one form for all: the second column is what the mixer alone does.
"""

import pathlib
import sys
from typing import Any

from experiments.claim import Cache, Claim, Number, table
from experiments.mixer_ordering.run import overrides as smaller
from experiments.seeded import Arm

FOLDER = pathlib.Path(__file__).resolve().parent
PUBLISHED = {"sinkhorn": 0.39, "cayley": 0.10, "grassmann": 0.84}
RATE, SEEDS, STEPS, SKIPPED = 5e-3, (1, 2, 3), 150, 30


def overrides(mixer: str, steps: int, published_form: bool) -> dict[str, Any]:
  """Of sudoku:tiny."""
  values = smaller(mixer, RATE, steps)
  if published_form and mixer in ("cayley", "grassmann"):
    values |= {"connection.read_write": "softmax", "connection.norm": "layernorm"}
    values |= {"connection.norm_epsilon": 1e-5, "connection.bias": mixer == "grassmann"}
  return values


def mean_norms(values: dict[str, Any], seeds: tuple[int, ...]) -> list[float]:
  """Of each seed the gradient norm averaged over the steps behind the warm-up."""
  arm, means = Arm.load("sudoku:tiny", values), []
  for seed in seeds:
    norms = [metrics["gradient_norm"] for metrics in arm.train(seed)][SKIPPED:]
    means.append(sum(norms) / len(norms))
  print(values["connection.mixer"], means, file=sys.stderr, flush=True)
  return means


def measure(quick: bool, cache: Cache) -> dict[str, Number]:
  """Mean gradient norm of each mixer in both forms."""
  seeds, steps = (SEEDS[:1], SKIPPED + 10) if quick else (SEEDS, STEPS)
  numbers: dict[str, Number] = {}
  rows: list[list[Any]] = []
  for mixer, published in list(PUBLISHED.items())[: 1 if quick else None]:
    row: list[Any] = [mixer, published]
    for form in ("published", "shared"):
      values = overrides(mixer, steps, form == "published")
      norms = cache.get(f"{mixer}/{form}", [values, seeds], lambda v=values: mean_norms(v, seeds))
      number = numbers[f"{mixer}/{form} form"] = Number.over(norms, floor=0.1 * sum(norms) / len(norms))
      row.append(f"{number.value:.3f} ± {number.spread:.3f}")
    rows.append(row)
  print(table(["mixer", "published (ARC, 7M)", "published form", "shared form"], rows))
  return numbers


CLAIM = Claim(
  FOLDER, measure, seeds=str(SEEDS), budget=f"{STEPS} steps of batch 32 a run, the last {STEPS - SKIPPED} count"
)

if __name__ == "__main__":
  sys.exit(CLAIM.command())
