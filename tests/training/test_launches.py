"""What the launchers of clusters leave in the environment, and what a process makes of it."""

import pytest

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.training.hosts.launches import detect, first_host, hosts, Launch

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


def test_the_gpu_of_a_task_follows_the_tasks_of_its_own_node():
  uneven = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4,2(x2)", "CUDA_VISIBLE_DEVICES": "0,1"}
  assert [detect(uneven | {"SLURM_NODEID": node}).local_devices for node in "012"] == [None, (1,), (1,)]


@pytest.mark.parametrize(("text", "count"), [("4(x2)", 8), ("4(x2),1", 9), ("3,2", 5), ("8", 8)])
def test_tasks_are_counted_in_slurms_notation(text, count):
  for change in ({"SLURM_STEP_NUM_TASKS": text}, {"SLURM_STEP_NUM_TASKS": "", "SLURM_NTASKS": text}):
    assert detect(SLURM | {"SLURM_PROCID": "2"} | change).processes == count


# Beside each: what `scontrol show hostnames` prints.
@pytest.mark.parametrize(
  ("nodes", "expected"),
  [
    ("gpu003", "gpu003"),
    ("a1,b[2-3]", "a1 b2 b3"),
    ("gpu[003-005,9],login", "gpu003 gpu004 gpu005 gpu9 login"),
    ("n[1,3].local", "n1.local n3.local"),
    ("rack[1-2]node[09-10]", "rack1node09 rack1node10 rack2node09 rack2node10"),
    ("rack[0-1]_blade[0-1]", "rack0_blade0 rack0_blade1 rack1_blade0 rack1_blade1"),
    ("c[01-02]n1,d[8-10]x,e", "c01n1 c02n1 d8x d9x d10x e"),
    ("n[098-101]", "n098 n099 n100 n101"),
    ("n[1][2]", "n12"),
  ],
)
def test_a_slurm_node_list_is_expanded_as_scontrol_does(nodes, expected):
  assert list(hosts(nodes)) == expected.split()
  assert first_host(nodes) == expected.split()[0]


def test_the_first_host_of_a_vast_node_list_takes_no_time():
  assert first_host("n[0-999999999]x[0-999999999]") == "n0x0"


@pytest.mark.parametrize("nodes", ["", ",a", "n[", "n]", "n[]", "n[1-]", "n[2-1]", "n[a-b]", "n[1[2]]", "n[-1]"])
def test_what_is_no_node_list_is_refused_in_words(nodes):
  with pytest.raises(ConfigError, match="SLURM_STEP_NODELIST=.*expected"):
    list(hosts(nodes))


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"])
@pytest.mark.parametrize("value", ["x", "4(x)", "-1", "1.5", "4(x2", "\N{SUPERSCRIPT TWO}"])
def test_slurm_variables_that_make_no_sense_are_refused_by_name(name, value):
  with pytest.raises(ConfigError, match=f"{name}=.*expected"):
    detect(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3", name: value})


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
    ({"JAX_NUM_PROCESSES": "\N{SUPERSCRIPT TWO}"}, "expected a whole number"),
    ({"JAX_COORDINATOR_ADDRESS": "host"}, "expected host:port"),
    ({"JAX_COORDINATOR_ADDRESS": "host:65536"}, "expected host:port"),
    ({"JAX_COORDINATOR_ADDRESS": ":1"}, "expected host:port"),
  ],
)
def test_variables_that_make_no_sense_are_refused_by_name(change, message):
  with pytest.raises(ConfigError, match=message):
    detect(PLAIN | change)
