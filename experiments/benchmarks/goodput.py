"""Where the wall time of a real run goes once everything has compiled.

  python -m experiments.benchmarks.goodput [--config=sudoku:tiny] [--steps=500] [--start=260] [--out=FILE]

Trains with the command line in a folder of its own and reads the account of its metrics.jsonl, shares of the time since
the start. The seconds of the first compilation do not change after it, so every share over its share is an amount of
time in that unit, and differences of two lines are those of the steps between them.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from experiments.benchmarks import timing
from jpmhc_jax.core import arguments

PREFIX = "goodput/"


def account(metrics: pathlib.Path) -> dict[int, dict[str, float]]:
  """Seconds of every activity up to each logged step, in units of the first compilation."""
  lines = (json.loads(line) for line in metrics.read_text().splitlines())
  shares = {
    line["step"]: {name.removeprefix(PREFIX): value for name, value in line.items() if name.startswith(PREFIX)}
    for line in lines
    if PREFIX + "compile" in line
  }
  return {step: {name: share / of["compile"] for name, share in of.items()} for step, of in shares.items()}


def shares_between(totals: dict[int, dict[str, float]], start: int) -> tuple[int, int, dict[str, float]]:
  """First and last step, and the share of every activity, from the first line at `start` or later to the last line."""
  first, last = min(step for step in totals if step >= start), max(totals)
  spent = {name: totals[last][name] - totals[first][name] for name in totals[last]}
  whole = sum(spent.values())
  return first, last, {name: amount / whole for name, amount in spent.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="sudoku:tiny")
  parser.add_argument("--steps", type=arguments.whole(1), default=500)
  parser.add_argument(
    "--start",
    type=arguments.whole(1),
    default=260,
    help="the first step that counts: steps, evaluation, diagnosis are warm",
  )
  parser.add_argument("--out", type=arguments.path, default=None)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "jpmhc_jax", "train", f"--config={options.config}", f"--workdir={folder}/run"]
    # The last step is evaluated and saved whatever the intervals: the window ends before it.
    subprocess.run([*command, f"--config.steps={options.steps}"], check=True, stdout=subprocess.DEVNULL)
    totals = account(pathlib.Path(folder) / "run" / "metrics.jsonl")
  totals.pop(options.steps, None)
  rows = []
  for start in (min(totals), options.start):
    first, last, shares = shares_between(totals, start)
    rows.append({"first": first, "last": last, **{name: round(share, 5) for name, share in shares.items()}})
    print(
      f"steps {first} to {last}: " + ", ".join(f"{name} {share:.2%}" for name, share in shares.items() if share > 1e-5)
    )
  if options.out:
    timing.write_json(options.out, {"config": options.config, "rows": rows})


if __name__ == "__main__":
  main()
