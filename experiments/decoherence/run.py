"""Does a mixer that decoheres repeated weights train a deep recursion better, and only where weights repeat?

  python -m experiments.decoherence.run [--quick | --part=TASK] [--check] [--record]

TRM whose supervision step is one cycle of 7, 21 or 42 calls, all of which learn, and a decoder of one layer with as
many loops. Arms differ in the connection alone; every arm runs with repeated sub-layers and, as its control, with
sub-layers of each call's own. Seeds are paired: one has the same order of the data in every arm. All runs of a task
have the same number of calls in all, calls times steps. The README says, from before the first run, what would confirm
and what would refute the hypothesis. --quick is a part of the whole: 4×4 Sudoku, 7 and 42 calls, three arms; as many
steps, seeds and rates.
"""

from collections.abc import Sequence
import itertools
import pathlib
import sys
import time
from typing import Any

import numpy as np

from experiments.claim import Cache, Claim, Number, table
from experiments.seeded import Arm, smallest_visible
from jpmhc_jax.config import schema

FOLDER = pathlib.Path(__file__).resolve().parent
CAYLEY = {"connection.mixer": "cayley", "connection.init_scale": 1.0}
ARMS: dict[str, dict[str, Any]] = {
  "identity": {"connection.mixer": "identity"},
  "plain": {"connection.streams": 1},
  "iso": {"connection.mixer": "iso"},
  "sinkhorn": {"connection.mixer": "sinkhorn"},
  "cayley 0.1": CAYLEY | {"connection.options": "alpha=0.1"},
  "cayley 0.3": CAYLEY | {"connection.options": "alpha=0.3"},
  "cayley 1": CAYLEY | {"connection.options": "alpha=1.0"},
  "cayley per call": CAYLEY | {"connection.options": "alpha=0.3", "connection.sharing": "per_call"},
}
PART = ("identity", "cayley 1", "cayley per call")  # of --quick
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
  "sudoku4": ("sudoku:tiny", {}),
  "sudoku6": ("sudoku:tiny", {"data.sudoku.side": 6, "data.sudoku.max_holes": 18}),
  "maze": ("maze:tiny", {}),
  "text": ("stdlib_lm:tiny", {"data.text.window": 32}),
}
CALLS = (7, 21, 42)
TIES = ("tied", "untied")
RATES = (3e-3, 1e-2)
TUNING_SEEDS, SEEDS = (101,), (1, 2, 3, 4, 5)
BUDGET = 4_200  # calls a run: 600 steps of 7 calls, 100 of 42
LAST = 0.2  # share of the steps over which a run's loss is averaged


def recursion(task: str, calls: int) -> dict[str, Any]:
  """So many calls of one layer: loops of the decoder, or a cycle of TRM, of which there are two supervision steps."""
  if task == "text":
    return {"model.loops": calls}
  return {"model.recursion.outer": 1, "model.recursion.inner": calls - 1, "model.recursion.max_steps": 2}


def overrides(task: str, arm: str, calls: int, tie: str, rate: float) -> dict[str, Any]:
  """Of a task's tiny config, to make it smaller: d = 32, batch 32, one layer."""
  values = (
    recursion(task, calls)
    | {
      "steps": BUDGET // calls,
      "batch_size": 32,
      "model.width": 32,
      "model.heads": 2,
      "model.layers": 1,
      "optimizer.learning_rate": rate,
      "optimizer.warmup_steps": BUDGET // calls // 10,
      "connection.streams": 4,
    }
    | ARMS[arm]
  )
  return values | ({"connection.sharing": "none"} if tie == "untied" else {})


def outcomes(config: schema.Config, metrics: list[dict[str, float]]) -> dict[str, float]:
  """Of one run: loss and gradient norm at the end of the budget, and the loss over all of it."""
  losses, norms = (np.array([step[key] for step in metrics]) for key in ("loss", "gradient_norm"))
  last = max(1, int(LAST * config.steps))
  finite = len(losses) == config.steps and np.all(np.isfinite(losses))
  return {
    "loss": float(np.mean(losses[-last:])) if finite else float("inf"),
    "mean loss": float(np.mean(losses)) if finite else float("inf"),
    "log gradient norm": float(np.mean(np.log(norms[np.isfinite(norms) & (norms > 0)]))),
  }


def runs(
  cache: Cache, task: str, arm: str, calls: int, tie: str, rate: float, seeds: tuple[int, ...]
) -> list[dict[str, float]]:
  """Of each seed its outcomes; seeds that are missing run together, in one program."""
  spec, fields = TASKS[task]
  values = fields | overrides(task, arm, calls, tie, rate)
  name = f"{task}/{calls}/{tie}/{arm}/{rate:g}"

  def make(missing: list[int]) -> list[dict[str, float]]:
    compiled = Arm.load(spec, values)
    results = [outcomes(compiled.config, one) for one in compiled.train_together([seeds[k] for k in missing])]
    losses = ", ".join(f"{result['loss']:.4g}" for result in results)
    print(f"{time.strftime('%H:%M:%S')} {name}: loss {losses}", file=sys.stderr, flush=True)
    return results

  return cache.get_all([f"{name}/{seed}" for seed in seeds], [spec, values], make)


def tuned(cache: Cache, task: str, arm: str, calls: int, tie: str) -> float:
  """The learning rate with the lowest loss over the whole run of the tuning seed."""
  cost = lambda rate: runs(cache, task, arm, calls, tie, rate, TUNING_SEEDS)[0]["mean loss"]  # noqa: E731
  return min(RATES, key=cost)


def measure(quick: bool, cache: Cache, tasks: Sequence[str] = tuple(TASKS)) -> dict[str, Number]:
  """The numbers of these tasks."""
  if quick:
    return compared(cache, "sudoku4", CALLS[::2], PART)
  return {name: number for task in tasks for name, number in compared(cache, task).items()}


def compared(
  cache: Cache, task: str, depths: tuple[int, ...] = CALLS, arms: tuple[str, ...] = tuple(ARMS)
) -> dict[str, Number]:
  """Of one task, for each number of calls and tie: the loss of every arm, and its paired difference from identity."""
  numbers: dict[str, Number] = {}
  rows: list[list[Any]] = []
  for calls, tie in itertools.product(reversed(depths), TIES):
    reference = None
    for arm in arms:
      rate = tuned(cache, task, arm, calls, tie)
      results = runs(cache, task, arm, calls, tie, rate, SEEDS)
      losses, means, norms = (np.array([r[key] for r in results]) for key in ("loss", "mean loss", "log gradient norm"))
      reference = losses if reference is None else reference
      differences = losses - reference
      name, visible = f"{task}/{calls} calls/{tie}/{arm}", smallest_visible(differences)
      numbers[f"{name}/loss"] = Number.over(list(losses), floor=0.1)
      numbers[f"{name}/minus identity"] = Number.over(list(differences), floor=0.1)
      means_of = (losses.mean(), differences.mean(), visible, means.mean(), norms.mean())
      rows.append([task, calls, tie, arm, rate, *map(float, means_of)])
  header = ["task", "calls", "weights", "arm", "rate", "loss", "minus identity", "±", "mean loss", "log gradient norm"]
  print(table(header, rows))
  return numbers


CLAIM = Claim(
  FOLDER,
  measure,
  seeds=f"tuning {TUNING_SEEDS}, then {SEEDS}",
  budget=f"{BUDGET} calls of batch 32 a run",
  parts=tuple(TASKS),
)

if __name__ == "__main__":
  sys.exit(CLAIM.command())
