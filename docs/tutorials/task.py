"""Own task.

`jpmhc init` writes a project with a task, a data set and a mixer of its own. This page trains it and says what to
change.
"""

import pathlib
import subprocess
import sys

import jpmhc_jax as jp

FIELDS = {"steps": 300}

if not pathlib.Path("my_project").exists():
  subprocess.run([sys.executable, "-m", "jpmhc_jax", "init", "my_project"], check=True)

# - `my_task.py` registers the data set, a function that returns arrays, and the task: `build` makes the network, and
#   `losses` says what it is judged by. Batches may hold arrays of any shape and dtype.
# - `my_mixer.py` registers the mixer.
# - `config.py` names both modules as plugins and sets the fields, the task's own included.
# - `test_project.py` holds what the project promises.
run = jp.train("my_project/config.py", "runs/mine", overrides=FIELDS)
print(f"squared error on points without noise: {run.evaluations[-1].metrics['loss']:.4f}")

# A field of your own is a field like all others: described, bounded, overridden, swept and kept with the run.
print(run.config.data.curve.frequency, run.config.connection.mixer)

# ## Predict
#
# The model is a Flax module with the evaluated parameters.
batch = next(iter(run.dataset.evaluation_batches(8)))
print(type(run.model).__name__, {name: array.shape for name, array in batch.items() if hasattr(array, "shape")})
