"""Pods.

Before a run goes to machines that cost money: what does its step need, what commands start it, and what happens when a
machine is taken away? All of it can be asked on a laptop.
"""

import subprocess
import sys

CONFIG = ["--config=arc1:cayley"]
PLAN = ["--plan", "--devices=8", "--config.mesh.fsdp=2"]


def jpmhc(*words):
  print(subprocess.run([sys.executable, "-m", "jpmhc_jax", *words], check=True, capture_output=True, text=True).stdout)


# ## What it needs
#
# `--plan` compiles the step and runs nothing. `--topology=h100:8` or `--topology=v5e:4x4` asks the compilers of
# machines that are not here; on CPU devices, as below, the sizes of parameters and optimiser are those of any device.
jpmhc("train", *CONFIG, *PLAN)

# ## What starts it
#
# A launcher prints its commands with `--dry-run`. Behind `--` stands what `jpmhc train` takes.
jpmhc("launch", "slurm", "--nodes=2", "--qos=high", "--dry-run", "--", *CONFIG, "--workdir=/shared/runs/arc1")
jpmhc(
  "launch",
  "tpu",
  "--name=arc1",
  "--zone=europe-west4-b",
  "--spot",
  "--watch",
  "--dry-run",
  "--",
  *CONFIG,
  "--workdir=/mnt/arc1",
)

# ## What ends it
#
# SIGTERM, which clusters send before they take machines, makes all processes save the same step and end with 75; the
# job puts itself back into the queue, and on TPUs `--watch` asks for new machines. A restart may have another number of
# devices: the examples are the same, only the order of sums differs. A process that dies ends the others with 69, and
# the same happens.
