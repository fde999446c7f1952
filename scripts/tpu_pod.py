"""A run on a Cloud TPU VM, pod or several slices of one, by a queued resource.

  python -m scripts.tpu_pod --name=arc1 --zone=europe-west4-b --accelerator-type=v5litepod-64 --spot -- \\
    --config=arc1:cayley --workdir=/mnt/runs/arc1 --config.mesh.fsdp=8

Asks for the machines, waits until they are there, installs the committed code on every host and trains on all of them:
`jpmhc train` finds rank and coordinator in the TPU's metadata. The same command resumes (the resource and the
installation are kept); --delete gives the machines back, and comes first where the resource was preempted (SUSPENDED).
uv brings Python: that of the images is older than 3.11. The workdir must be a folder that all hosts see, such as a
mounted Filestore share.
"""

import argparse
from collections.abc import Sequence
import shlex
import sys

from jpmhc_jax.core.arguments import line, whole
from scripts import commands, xla_flags

ARCHIVE = "jpmhc_jax.tar.gz"
INSTALL = (
  f"rm -rf jpmhc_jax && mkdir jpmhc_jax && tar xzf {ARCHIVE} -C jpmhc_jax && cd jpmhc_jax"
  " && curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv --quiet --python=3.13 .venv"
  " && ~/.local/bin/uv pip install --quiet --python=.venv/bin/python -e '.[tpu]'"
)


def plan(options: argparse.Namespace) -> list[commands.Command]:
  """The gcloud calls, in order."""
  where = (f"--zone={options.zone}", *([f"--project={options.project}"] if options.project else []))
  queued = ("gcloud", "compute", "tpus", "queued-resources")
  vm = ("gcloud", "compute", "tpus", "tpu-vm")
  if options.delete:
    return [commands.Command("give the machines back", (*queued, "delete", options.name, *where, "--force", "--quiet"))]
  names = [options.name] if options.slices == 1 else [f"{options.name}-{k}" for k in range(options.slices)]
  nodes = [f"--node-id={options.name}"]
  if options.slices > 1:
    nodes = [f"--node-count={options.slices}", f"--node-prefix={options.name}"]
  machine = (f"--accelerator-type={options.accelerator_type}", f"--runtime-version={options.runtime_version}")
  create = shlex.join((*queued, "create", options.name, *where, *nodes, *machine, *(["--spot"] * options.spot)))
  state = shlex.join((*queued, "describe", options.name, *where, "--format=value(state.state)"))
  start = f"cd jpmhc_jax && exec {shlex.join(commands.train(options.train, xla_flags.tpu_environment(options.slices)))}"
  ssh = [(*vm, "ssh", name, *where, "--worker=all") for name in names]
  return [
    commands.Command("ask for the machines, unless they are there", ("bash", "-c", f"{state} || {create}")),
    commands.Command(
      "wait until all of them are up",
      (
        "bash",
        "-c",
        f'until [ "$({state})" = ACTIVE ]; do case "$({state})" in FAILED|SUSPENDED) exit 1;; esac; sleep 30; done',
      ),
    ),
    commands.Command("pack the committed code", ("git", "archive", "--format=tar.gz", f"--output={ARCHIVE}", "HEAD")),
    *(
      commands.Command(f"copy it to every host of {name}", (*vm, "scp", ARCHIVE, f"{name}:", *where, "--worker=all"))
      for name in names
    ),
    *(
      commands.Command(f"install it on every host of {name}", (*call, f"--command={INSTALL}"))
      for name, call in zip(names, ssh, strict=True)
    ),
    _train_on(ssh, start),
  ]


def _train_on(ssh: Sequence[tuple[str, ...]], start: str) -> commands.Command:
  """Trains on all hosts; on several slices at once, and the first failure is the exit code."""
  calls = [(*call, f"--command={start}") for call in ssh]
  if len(calls) == 1:
    return commands.Command("train on every host", calls[0])
  script = " & ".join(map(shlex.join, calls)) + " & for job in $(jobs -p); do wait $job || exit; done"
  return commands.Command("train on every host of every slice", ("bash", "-c", script))


def main(arguments: Sequence[str] | None = None) -> int:
  parser = commands.parser(__doc__)
  parser.add_argument("--name", type=line, required=True)
  parser.add_argument("--zone", type=line, required=True)
  parser.add_argument("--project", type=line, default=None)
  parser.add_argument("--accelerator-type", type=line, default="v5litepod-16")
  parser.add_argument("--runtime-version", type=line, default="v2-alpha-tpuv5-lite")
  parser.add_argument("--slices", type=whole(1), default=1, help="add --config.mesh.slices with the same number")
  parser.add_argument("--spot", action="store_true")
  parser.add_argument("--delete", action="store_true", help="delete the queued resource and its machines")
  options = parser.parse_args(arguments)
  return commands.execute(plan(options), options.dry_run)


if __name__ == "__main__":
  sys.exit(main())
