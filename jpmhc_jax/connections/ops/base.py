"""The choice of the operators of a connection: formulas in plain JAX (`xla`, `xla_tpu`) or Pallas kernels."""

import functools
from typing import Any
import warnings

from jpmhc_jax.connections.ops import xla, xla_tpu
from jpmhc_jax.connections.ops.pallas import Kernels
from jpmhc_jax.core import sharding
from jpmhc_jax.core.errors import check_choice

_PLATFORMS = {"pallas_gpu": "gpu", "pallas_tpu": "tpu"}
_APART = 8  # above so many streams, n² expressions cost a TPU more than sliced and contracted streams
_MOST = 16  # streams that kernels take
IMPLEMENTATIONS = ("auto", "xla", *_PLATFORMS)


def operators(implementation: str, streams: int) -> Any:
  """The operators of connection.implementation for the devices that are traced for (see `core.sharding.platform`).

  'auto' and 'xla' are formulas in plain JAX: on a TPU, for few streams, in the form that its compiler fuses
  (`xla_tpu`). On the CPU they are the fastest; the kernels, which compile for NVIDIA GPUs and TPUs and equal the
  formulas in interpret mode, have not been timed there. A kernel asked for on another kind of device falls back to the
  formulas with a warning, and so does one for more than 16 streams, whose W does not fit a processor's own memory.

  Raises ConfigError for an unknown name.
  """
  check_choice("connection.implementation", implementation, IMPLEMENTATIONS)
  present = sharding.platform()
  if implementation in _PLATFORMS:
    if _PLATFORMS[implementation] != present:
      announce(implementation, f"the devices are {present!r}")
    elif streams > _MOST:
      announce(implementation, f"connection.streams={streams} is above {_MOST}")
    else:
      return Kernels(present)
  return xla_tpu if present == "tpu" and streams <= _APART else xla


@functools.cache  # once a process and reason
def announce(implementation: str, reason: str) -> None:
  """Warns that the portable formulas run in place of the kernels that the config asks for."""
  warnings.warn(
    f"connection.implementation={implementation!r}: {reason}; the portable formulas run instead", stacklevel=3
  )
