"""A run on a Cloud TPU VM, pod or several slices of one, by a queued resource.

  jpmhc launch tpu --name=arc1 --zone=europe-west4-b --accelerator-type=v5litepod-64 --spot -- \\
    --config=arc1:cayley --workdir=gs://bucket/runs/arc1 --config.mesh.fsdp=8
  jpmhc launch tpu --name=arc1 --zone=europe-west4-b --logs     # or --status, --stop, --delete

Asks for the machines, waits until they are there, copies the committed files to every host, installs jpmhc-jax (the
checkout, where it is one) and trains on all of them: `jpmhc train` finds rank and coordinator in the TPU's metadata.
The run belongs to the hosts, not to the ssh session: what is shown is the log of the first host, and Ctrl-C or a
dropped line ends the showing only. --stop sends SIGTERM: the run saves and ends with 75. The same command resumes (the
resource and the installation are kept).

--watch stays and looks every minute: a preempted resource is deleted, asked for anew and trained on from the last
checkpoint, until the run has ended with 0, or with 2, 3 or 74, which would come again. --delete gives the machines
back. uv brings Python: that of the images is older than 3.11. The workdir is an address to which
the machines' service account has access, or a folder that all hosts see, such as a mounted Filestore share.
"""

import argparse
from collections.abc import Callable, Sequence
import contextlib
import shlex
import subprocess
import sys
import time

from jpmhc_jax.core.arguments import line, whole
from jpmhc_jax.launch import commands, xla_flags
from jpmhc_jax.launch.gke import FINAL

ARCHIVE, VARIABLES = "jpmhc_jax.tar.gz", "jpmhc_jax.env"
# Of the run on a host: run.pid is its process, run.log its output, run.exit its exit code once it has ended.
RUNS = '[ -f run.pid ] && [ ! -f run.exit ] && kill -0 "$(cat run.pid)" 2>/dev/null'
INSTALL = (
  f"(cd jpmhc_jax 2>/dev/null && {RUNS}) ||"
  f" (rm -rf jpmhc_jax && mkdir jpmhc_jax && tar xzf {ARCHIVE} -C jpmhc_jax && cd jpmhc_jax"
  " && curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv --quiet --python=3.13 .venv"
  " && if [ -d jpmhc_jax ]; then package='-e .'; else package=jpmhc-jax; fi"
  ' && ~/.local/bin/uv pip install --quiet --python=.venv/bin/python $package"[{extras}]")'
)
DETACHED = (
  "if {runs}; then echo it runs already; else rm -f run.exit run.pid; touch run.env;"
  " setsid nohup bash -c {inner} >> run.log 2>&1 < /dev/null & until [ -f run.pid ]; do sleep 0.1; done; fi"
)
INNER = "set -a; . ./run.env; set +a; {call} & echo $! > run.pid; wait $!; echo $? > run.exit"
FOLLOW = (
  'tail -n +1 -F --pid="$(cat run.pid)" run.log; until [ -f run.exit ]; do sleep 0.1; done; exit "$(cat run.exit)"'
)
STATUS = f"if {RUNS}; then echo it runs; else echo it ended with exit code $(cat run.exit); fi; tail -n 1 run.log"
STOP = f'if {RUNS}; then kill -TERM "$(cat run.pid)"; else echo it runs no more; fi'
LOOK_EVERY_S = 60.0
LOST = ("FAILED", "SUSPENDED", "")  # states of a resource that trains no more; "": there is none


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  add = parser.add_argument
  add("--name", type=line, required=True)
  add("--zone", type=line, required=True)
  add("--project", type=line, default=None)
  add("--accelerator-type", type=line, default="v5litepod-16")
  add("--runtime-version", type=line, default="v2-alpha-tpuv5-lite")
  add("--slices", type=whole(1), default=1, help="add --config.mesh.slices with the same number")
  add("--spot", action="store_true")
  verbs = parser.add_mutually_exclusive_group()
  verbs.add_argument("--watch", action="store_true", help="stay, and start again on new machines after a preemption")
  verbs.add_argument("--logs", action="store_true", help="show the log of the first host until the run ends")
  verbs.add_argument("--status", action="store_true", help="the state of the resource, and of the run on every host")
  verbs.add_argument("--stop", action="store_true", help="let the run save and end; the machines stay")
  verbs.add_argument("--delete", action="store_true", help="delete the queued resource and its machines")


