"""Pallas kernels of the apply stage and of the generator's products, for NVIDIA GPUs and TPUs."""

from jpmhc_jax.connections.ops.pallas.mosaic_gpu import MosaicGpu
from jpmhc_jax.connections.ops.pallas.operators import Kernels

__all__ = ["Kernels", "MosaicGpu"]
