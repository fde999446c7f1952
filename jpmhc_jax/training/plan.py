"""The plan of a run: memory and operations of its step, compiled ahead of time for its mesh; nothing is allocated.

The devices may be TPU slices and GPUs that are not here: a step is compiled for them on any machine that has their
compiler (`devices_of`).
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from jpmhc_jax.config import load as configs
from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.data import Dataset
from jpmhc_jax.models.attention import method
from jpmhc_jax.training.mesh import make_mesh
from jpmhc_jax.training.state import prepare, Setup
from jpmhc_jax.training.step import make_train_step
from jpmhc_jax.training.telemetry import flops_per_step

# Memory of one JAX device in GiB from the vendors' data sheets, for devices that are not here to tell; matched by
# prefix, longest first. A TPU v2, v3 or v7 device is one core, half a chip.
MEMORY_GIB = {
  "TPU v2": 8.0, "TPU v3": 16.0, "TPU v4": 32.0, "TPU v5 lite": 16.0, "TPU v5": 95.0, "TPU v6 lite": 32.0,
  "TPU7x": 96.0, "NVIDIA A100-SXM4-80GB": 80.0, "NVIDIA H100 80GB HBM3": 80.0, "NVIDIA H200": 141.0,
}  # fmt: skip

# From little recomputation to much.
POLICIES = ("none", "products", "coefficients", "block", "call")


@dataclasses.dataclass(frozen=True)
class Need:
  """Bytes on one device, and operations of a step over all devices.

  state: bytes of parameters, average (EMA), optimizer, table, carry, buffers and of the batches that wait
  on the device (at work, the one before, the next). temporaries: activations
  kept for the backward pass and everything else that lives within the step. code: the compiled program.
  model_flops: matrix products of the model. executed_flops: with what is recomputed; both see every turn of a loop.
  compiler_flops: XLA's own count on one device, elementwise work included and loop bodies once. A compiler that knows
  its device, as that of TPUs, ends when the step does not fit: then compiles is False, temporaries is what it asked
  for, code is 0 and compiler_flops is None.
  """

  state: dict[str, int]
  temporaries: int
  code: int
  model_flops: int
  executed_flops: int
  compiler_flops: float | None
  compile_s: float
  compiles: bool = True

  @property
  def total(self) -> int:
    """Bytes on one device, all parts together."""
    return sum(self.state.values()) + self.temporaries + self.code

  def fits(self, memory: int) -> bool:
    """Whether it fits so many bytes of one device."""
    return self.compiles and self.total <= memory


@dataclasses.dataclass(frozen=True)
class Change:
  """Another setting of one or several fields, and what the run would then need."""

  fields: dict[str, Any]
  need: Need


@dataclasses.dataclass(frozen=True)
class Plan:
  """The need of a config. memory: bytes of one device, None when unknown. changes: measured when it does not fit.

  attention: how it is computed, '' for a model without.
  """

  mesh: dict[str, int]
  device_kind: str
  parameters: int
  need: Need
  memory: int | None
  attention: str
  changes: tuple[Change, ...]

  @property
  def fits(self) -> bool | None:
    """Whether the need fits one device; None where its memory is unknown."""
    return None if self.memory is None else self.need.fits(self.memory)


def make_plan(
  config: schema.Config,
  dataset: Dataset,
  memory: int | None = None,
  devices: Sequence[jax.Device] | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> Plan:
  """Compiles the real step on abstract arrays. `memory` of one device in bytes: by default what the device says it has.

  When it does not fit, every single change that could help, and at last all of them together, is compiled too: the
  effects are measured, not estimated. `devices` need not be here (see `devices_of`); `say` hears what is compiled.
  """
  setup = prepare(config, dataset, make_mesh(config.mesh, devices))
  device = setup.mesh.devices.ravel()[0]
  memory = memory or memory_of(device)
  say(f"compiling the step for {setup.mesh.size} × {device.device_kind} …")
  need = measure(setup, dataset)
  changes = tuple(_changes(config, dataset, devices, say)) if memory is not None and not need.fits(memory) else ()
  model, dtype = config.model, jnp.dtype(config.precision.compute)
  attention = method(model, dtype, device.platform) if setup.task.attends and model.token_mixer == "attention" else ""
  return Plan(dict(setup.mesh.shape), device.device_kind, setup.parameter_count, need, memory, attention, changes)


def memory_of(device: jax.Device) -> int | None:
  """Bytes of a device: what it says, or what its kind has; None when neither is known."""
  known = [name for name in MEMORY_GIB if device.device_kind.startswith(name)]
  try:
    limit = (device.memory_stats() or {}).get("bytes_limit")
  except jax.errors.JaxRuntimeError:  # it is not here
    limit = None
  return limit or (int(MEMORY_GIB[max(known, key=len)] * 2**30) if known else None)


def measure(setup: Setup, dataset: Dataset) -> Need:
  """Compiles the step of a setup and reads what the compiler planned."""
  state = jax.eval_shape(setup.create)
  batch = state.carry.data
  step: Any = make_train_step(setup)  # a jitted function
  began = time.monotonic()
  compiled = _compile(step.lower(state, batch))
  seconds = time.monotonic() - began
  parts = {
    "parameters": (state.params, setup.shardings.params),
    "average": (state.ema, setup.shardings.ema),
    "optimizer": (state.optimizer, setup.shardings.optimizer),
    "table": (state.table, setup.shardings.table),
    "carry": (state.carry, setup.shardings.carry),
    "buffers": ((state.buffers, state.step), (setup.shardings.buffers, setup.shardings.step)),
    "batch": (batch, setup.shardings.carry.data),
  }
  sizes = {name: _bytes_on_one_device(shapes, shardings) for name, (shapes, shardings) in parts.items()}
  return Need(
    state=sizes | {"batch": 3 * sizes["batch"]},
    model_flops=flops_per_step(setup, dataset),
    executed_flops=flops_per_step(setup, dataset, recomputed=True),
    compile_s=seconds,
    **compiled,
  )


def _compile(lowered: Any) -> dict[str, Any]:
  """What the compiler knows of the fields of `Need`."""
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = temporaries_in(str(error))
    if needed is None:
      raise
    return {"temporaries": needed, "code": 0, "compiler_flops": None, "compiles": False}
  memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
  return {
    "temporaries": memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "code": memory.generated_code_size_in_bytes,
    "compiler_flops": costs.get("flops"),
  }


def temporaries_in(message: str) -> int | None:
  """Bytes that a compiler which ran out of a device's memory says it needed; None for any other message."""
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  # XLA: "…HLO temporaries (161.29G) exceeds available…", or "… Used 20.50G of 15.75G hbm…".
  amount = re.search(r"(?:temporaries \(|Used )([\d.]+)([KMGT])", message)
  return int(float(amount[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[amount[2]]) if amount else None


def _bytes_on_one_device(shapes: Any, shardings: Any) -> int:
  leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
  return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in leaves)


def _changes(
  config: schema.Config,
  dataset: Dataset,
  devices: Sequence[jax.Device] | None,
  say: Callable[[str], None],
) -> Iterator[Change]:
  """The changes that a step can be compiled with; those that the config or the shapes forbid are left out."""
  together: dict[str, Any] = {}
  for fields in (*_single_changes(config), together):
    try:
      changed = configs.validate(with_fields(config, fields))
      if fields and changed != config:
        setup = prepare(changed, dataset, make_mesh(changed.mesh, devices))
        say(f"it does not fit; compiling it with {fields} …")
        yield Change(dict(fields), measure(setup, dataset))
        together |= fields  # a field's later, stronger value wins
    except ConfigError:
      continue


def _single_changes(config: schema.Config) -> Iterator[dict[str, Any]]:
  stronger = POLICIES[POLICIES.index(config.model.rematerialise) + 1 :]
  yield from ({"model.rematerialise": policy} for policy in stronger)
  yield from ({"accumulation": config.accumulation * factor} for factor in (2, 4, 8))
  yield from ({"mesh.data": -1, "mesh.fsdp": config.mesh.fsdp * factor} for factor in (2, 4, 8))


def with_fields(config: Any, fields: dict[str, Any]) -> Any:
  """The config with fields such as 'mesh.fsdp' set to other values."""
  for name, value in fields.items():
    group, _, rest = name.partition(".")
    inner = with_fields(getattr(config, group), {rest: value}) if rest else value
    config = dataclasses.replace(config, **{group: inner})
  return config


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
    description = topologies.get_topology_desc(gpu.name, "cuda", topology=f"1x1x{count}", target_config=gpu.target)
  except RuntimeError as error:
    raise ConfigError(
      f"--topology={topology}: expected a CUDA plugin of jax {jax.__version__} that describes GPUs which are elsewhere "
      f"({str(error).splitlines()[0]})"
    ) from error
  return list(description.devices)
