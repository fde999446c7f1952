"""A run on Google Kubernetes Engine as a JobSet, TPU slices or GPU nodes; --xpk prints the same for the xpk tool.

  python -m scripts.gke --name=arc1 --image=REGISTRY/jpmhc:1 --accelerator=tpu-v5-lite-podslice --topology=4x4 \\
    --hosts=4 --chips=4 --slices=2 -- --config=arc1:cayley --workdir=/runs/arc1 --config.mesh.slices=2

The image holds the installed package. TPU hosts find each other; GPU pods are told where process 0 is and how many they
are, and take their number from the indexed job. The claim named by --volume is mounted at /runs. A pod that is told to
stop gets two minutes: the run saves and ends with 75, and the JobSet starts it again up to --restarts times, where it
resumes. Bad input, a loss that is no number and a full disk (2, 3, 74) end it: they would come again.
"""

import argparse
from collections.abc import Sequence
import json
import shlex
import sys
from typing import Any

from jpmhc_jax.core.arguments import line, whole
from scripts import commands, xla_flags

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
  label = "cloud.google.com/gke-accelerator" if gpu else "cloud.google.com/gke-tpu-accelerator"
  chips = {"nvidia.com/gpu" if gpu else "google.com/tpu": options.chips}
  container = {
    "name": "train",
    "image": options.image,
    "command": commands.train(options.train, {}, program="jpmhc"),
    "env": [{"name": name, "value": value} for name, value in environment.items()],
    "resources": {"requests": chips, "limits": chips},
    "volumeMounts": [{"name": "runs", "mountPath": "/runs"}],
  }
  selector = {label: options.accelerator}
  pod = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": GRACE_S,
    "nodeSelector": selector if gpu else selector | {"cloud.google.com/gke-tpu-topology": options.topology},
    "containers": [container],
    "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": options.volume}}],
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
  train = shlex.join(commands.train(options.train, xla_flags.tpu_environment(options.slices), program="jpmhc"))
  argv = (
    *("xpk", "workload", "create", f"--cluster={options.cluster}", f"--workload={options.name}"),
    *(f"--tpu-type={options.accelerator}", f"--num-slices={options.slices}", f"--docker-image={options.image}"),
    # By itself xpk starts again after 42 and 127-255 only, and gives a pod 30 s.
    *(f"--max-restarts={options.restarts}", f"--restart-on-exit-codes={','.join(map(str, AGAIN))}"),
    *(f"--termination-grace-period-seconds={GRACE_S}", f"--command={train}"),
  )
  return commands.Command("create the workload", argv)


def main(arguments: Sequence[str] | None = None) -> int:
  parser = commands.parser(__doc__)
  parser.add_argument("--name", type=line, required=True)
  parser.add_argument("--image", type=line, required=True)
  parser.add_argument("--accelerator", type=line, default="tpu-v5-lite-podslice", help="node label; nvidia-… for GPUs")
  parser.add_argument("--topology", type=line, default="4x4", help="TPU topology of one slice")
  parser.add_argument("--hosts", type=whole(1), default=4, help="pods a slice")
  parser.add_argument("--chips", type=whole(1), default=4, help="TPU chips or GPUs a host")
  parser.add_argument("--slices", type=whole(1), default=1)
  parser.add_argument("--restarts", type=whole(0), default=100)
  parser.add_argument(
    "--volume", type=line, default="runs", help="persistent volume claim, readable and writable by many nodes"
  )
  parser.add_argument("--xpk", action="store_true", help="create the workload with xpk on --cluster")
  parser.add_argument("--cluster", type=line, default=None, help="for --xpk")
  options = parser.parse_args(arguments)
  if options.slices > 1 and options.accelerator.startswith("nvidia"):
    parser.error(f"--slices={options.slices}: GPU nodes have no slices; raise --hosts")
  if options.xpk:
    if not options.cluster or options.accelerator.startswith(("tpu-", "nvidia")):
      parser.error("--xpk needs --cluster and xpk's own name of a TPU, such as --accelerator=v5litepod-16")
    return commands.execute([xpk(options)], options.dry_run)
  text = json.dumps(manifest(options), indent=2)
  submit = commands.Command("create the JobSet", ("kubectl", "apply", "-f", "-"), stdin=text)
  return commands.execute([submit], options.dry_run)


if __name__ == "__main__":
  sys.exit(main())
