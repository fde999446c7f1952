"""Hyper-connections: n residual streams around any sub-layer, with the mixer on a chosen manifold."""

from jpmhc_jax.connections.apply import mix_and_write, read, write
from jpmhc_jax.connections.connection import COEFFICIENTS, Coefficients, HyperConnection
from jpmhc_jax.connections.ends import Ends, expand, reduce, StreamEnds
from jpmhc_jax.connections.routing import Routing
from jpmhc_jax.connections.stored import GEOMETRIES
from jpmhc_jax.connections.wrapper import Connection

__all__ = [
  "COEFFICIENTS", "Coefficients", "Connection", "Ends", "GEOMETRIES", "HyperConnection", "Routing", "StreamEnds",
  "expand", "mix_and_write", "read", "reduce", "write",
]  # fmt: skip
