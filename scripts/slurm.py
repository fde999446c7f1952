"""A run on a SLURM cluster of GPUs: one process a GPU, resumed by itself after preemption and time limits.

  python -m scripts.slurm --nodes=4 --gpus-per-node=8 --time=24:00:00 -- --config=arc1:cayley \\
    --workdir=/shared/runs/arc1 --config.mesh.fsdp=8

Run it in the project's folder on the login node. Two minutes before a limit SLURM sends SIGTERM; the run saves and ends
with exit code 75, and the job puts itself back into the queue. `jpmhc train` reads rank and coordinator from SLURM.

A process that dies ends the others itself, with 69, so srun need not kill them: it would also kill those that have
saved and end a moment later than the first, and answer 137 in place of 75. Nor does it take over --cpus-per-task.
"""

from collections.abc import Sequence
import os
import shlex
import sys

from jpmhc_jax.core.arguments import line, whole
from scripts import commands, xla_flags

JOB = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.log
{extra}set -u
cd {folder}
srun --label --cpus-per-task={cpus} --kill-on-bad-exit=0 --wait=60 {train}
code=$?
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def main(arguments: Sequence[str] | None = None) -> int:
  parser = commands.parser(__doc__)
  parser.add_argument("--name", type=line, default="jpmhc")
  parser.add_argument("--nodes", type=whole(1), default=1)
  parser.add_argument("--gpus-per-node", type=whole(1), default=8)
  parser.add_argument("--cpus-per-task", type=whole(1), default=8)
  parser.add_argument("--time", type=line, default="24:00:00")
  parser.add_argument("--partition", type=line, default=None)
  parser.add_argument("--account", type=line, default=None)
  parser.add_argument(
    "--folder", type=line, default=os.getcwd(), help="checkout with its .venv, on a disk that all nodes see"
  )
  options = parser.parse_args(arguments)
  chosen = {"partition": options.partition, "account": options.account}
  job = JOB.format(
    name=options.name,
    nodes=options.nodes,
    gpus=options.gpus_per_node,
    cpus=options.cpus_per_task,
    time=options.time,
    extra="".join(f"#SBATCH --{name}={value}\n" for name, value in chosen.items() if value),
    folder=shlex.quote(options.folder),
    train=shlex.join(commands.train(options.train, xla_flags.gpu_environment())),
  )
  return commands.execute([commands.Command("submit the job", ("sbatch",), stdin=job)], options.dry_run)


if __name__ == "__main__":
  sys.exit(main())
