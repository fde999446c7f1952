"""A hyper-connection as a Flax NNX module: wrap any sub-layer F: (…, d) -> (…, d).

connection = HyperConnection(Cayley(alpha=0.5), streams=4, width=64, rngs=nnx.Rngs(0))
streams = connection(streams, my_module)
"""

from typing import Any, SupportsIndex

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jpmhc_jax import mixers
from jpmhc_jax.config import schema
from jpmhc_jax.connections.block import Coefficients, HyperConnectionFn, SubLayer
from jpmhc_jax.connections.diagnostics import connection_diagnostics
from jpmhc_jax.core.errors import require
from jpmhc_jax.core.scalars import whole

_AXES = {
  "projection": ("streams", "embed", None),
  "norm_scale": ("streams", "embed"),
  "norm_shift": ("streams", "embed"),
}


class Progress(nnx.Variable):
  """Share of the run that is done, () float32 from 0 to 1. Nothing trains it: the training step writes it."""


class LayerIndex(nnx.Variable):
  """Number of the layer, () int32; held where layers are stacked and one rule serves them all."""


class HyperConnection(nnx.Module):
  """Holds the parameters of a `HyperConnectionFn`; every leaf carries its logical axes and its optimiser role.

  mixer: an object such as `Cayley(alpha=0.5)`, with other `fields` of a connection by name (streams=4,
  generator="static"), or a whole connection of a config. `layer_index` is a whole number of
  Python, NumPy or JAX, or a traced one in a stack of layers (`jax.vmap` over this constructor). Raises ConfigError as
  `HyperConnectionFn.of` does.
  """

  def __init__(
    self,
    mixer: mixers.Mixer | schema.Connection,
    *,
    width: SupportsIndex,
    layer_index: SupportsIndex | Array | None = None,
    rngs: nnx.Rngs,
    **fields: Any,
  ):
    traced = layer_index if isinstance(layer_index, Array) and whole(layer_index) is None else None
    index = layer_index if traced is None else 0
    if isinstance(mixer, schema.Connection):
      require(not fields, next(iter(fields), ""), fields, "no more fields beside a whole connection")
      self.rule = HyperConnectionFn.from_config(mixer, width, index)
    else:
      self.rule = HyperConnectionFn.of(mixer, width=width, layer_index=index, **fields)
    if traced is not None:
      self.layer_index = LayerIndex(traced, axes=())
    for name, value in self.rule.init(rngs.params(), traced).items():
      role = self.rule.stored.role if name == "mixer" and self.rule.stored else "mixer"
      setattr(self, name, nnx.Param(value, axes=_AXES.get(name, (None,) * value.ndim), role=role))
    if self.rule.blend:
      self.progress = Progress(jnp.zeros((), jnp.float32), axes=())

  def _parameters(self) -> dict[str, Array]:
    held = nnx.Param | Progress | LayerIndex
    return {name: value[...] for name, value in vars(self).items() if isinstance(value, held)}

  def choice_weights(self) -> dict[str, Float[Array, ""]]:
    """Weight of every family of a learned choice by its name; nothing for the other mixers."""
    return self.rule.choice_weights(self._parameters())

  def coefficients(self, streams: Float[Array, "*tokens n d"]) -> Coefficients:
    """Read, mix and write coefficients for these streams."""
    return self.rule.coefficients(self._parameters(), streams)

  def diagnostics(self, streams: Float[Array, "*tokens n d"]) -> tuple[dict[str, Float[Array, ""]], Array | None]:
    """What the connection does to these streams, as scalars by name, and its mixers (n, n, *tokens)."""
    return connection_diagnostics(self.rule, self._parameters(), streams)

  def __call__(self, streams: Shaped[Array, "*tokens n d"], sublayer: SubLayer) -> Any:
    """x' = H x + b ⊗ F(aᵀ x); (x', …) for a sub-layer that returns (y, …). See `HyperConnectionFn`."""
    return self.rule(self._parameters(), streams, sublayer)