class Pod:
  """The gcloud calls of one queued resource, as its options describe it."""

  def __init__(self, options: argparse.Namespace):
    self.options = options
    self.where = (f"--zone={options.zone}", *([f"--project={options.project}"] if options.project else []))
    self.queued = ("gcloud", "compute", "tpus", "queued-resources")
    self.vm = ("gcloud", "compute", "tpus", "tpu-vm")
    one = options.slices == 1
    self.names = [options.name] if one else [f"{options.name}-{k}" for k in range(options.slices)]
    self.state = (*self.queued, "describe", options.name, *self.where, "--format=value(state.state)")
    self.delete = commands.Command(
      "give the machines back", (*self.queued, "delete", options.name, *self.where, "--force", "--quiet")
    )

  def on(self, name: str, script: str, worker: str = "all") -> tuple[str, ...]:
    """The call that runs a line of shell on the hosts of one slice, in the folder of the code."""
    return (*self.vm, "ssh", name, *self.where, f"--worker={worker}", f"--command=cd jpmhc_jax && {script}")

  def first(self, why: str, script: str) -> commands.Command:
    """A line of shell on the host of process 0."""
    return commands.Command(why, self.on(self.names[0], script, worker="0"))

  def everywhere(self, why: str, script: str) -> list[commands.Command]:
    """A line of shell on every host, one call a slice."""
    return [commands.Command(f"{why} {name}", self.on(name, script)) for name in self.names]

  def copies(self, why: str, source: str, target: str = "") -> list[commands.Command]:
    """A file of this machine on every host, one call a slice."""
    scp = lambda name: (*self.vm, "scp", source, f"{name}:{target}", *self.where, "--worker=all")  # noqa: E731
    return [commands.Command(f"{why} {name}", scp(name)) for name in self.names]

  def machines(self) -> list[commands.Command]:
    """From nothing to hosts with the code installed."""
    options, state = self.options, shlex.join(self.state)
    nodes = [f"--node-id={options.name}"]
    if options.slices > 1:
      nodes = [f"--node-count={options.slices}", f"--node-prefix={options.name}"]
    machine = (f"--accelerator-type={options.accelerator_type}", f"--runtime-version={options.runtime_version}")
    create = (*self.queued, "create", options.name, *self.where, *nodes, *machine, *(["--spot"] * options.spot))
    wait = f'until [ "$({state})" = ACTIVE ]; do case "$({state})" in FAILED|SUSPENDED) exit 1;; esac; sleep 30; done'
    ask = f"{state} || {shlex.join(create)}"
    install = INSTALL.replace("{extras}", "train,tpu,cloud" if commands.in_store(options.train) else "train,tpu")
    return [
      commands.Command("ask for the machines, unless they are there", ("bash", "-c", ask)),
      commands.Command("wait until all of them are up", ("bash", "-c", wait)),
      commands.Command("pack the committed code", ("git", "archive", "--format=tar.gz", f"--output={ARCHIVE}", "HEAD")),
      *self.copies("copy it to every host of", ARCHIVE),
      *(
        commands.Command(
          f"install it on every host of {name}",
          (*self.vm, "ssh", name, *self.where, "--worker=all", f"--command={install}"),
        )
        for name in self.names
      ),
    ]

  def training(self) -> list[commands.Command]:
    """Starts the run on every host; it outlives the session."""
    given = commands.variables(self.options.env)
    lines = [f"{name}={shlex.quote(value if value is not None else f'${name}')}\n" for name, value in given.items()]
    write = ("bash", "-c", f"umask 077 && cat > {VARIABLES}")
    call = shlex.join(commands.train(self.options.train, xla_flags.tpu_environment(self.options.slices)))
    return [
      *([commands.Command("write the variables down", write, "".join(lines), expands=True)] if lines else []),
      *(self.copies("hand them to every host of", VARIABLES, "jpmhc_jax/run.env") if lines else []),
      *([commands.Command("and keep no copy here", ("rm", VARIABLES))] if lines else []),
      *self.everywhere("train on every host of", detached(call)),
    ]


def detached(call: str) -> str:
  """The line of shell that starts a call which goes on without the shell; see RUNS for the files that tell of it."""
  return DETACHED.format(runs=RUNS, inner=shlex.quote(INNER.format(call=call)))


def plan(options: argparse.Namespace) -> list[commands.Command]:
  """The gcloud calls of the option that was given, in order."""
  pod = Pod(options)
  follow = pod.first("show the log until the run ends", FOLLOW)
  if options.delete:
    return [pod.delete]
  if options.logs:
    return [follow]
  if options.status:
    return [commands.Command("the state of the resource", pod.state), *pod.everywhere("the run on", STATUS)]
  if options.stop:
    return pod.everywhere("let the run save and end on", STOP)
  return [*pod.machines(), *pod.training(), *([] if options.watch else [follow])]


def watch(options: argparse.Namespace, sleep: Callable[[float], None] = time.sleep) -> int:
  """Keeps the run going on new machines until it has ended; its exit code."""
  pod, ended = Pod(options), shlex.join(Pod(options).first("", "cat run.exit").argv)
  commands.execute(plan(options), dry_run=False)
  while True:
    sleep(LOOK_EVERY_S)
    state = _output(pod.state)
    if state in LOST:
      _say(f"the machines are gone ({state or 'no resource'}): asking for new ones")
      commands.execute([*([pod.delete] if state else []), *plan(options)], dry_run=False)
    elif state == "ACTIVE" and (code := _output(("bash", "-c", ended))):
      if int(code) in (0, *FINAL):
        _say(f"the run ended with exit code {code}; jpmhc launch tpu --delete gives the machines back")
        return int(code)
      _say(f"the run ended with exit code {code}: starting it again")
      commands.execute(pod.training(), dry_run=False)


def _output(call: Sequence[str]) -> str:
  """What a call prints; '' where it fails, as on machines that are being taken away."""
  with contextlib.suppress(OSError):
    ended = subprocess.run(call, capture_output=True, text=True, check=False)
    return ended.stdout.strip() if not ended.returncode else ""
  return ""


def _say(words: str) -> None:
  print(words, file=sys.stderr, flush=True)


def run(options: argparse.Namespace) -> int:
  """Prints or runs the calls; the exit code of the first that failed, of the run where it is shown or watched."""
  if options.watch and not options.dry_run:
    return watch(options)
  return commands.execute(plan(options), options.dry_run)
