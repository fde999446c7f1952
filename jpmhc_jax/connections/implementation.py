"""Who computes the apply stage and the generator's products: the portable formulas or a kernel."""

import functools
from typing import Any
import warnings

import jax

from jpmhc_jax.connections import portable
from jpmhc_jax.connections.kernels import Kernels
from jpmhc_jax.core.errors import check_choice

_PLATFORMS = {"pallas_gpu": "gpu", "pallas_tpu": "tpu"}
IMPLEMENTATIONS = ("auto", "xla", *_PLATFORMS)


@functools.cache
def operators(implementation: str) -> Any:
  """The operators of connection.implementation on this process's devices.

  'auto' is the portable formulas everywhere: on the CPU they are the fastest, and the kernels, which lower for NVIDIA
  GPUs and TPUs and equal the formulas in interpret mode, have not been timed there. A kernel asked for on another kind
  of device falls back to the formulas with a warning.

  Raises ConfigError for an unknown name.
  """
  check_choice("connection.implementation", implementation, IMPLEMENTATIONS)
  if implementation not in _PLATFORMS:
    return portable
  wanted, present = _PLATFORMS[implementation], jax.default_backend()
  if wanted != present:
    warnings.warn(
      f"connection.implementation={implementation!r}: the devices are {present!r}; the portable formulas run instead",
      stacklevel=2,
    )
    return portable
  return Kernels(wanted)
