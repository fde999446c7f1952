"""What the launchers of clusters leave in the environment, and what a process makes of it."""

import pytest

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.training.launches import detect, first_host, Launch

PLAIN = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
  "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5",
  "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[003-004]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}  # fmt: skip


def test_a_process_on_its_own():
  assert detect({}) is None
  assert detect(PLAIN | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
  assert detect(SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_plain_variables_come_before_every_cluster():
  assert detect(PLAIN | SLURM, tpu_vm=True) == Launch("environment", "10.0.0.1:1234", 4, 3)


def test_an_indexed_kubernetes_job_gives_the_process_number():
  job = {name: PLAIN[name] for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES")} | {"JOB_COMPLETION_INDEX": "2"}
  assert detect(job) == Launch("environment", "10.0.0.1:1234", 4, 2)
  pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}
  assert detect(pod, kubernetes_client=True) == Launch("kubernetes")
  with pytest.raises(ConfigError, match="JOB_COMPLETION_INDEX=2: .* set JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES"):
    detect(pod)
  assert detect(pod | {"JAX_NUM_PROCESSES": "1"}) is None


def test_a_slurm_step_of_several_tasks():
  launch = detect(SLURM)
  assert (launch.source, launch.processes, launch.index, launch.local_devices) == ("slurm", 8, 5, None)
  host, port = launch.coordinator.split(":")
  assert host == "gpu003" and 61440 <= int(port) <= 65535
  assert detect(SLURM | {"SLURM_STEP_ID": "1"}).coordinator != launch.coordinator  # two steps of one job
  assert detect({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}) is None  # the batch script itself


@pytest.mark.parametrize(("visible", "taken"), [("0,1,2,3", (1,)), ("2", None), ("", None)])
def test_slurm_tasks_that_see_all_gpus_of_a_node_take_one_each(visible, taken):
  assert detect(SLURM | {"CUDA_VISIBLE_DEVICES": visible}).local_devices == taken


@pytest.mark.parametrize(
  ("nodes", "host"),
  [("gpu003", "gpu003"), ("a1,b[2-3]", "a1"), ("gpu[003-007,9],x", "gpu003"), ("n[1,3].local", "n1.local")],
)
def test_the_first_host_of_a_slurm_node_list(nodes, host):
  assert first_host(nodes) == host


@pytest.mark.parametrize(
  "environ", [{"TPU_WORKER_HOSTNAMES": "a,b"}, {"MEGASCALE_COORDINATOR_ADDRESS": "a"}, {"TPU_WORKER_HOSTNAMES": "a"}]
)
def test_a_tpu_slice_is_left_to_jax(environ):
  assert detect(environ, tpu_vm=environ.get("TPU_WORKER_HOSTNAMES") == "a") == Launch("tpu")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID is not set, but"),
    ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two': expected a whole number"),
    ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4: expected 0 to JAX_NUM_PROCESSES - 1 = 3"),
    ({"JAX_COORDINATOR_ADDRESS": "host"}, "expected host:port"),
  ],
)
def test_variables_that_make_no_sense_are_refused_by_name(change, message):
  with pytest.raises(ConfigError, match=message):
    detect(PLAIN | change)
