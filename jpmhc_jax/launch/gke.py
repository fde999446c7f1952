"""A run on Google Kubernetes Engine as a JobSet, TPU slices or GPU nodes; --xpk prints the same for the xpk tool.

  jpmhc launch gke --name=arc1 --image=REGISTRY/jpmhc:1 --build --accelerator=tpu-v5-lite-podslice --topology=4x4 \\
    --hosts=4 --chips=4 --slices=2 -- --config=arc1:cayley --workdir=gs://bucket/arc1 --config.mesh.slices=2
  jpmhc launch gke --name=arc1 --image=REGISTRY/jpmhc:1 --logs     # or --status, --stop

--build makes the image of the current folder by jpmhc_jax/launch/Dockerfile and pushes it under the name. TPU hosts
find each other; GPU pods are told where process 0 is and how many they are, and take their number from the indexed job.
A workdir that is an address needs the right to write there (of --service-account, by workload identity); for any other
the claim named by --volume is mounted at /runs. A pod that is told to stop gets two minutes: the run saves and ends
with 75, and the JobSet starts it again up to --restarts times, where it resumes. Bad input, a loss that is no number
and a full disk (2, 3, 74) end it: they would come again.
"""

import argparse
import pathlib
import shlex
from typing import Any

from jpmhc_jax.core.arguments import line, whole
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.files import to_json
from jpmhc_jax.launch import commands, xla_flags

DOCKERFILE = pathlib.Path(__file__).with_name("Dockerfile")

GRACE_S = 120
FINAL = [2, 3, 74]  # exit codes that a restart does not mend
AGAIN = [69, 75]  # another process died; told to stop, and saved


def manifest(options: argparse.Namespace) -> dict[str, Any]:
  """The JobSet: one job a slice with one pod a host, restarted as a whole."""
  gpu = options.accelerator.startswith("nvidia")
  environment = xla_flags.gpu_environment() if gpu else xla_flags.tpu_environment(options.slices)
  if gpu:
    # The pod's stable name in the JobSet's headless service.
    environment |= {
      "JAX_COORDINATOR_ADDRESS": f"{options.name}-slice-0-0.{options.name}:8476",
      "JAX_NUM_PROCESSES": str(options.hosts),
    }
  environment |= _given(options)
  label = "cloud.google.com/gke-accelerator" if gpu else "cloud.google.com/gke-tpu-accelerator"
  chips = {"nvidia.com/gpu" if gpu else "google.com/tpu": options.chips}
  container = {
    "name": "train",
    "image": options.image,
    "command": commands.train(options.train, {}, program="jpmhc"),
    "env": [{"name": name, "value": value} for name, value in environment.items()],
    **({"envFrom": [{"secretRef": {"name": options.secret}}]} if options.secret else {}),
    "resources": {"requests": chips, "limits": chips},
  }
  volumes: dict[str, Any] = {}
  if not commands.in_store(options.train):
    container["volumeMounts"] = [{"name": "runs", "mountPath": "/runs"}]
    volumes = {"volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": options.volume}}]}
  selector = {label: options.accelerator}
  pod = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": GRACE_S,
    "nodeSelector": selector if gpu else selector | {"cloud.google.com/gke-tpu-topology": options.topology},
    "containers": [container],
    **({"serviceAccountName": options.service_account} if options.service_account else {}),
    **volumes,
  }
  job = {
    "parallelism": options.hosts,
    "completions": options.hosts,
    "completionMode": "Indexed",
    "backoffLimit": 0,
    "podFailurePolicy": {
      "rules": [{"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": FINAL}}]
    },
    "template": {"spec": pod},
  }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {
      "name": options.name,
      "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
    },
    "spec": {
      "failurePolicy": {
        "maxRestarts": options.restarts,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
      },
      "replicatedJobs": [{"name": "slice", "replicas": options.slices, "template": {"spec": job}}],
    },
  }


def xpk(options: argparse.Namespace) -> commands.Command:
  """The call of xpk that creates the same workload; --accelerator is then xpk's own name, such as v5litepod-16."""
  environment = xla_flags.tpu_environment(options.slices) | _given(options)
  train = shlex.join(commands.train(options.train, environment, program="jpmhc"))
  argv = (
    *("xpk", "workload", "create", f"--cluster={options.cluster}", f"--workload={options.name}"),
    *(f"--tpu-type={options.accelerator}", f"--num-slices={options.slices}", f"--docker-image={options.image}"),
    # By itself xpk starts again after 42 and 127-255 only, and gives a pod 30 s.
    *(f"--max-restarts={options.restarts}", f"--restart-on-exit-codes={','.join(map(str, AGAIN))}"),
    *(f"--termination-grace-period-seconds={GRACE_S}", f"--command={train}"),
  )
  return commands.Command("create the workload", argv)


