"""Train in five minutes.

A network of 106,000 parameters learns Sudoku of 4×4 with four streams, in 80 seconds on two CPU cores. What follows is
Python; on the command line it is `jpmhc train --config=sudoku:tiny --workdir=runs/first`.
"""

import jpmhc_jax as jp

FIELDS = {"steps": 1000}  # any field of `jpmhc describe --config=sudoku:tiny`

# `jp.train` takes the name of a config of the package, or a file of yours, and a folder. The same call goes on where it
# was cut off; on a folder that is done it returns at once.
run = jp.train("sudoku:tiny", "runs/first", overrides=FIELDS)

# ## What it has learned
#
# An evaluation looks at puzzles that share no symmetry with those trained on.
last = run.evaluations[-1]
print(f"step {last.step}: {last.metrics['exact_accuracy']:.0%} of the unseen puzzles are right in every cell")

# Curves are arrays.
loss = run.metrics["train/loss"]
print(f"loss {loss.values[0]:.2f} at step {loss.steps[0]}, {loss.values[-1]:.3f} at step {loss.steps[-1]}")

# ## Another mixer
#
# One word is different. Sinkhorn's mixers are doubly stochastic, as in mHC, where Cayley's rotate.
other = jp.train("sudoku:tiny", "runs/sinkhorn", overrides={**FIELDS, "connection.mixer": "sinkhorn"})

# ## Both on one page
#
# It opens in any browser, without a server. One run each is no comparison: the tutorial on sweeps has seeds.
print(jp.report(["runs/first", "runs/sinkhorn"], "runs/both.html"))
