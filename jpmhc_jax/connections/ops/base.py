"""What a back end of the apply stage offers, and which one runs: formulas in plain JAX or Pallas kernels.

read:               u = Σ_j a_j x_j
mix:                x'_i = Σ_j H_ij x_j + b_i y
statistics:         Σ x W and Σ x², which an RMS norm in front of a projection W needs
advance:            mix, the norm behind it, the statistics and the read of the next connection in one pass
"""

import functools
from typing import Protocol, runtime_checkable
import warnings

from jaxtyping import Array, Float

from jpmhc_jax.connections.ops import xla, xla_tpu
from jpmhc_jax.connections.ops.composed import Advanced, Flowing, Operands
from jpmhc_jax.connections.ops.pallas import Kernels, MosaicGpu, tuning
from jpmhc_jax.core import sharding
from jpmhc_jax.core.errors import check_choice

__all__ = ["BY_KERNELS", "IMPLEMENTATIONS", "StreamOps", "announce", "stream_ops"]

BY_KERNELS: dict[str, Kernels] = {"pallas_gpu": Kernels("gpu"), "mosaic_gpu": MosaicGpu(), "pallas_tpu": Kernels("tpu")}
_SLICED = 8  # up to so many streams a TPU prefers n² expressions to sliced and contracted streams
IMPLEMENTATIONS = ("auto", "xla", *BY_KERNELS)


@runtime_checkable
class StreamOps(Protocol):
  """A back end: the operators and their backward passes. A module or an object; hashable, for it is static.

  Streams are (*tokens, n, d) in any float dtype; coefficients are tokens last, or token-free for static ones, float32
  or wider, and so is the arithmetic. A kernel W is (m, d, k) with m = n, or m = 1: then each stream is a token of its
  own, and per_kernel is (*tokens, n) in place of (*tokens).
  """

  @property
  def fuses(self) -> bool:
    """Whether the gradient of the streams is faster as one `streams_backward` of all terms (see `fused_streams`)."""

  @property
  def implementation(self) -> str:
    """The value of connection.implementation that asks for this back end."""

  def read(self, x: Float[Array, "*tokens n d"], weights: Float[Array, "n *per_token"]) -> Float[Array, "*tokens d"]:
    """Σ_j a_j x_j."""

  def weights_backward(
    self, x: Float[Array, "*tokens n d"], weights: Float[Array, "n *per_token"], cotangent: Float[Array, "*tokens d"]
  ) -> Float[Array, "n *per_token"]:
    """ā_j = Σ_d ū x_j, for the cotangent ū of what was read."""

  def mix(
    self,
    x: Float[Array, "*tokens n d"],
    mixer: Float[Array, "n n *per_token_mix"],
    weights: Float[Array, "n *per_token"],
    y: Float[Array, "*tokens d"],
  ) -> Float[Array, "*tokens n d"]:
    """Σ_j H_ij x_j + b_i y."""

  def coefficients_backward(
    self,
    x: Float[Array, "*tokens n d"],
    mixer: Float[Array, "n n *per_token_mix"],
    weights: Float[Array, "n *per_token"],
    y: Float[Array, "*tokens d"],
    cotangent: Float[Array, "*tokens n d"],
  ) -> tuple[Float[Array, "n n *per_token_mix"], Float[Array, "n *per_token"], Float[Array, "*tokens d"]]:
    """H̄_ij = Σ_d x̄'_i x_j,  b̄_i = Σ_d x̄'_i y,  ȳ = Σ_i b_i x̄'_i."""

  def statistics(
    self, x: Float[Array, "*tokens n d"], kernel: Float[Array, "m d k"]
  ) -> tuple[Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"]]:
    """Σ x W and Σ x²."""

  def kernel_backward(
    self, x: Float[Array, "*tokens n d"], kernel: Float[Array, "m d k"], of_products: Float[Array, "k *per_kernel"]
  ) -> Float[Array, "m d k"]:
    """W̄ = Σ_tokens x s̄, for the cotangent s̄ of Σ x W."""

  def streams_backward(
    self,
    x: Float[Array, "*tokens n d"],
    mixed: tuple[Float[Array, "*tokens n d"], Float[Array, "n n *per_token_mix"] | None] | None = None,
    read: tuple[Float[Array, "*tokens d"], Float[Array, "n *per_token"]] | None = None,
    projected: tuple[Float[Array, "m d k"], Float[Array, "k *per_kernel"], Float[Array, "*per_kernel"]] | None = None,
  ) -> Float[Array, "*tokens n d"]:
    """x̄ = Hᵀ x̄' + a ū + (W s̄ + 2 x q̄), from mixed=(x̄', H), read=(ū, a), projected=(W, s̄, q̄).

    H=None is the identity; a term whose factors are None is left out.
    """

  def advance(self, operands: Operands, epsilon: float | None) -> Advanced:
    """x' = H x + b ⊗ y and, in the same pass, Σ x' W, Σ x'² and Σ_j a_j x'_j: what follows at the next connection.

    epsilon: every stream of x' is normed, x'_i = z_i / √(mean z_i² + ε); None: it is not.
    """

  def advance_backward(
    self, operands: Operands, epsilon: float | None, advanced: Advanced, flowing: Flowing
  ) -> Operands:
    """Every gradient of `advance` in one pass over x and x̄', W̄ apart (see `composed`).

    advanced: x' and r, which a back end may use or make again from x.
    """


def stream_ops(implementation: str, streams: int) -> StreamOps:
  """The back end of connection.implementation for the devices that are traced for (see `core.sharding.platform`).

  'xla' are formulas in plain JAX: on a TPU, for few streams, in the form that its compiler fuses (`xla_tpu`). 'auto' is
  what was the fastest with so many streams on the kind of device (`pallas.tuning`), and the formulas where that has not
  been measured, as on every kind today: on the CPU they are the fastest; the kernels, which compile for NVIDIA GPUs and
  TPUs and equal the formulas in interpret mode, have not been timed there. A kernel asked for on another kind of device
  falls back to the formulas with a warning, and so does one for more streams than fit a processor's own memory (16), or
  its registers (8 with Mosaic GPU).

  Raises ConfigError for an unknown name, or a malformed table of measurements.
  """
  check_choice("implementation", implementation, IMPLEMENTATIONS)
  present = sharding.platform()
  if implementation == "auto":
    implementation = tuning.choice(streams) or "xla"
  if implementation in BY_KERNELS:
    kernels = BY_KERNELS[implementation]
    if kernels.platform != present:
      announce(implementation, f"the devices are {present!r}")
    elif streams > kernels.most:
      announce(implementation, f"streams={streams} is above {kernels.most}")
    else:
      return kernels
  return xla_tpu if present == "tpu" and streams <= _SLICED else xla


@functools.cache  # once a process and reason
def announce(implementation: str, reason: str) -> None:
  """Warns that the formulas in plain JAX run in place of the kernels that the config asks for."""
  if implementation in BY_KERNELS:
    warnings.warn(f"implementation={implementation!r}: {reason}; the formulas in plain JAX run instead", stacklevel=3)
