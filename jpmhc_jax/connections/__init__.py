"""Hyper-connections: n residual streams around any sub-layer, with the mixer on a chosen manifold."""

from jpmhc_jax.connections.block import COEFFICIENTS, Coefficients, HyperConnectionFn
from jpmhc_jax.connections.expansion import expand, reduce, StreamExpansion, StreamExpansionFn
from jpmhc_jax.connections.manifold_parameter import MANIFOLDS
from jpmhc_jax.connections.module import HyperConnection
from jpmhc_jax.connections.ops.vjp import mix_and_write, read, write
from jpmhc_jax.connections.routing import Routing

__all__ = [
  "COEFFICIENTS", "Coefficients", "HyperConnection", "HyperConnectionFn", "MANIFOLDS", "Routing", "StreamExpansion",
  "StreamExpansionFn", "expand", "mix_and_write", "read", "reduce", "write",
]  # fmt: skip
