"""Devices that are not here: TPU slices that a step can be compiled for on any machine with libtpu."""

import importlib.util
import os

import jax
from jax.experimental import topologies

from jpmhc_jax.core.errors import ConfigError

# Without these libtpu asks the metadata server of a TPU VM who and where it is, and takes the chips of this machine for
# itself, or waits for who has them.
_ELSEWHERE = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices_of(topology: str, slices: int = 1) -> list[jax.Device]:
  """The devices of a TPU topology by its name, such as 'v5e:4x4' or 'v4:2x2x2'; `slices` of them side by side.

  They can be compiled for and hold nothing. Raises ConfigError without libtpu or for a name that it does not know.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ConfigError(f"--topology={topology}: expected libtpu, the TPU compiler; install it: pip install libtpu")
  for name, value in _ELSEWHERE.items():
    os.environ.setdefault(name, value)
  several = {"num_slices": slices} if slices > 1 else {}
  try:
    return list(topologies.get_topology_desc(topology_name=topology, platform="tpu", **several).devices)
  except (RuntimeError, ValueError) as error:
    raise ConfigError(
      f"--topology={topology}: expected a TPU topology such as v5e:4x4, v6e:8x8, v5p:2x2x2 or v4:2x2x2 "
      f"({str(error).splitlines()[0]})"
    ) from error