def _given(options: argparse.Namespace) -> dict[str, str]:
  """The variables of --env. Raises ConfigError for one without a value: a manifest is no place for a secret."""
  given = commands.variables(options.env)
  for name, value in given.items():
    if value is None:
      raise ConfigError(
        f"--env={name}: expected {name}=VALUE; keep secrets in a Kubernetes secret and name it: --secret"
      )
  return {name: value for name, value in given.items() if value is not None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  add = parser.add_argument
  add("--name", type=line, required=True)
  add("--image", type=line, required=True)
  add("--build", action="store_true", help="make the image of the current folder first, and push it")
  add("--accelerator", type=line, default="tpu-v5-lite-podslice", help="node label; nvidia-… for GPUs")
  add("--topology", type=line, default="4x4", help="TPU topology of one slice")
  add("--hosts", type=whole(1), default=4, help="pods a slice")
  add("--chips", type=whole(1), default=4, help="TPU chips or GPUs a host")
  add("--slices", type=whole(1), default=1)
  add("--restarts", type=whole(0), default=100)
  add("--volume", type=line, default="runs", help="persistent volume claim, readable and writable by many nodes")
  add("--service-account", type=line, default=None, metavar="NAME", help="Kubernetes account that the pods run under")
  add("--secret", type=line, default=None, metavar="NAME", help="Kubernetes secret with variables, as WANDB_API_KEY")
  add("--xpk", action="store_true", help="create the workload with xpk on --cluster")
  add("--cluster", type=line, default=None, help="for --xpk")
  verbs = parser.add_mutually_exclusive_group()
  verbs.add_argument("--logs", action="store_true", help="show the output of every pod as it comes")
  verbs.add_argument("--status", action="store_true", help="the JobSet and its pods")
  verbs.add_argument(
    "--stop", action="store_true", help="delete the JobSet; the run saves and resumes when created anew"
  )


def building(options: argparse.Namespace) -> list[commands.Command]:
  """The calls that make the image of the current folder and push it under its name."""
  extras = "train,cuda13" if options.accelerator.startswith("nvidia") else "train,tpu"
  extras += ",cloud" if commands.in_store(options.train) else ""
  words = ("docker", "build", f"--tag={options.image}", f"--build-arg=EXTRAS={extras}", "--file=-", ".")
  return [
    commands.Command("build the image", words, stdin=DOCKERFILE.read_text(encoding="utf-8")),
    commands.Command("push it", ("docker", "push", options.image)),
  ]


def plan(options: argparse.Namespace) -> list[commands.Command]:
  """The calls of the option that was given, in order. Raises ConfigError for options that exclude each other."""
  pods = f"--selector=jobset.sigs.k8s.io/jobset-name={options.name}"
  if options.logs:
    return [commands.Command("show the pods' output", ("kubectl", "logs", "--follow", "--prefix", pods))]
  if options.status:
    shown = ("kubectl", "get", "pods", pods)
    return [
      commands.Command("the JobSet", ("kubectl", "get", "jobset", options.name)),
      commands.Command("its pods", shown),
    ]
  if options.stop:
    return [commands.Command("let the run save and end", ("kubectl", "delete", "jobset", options.name))]
  if options.slices > 1 and options.accelerator.startswith("nvidia"):
    raise ConfigError(f"--slices={options.slices}: GPU nodes have no slices; raise --hosts")
  if options.xpk and (not options.cluster or options.accelerator.startswith(("tpu-", "nvidia"))):
    raise ConfigError("--xpk needs --cluster and xpk's own name of a TPU, such as --accelerator=v5litepod-16")
  text = to_json(manifest(options), indent=2)
  submit = commands.Command("create the JobSet", ("kubectl", "apply", "-f", "-"), stdin=text)
  return [*(building(options) if options.build else []), xpk(options) if options.xpk else submit]


def run(options: argparse.Namespace) -> int:
  """Prints or runs the calls; the exit code of the first that failed."""
  return commands.execute(plan(options), options.dry_run)
