"""Sweep and decide.

One run is an anecdote. A sweep is a file that returns points, seeds included, and what every run may spend.
"""

import pathlib
import statistics
import subprocess
import sys

import jpmhc_jax as jp

FIELDS = ["--config.steps=300"]
SEEDS = 3

pathlib.Path("two_mixers.py").write_text(f"""
from jpmhc_jax.sweeps import product, seeds, sweep

def get_sweep():
  return product(sweep("connection.mixer", ["cayley", "identity"]), seeds({SEEDS}))
""")

# The command trains every point, skips what is done and tries again what failed. `--executor=slurm` hands the runs to a
# cluster, `--dry-run` prints them.
command = ["sweep", "--config=sudoku:tiny", "--sweep=two_mixers.py", "--workdir=sweeps/two"]
subprocess.run([sys.executable, "-m", "jpmhc_jax", *command, *FIELDS], check=True)

# ## Read it
#
# Each run is a folder like any other.
scores = {}
for folder in sorted(pathlib.Path("sweeps/two").glob("*/config.json")):
  run = jp.load(folder.parent)
  scores.setdefault(run.config.connection.mixer, []).append(run.evaluations[-1].metrics["exact_accuracy"])
for mixer, values in scores.items():
  spread = statistics.stdev(values) if len(values) > 1 else float("nan")
  print(f"{mixer:9s} {statistics.mean(values):.2f} ± {spread:.2f} over {len(values)} seeds")

# ## Decide
#
# Ask first how large a difference would matter, then how many seeds show it: at a spread of 0.4, as 4×4 Sudoku has
# after 300 steps, three seeds show nothing below 0.7. The report of the sweep, `sweeps/two/report.html`, has intervals
# and tests with Holm's correction; a budget of FLOPs, `Sweep(space, budget=("flops", 1e12))`, makes arms of different
# cost comparable.
