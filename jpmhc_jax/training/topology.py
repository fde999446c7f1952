"""Devices that are not here: TPU slices and GPUs that a step can be compiled for on any machine with their compiler."""

import dataclasses
import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from jpmhc_jax.core.errors import ConfigError

# Without these libtpu asks the metadata server of a TPU VM who and where it is, and takes the chips of this machine for
# itself, or waits for who has them; the CUDA plugin looks for a driver.
_ELSEWHERE = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}


@dataclasses.dataclass(frozen=True)
class _Gpu:
  """What XLA asks of a GPU, from NVIDIA's data sheets; sizes in bytes, clock in GHz, bandwidth in bytes a second."""

  name: str
  capability: tuple[int, int]
  cores: int
  lanes: int  # of float32 a core
  clock: float
  bandwidth: int
  memory: int
  l2: int
  shared: int  # memory of a core; a block can have all but one KiB

  @property
  def target(self) -> str:
    """A `GpuTargetConfigProto` in text form."""
    major, minor = self.capability
    return f"""
      gpu_device_info {{
        threads_per_block_limit: 1024
        threads_per_warp: 32
        threads_per_core_limit: 2048
        shared_memory_per_block: {48 << 10}
        shared_memory_per_core: {self.shared}
        shared_memory_per_block_optin: {self.shared - 1024}
        registers_per_core_limit: {1 << 16}
        registers_per_block_limit: {1 << 16}
        core_count: {self.cores}
        fpus_per_core: {self.lanes}
        block_dim_limit_x: {2**31 - 1}
        block_dim_limit_y: {2**16 - 1}
        block_dim_limit_z: {2**16 - 1}
        memory_bandwidth: {self.bandwidth}
        device_memory_size: {self.memory}
        l2_cache_size: {self.l2}
        clock_rate_ghz: {self.clock}
        cuda_compute_capability {{ major: {major} minor: {minor} }}
      }}
      platform_name: "CUDA"
      dnn_version_info {{ major: 9 minor: 8 }}
      device_description_str: "{self.name}"
    """


_GPUS = {
  "a100": _Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 2_039 * 10**9, 80 << 30, 40 << 20, 164 << 10),
  "h100": _Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 3_352 * 10**9, 80 << 30, 50 << 20, 228 << 10),
  "h200": _Gpu("NVIDIA H200", (9, 0), 132, 128, 1.98, 4_800 * 10**9, 141 << 30, 50 << 20, 228 << 10),
}


def devices_of(topology: str, slices: int = 1) -> list[jax.Device]:
  """The devices of a topology by its name: TPUs as 'v5e:4x4' or 'v4:2x2x2', GPUs of one machine as 'h100' or 'h100:8'.

  `slices` of a TPU topology side by side. The devices can be compiled for and hold nothing. Raises ConfigError without
  the compiler, libtpu or JAX's CUDA plugin, or for a name that it does not know.
  """
  for name, value in _ELSEWHERE.items():
    os.environ.setdefault(name, value)
  gpu = re.fullmatch(rf"({'|'.join(_GPUS)})(?::([1-9]\d*))?", topology)
  if gpu:
    return _gpus(topology, _GPUS[gpu[1]], int(gpu[2] or 1))
  if importlib.util.find_spec("libtpu") is None:
    raise ConfigError(f"--topology={topology}: expected libtpu, the TPU compiler; install it: pip install libtpu")
  several = {"num_slices": slices} if slices > 1 else {}
  try:
    return list(topologies.get_topology_desc(topology_name=topology, platform="tpu", **several).devices)
  except (RuntimeError, ValueError) as error:
    raise ConfigError(
      f"--topology={topology}: expected TPUs such as v5e:4x4, v6e:8x8, v5p:2x2x2 or v4:2x2x2, or GPUs of a machine, "
      f"{', '.join(_GPUS)} or h100:8 ({str(error).splitlines()[0]})"
    ) from error


def _gpus(topology: str, gpu: _Gpu, count: int) -> list[jax.Device]:
  if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
    raise ConfigError(
      f"--topology={topology}: expected JAX's CUDA plugin, which compiles without a GPU too; install it: "
      "pip install 'jax[cuda13]'"
    )
  try:
    found = topologies.get_topology_desc(gpu.name, "cuda", topology=f"1x1x{count}", target_config=gpu.target)
  except RuntimeError as error:
    raise ConfigError(
      f"--topology={topology}: expected a CUDA plugin of jax {jax.__version__} that describes GPUs which are elsewhere "
      f"({str(error).splitlines()[0]})"
    ) from error
  return list(found.devices)
