"""Hyper-connections: n residual streams around any sub-layer, with the mixer on a chosen manifold."""

from jpmhc_jax.connections.block import COEFFICIENTS, Coefficients, HyperConnectionFn
from jpmhc_jax.connections.chain import Chain, Link
from jpmhc_jax.connections.expansion import expand, reduce, StreamExpansion, StreamExpansionFn
from jpmhc_jax.connections.module import HyperConnection
from jpmhc_jax.connections.ops.vjp import mix_and_write, read, write
from jpmhc_jax.connections.routing import Routing
from jpmhc_jax.connections.spec import ConnectionFields, ConnectionSpec
from jpmhc_jax.connections.transition import StreamSources, StreamSourcesFn, StreamTransition, StreamTransitionFn

__all__ = [
  "COEFFICIENTS", "Chain", "Coefficients", "ConnectionFields", "ConnectionSpec", "HyperConnection", "HyperConnectionFn",
  "Link", "Routing", "StreamExpansion", "StreamExpansionFn", "StreamSources", "StreamSourcesFn", "StreamTransition",
  "StreamTransitionFn", "expand", "mix_and_write", "read", "reduce", "write",
]  # fmt: skip
