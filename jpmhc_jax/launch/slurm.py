"""A run on a SLURM cluster of GPUs: one process a GPU, resumed by itself after preemption and time limits.

  jpmhc launch slurm --nodes=4 --gpus-per-node=8 --time=24:00:00 -- --config=arc1:cayley \\
    --workdir=/shared/runs/arc1 --config.mesh.fsdp=8

Run it in the project's folder on the login node. Two minutes before a limit SLURM sends SIGTERM; the run saves and ends
with exit code 75, and the job puts itself back into the queue. `jpmhc train` reads rank and coordinator from SLURM.
The program is the folder's .venv/bin/jpmhc; with --conda or --container (pyxis) the jpmhc that is installed there.

A process that dies ends the others itself, with 69, so srun need not kill them: it would also kill those that have
saved and end a moment later than the first, and answer 137 in place of 75. Nor does it take over --cpus-per-task.
"""

import argparse
import os
import shlex

from jpmhc_jax.core.arguments import line, whole
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.launch import commands, xla_flags

JOB = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus_per_node}
#SBATCH --gpus-per-node={gpus_per_node}
#SBATCH --cpus-per-task={cpus_per_task}
#SBATCH --time={time}
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.log
{extra}{hooks}set -u
cd {quoted}
srun --label --cpus-per-task={cpus_per_task} --kill-on-bad-exit=0 --wait=60{image} {call}
code=$?
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""
CHOSEN = ("partition", "account", "qos", "constraint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  add = parser.add_argument
  add("--name", type=line, default="jpmhc")
  add("--nodes", type=whole(1), default=1)
  add("--gpus-per-node", type=whole(1), default=8)
  add("--cpus-per-task", type=whole(1), default=8)
  add("--time", type=line, default="24:00:00")
  for name in CHOSEN:
    add(f"--{name}", type=line, default=None, help=f"as sbatch --{name}")
  add("--folder", type=line, default=os.getcwd(), help="checkout with its .venv, on a disk that all nodes see")
  add("--modules", default="", metavar="NAME,…", help="modules to load, such as cuda/13,nccl")
  add("--conda", type=line, default=None, metavar="NAME", help="conda environment with jpmhc-jax in it")
  add("--container", type=line, default=None, metavar="IMAGE", help="image with jpmhc-jax in it, run by pyxis")
  add("--mounts", default="", metavar="FROM:TO,…", help="with --container: folders beside --folder")


def job(options: argparse.Namespace) -> str:
  """The batch script."""
  if options.mounts and not options.container:
    raise ConfigError(f"--mounts={options.mounts}: expected --container beside it")
  environment = commands.variables(options.env)
  chosen = {name: getattr(options, name) for name in CHOSEN}
  extra = [f"#SBATCH --{name}={value}\n" for name, value in chosen.items() if value]
  extra += ["#SBATCH --export=ALL\n"] if None in environment.values() else []  # a name alone comes from here
  program = "jpmhc" if options.conda or options.container else ".venv/bin/jpmhc"
  return JOB.format(
    **vars(options),
    extra="".join(extra),
    hooks="".join(f"{hook}\n" for hook in _hooks(options, environment)),
    quoted=shlex.quote(options.folder),
    image=_container(options),
    call=shlex.join(commands.train(options.train, xla_flags.gpu_environment(), program)),
  )


def _hooks(options: argparse.Namespace, environment: commands.Environment) -> list[str]:
  """Lines in front of the run; they come before `set -u`, which many a module and conda do not stand."""
  modules = [shlex.quote(name.strip()) for name in options.modules.split(",") if name.strip()]
  hooks = [f"module load {' '.join(modules)}"] if modules else []
  if options.conda:
    hooks += ['source "$(conda info --base)/etc/profile.d/conda.sh"', f"conda activate {shlex.quote(options.conda)}"]
  return hooks + [f"export {name}={shlex.quote(value)}" for name, value in environment.items() if value is not None]


def _container(options: argparse.Namespace) -> str:
  """The options of pyxis: the image, the folder at its own place, and what else is mounted."""
  if not options.container:
    return ""
  mounts = [f"{options.folder}:{options.folder}", *filter(None, options.mounts.split(","))]
  words = (f"--container-image={options.container}", f"--container-mounts={','.join(mounts)}")
  return f" {shlex.join((*words, f'--container-workdir={options.folder}'))}"


def run(options: argparse.Namespace) -> int:
  """Submits the job; the exit code of sbatch."""
  return commands.execute([commands.Command("submit the job", ("sbatch",), stdin=job(options))], options.dry_run)
