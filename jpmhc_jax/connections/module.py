"""A hyper-connection as a Flax NNX module around any sub-layer F: (…, d) -> (…, d)."""

import dataclasses
from typing import Any, SupportsIndex, Unpack

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jpmhc_jax import mixers
from jpmhc_jax.connections.block import Coefficients, HyperConnectionFn, SubLayer
from jpmhc_jax.connections.chain import Link
from jpmhc_jax.connections.diagnostics import connection_diagnostics
from jpmhc_jax.connections.spec import SizedConnectionFields
from jpmhc_jax.core.errors import require
from jpmhc_jax.core.fields import check_whole
from jpmhc_jax.core.scalars import whole

__all__ = ["HyperConnection", "LayerIndex", "Progress", "Seeing"]

_AXES = {
  "projection": ("streams", "embed", None),
  "norm_scale": ("streams", "embed"),
  "norm_shift": ("streams", "embed"),
}


class Progress(nnx.Variable[Array]):
  """Share of the run that is done, () float32 from 0 to 1. Nothing trains it: the training step writes it."""


class LayerIndex(nnx.Variable[Array]):
  """Number of the layer, () int32; held where layers are stacked and one rule serves them all."""


_HELD = (nnx.Param, Progress, LayerIndex)


class HyperConnection(nnx.Module):
  """A hyper-connection x' = H x + b ⊗ F(aᵀ x) as a Flax NNX module; `HyperConnectionFn` says the shapes and sources.

  It holds the parameters, float32; every leaf carries its logical axes and its optimiser role.
  mixer: an object such as `Cayley(alpha=0.5)`, with the fields of a `HyperConnectionFn` by name (streams=4, width=64,
  generator="static"); or a whole `HyperConnectionFn`, without fields. `layer_index` is a whole number, or a traced one
  in a stack of layers (`jax.vmap` over this constructor), for which the module keeps it. Raises ConfigError as
  `HyperConnectionFn` does.

  >>> connection = jp.HyperConnection(jp.Cayley(alpha=0.5), streams=4, width=64, rngs=nnx.Rngs(0))
  >>> jp.reduce(connection(jp.expand(jnp.ones((2, 64)), 4), jnp.tanh)).shape
  (2, 64)
  """

  def __init__(
    self,
    mixer: mixers.Mixer | HyperConnectionFn,
    *,
    rngs: nnx.Rngs,
    layer_index: SupportsIndex | Array | None = None,
    **fields: Unpack[SizedConnectionFields],
  ):
    traced = layer_index if isinstance(layer_index, Array) and whole(layer_index) is None else None
    index = None if layer_index is None else 0 if traced is not None else check_whole("layer_index", layer_index)
    if isinstance(mixer, HyperConnectionFn):
      require(not fields, next(iter(fields), ""), fields, "no more fields beside a whole HyperConnectionFn")
      self.rule = mixer if index is None else dataclasses.replace(mixer, layer_index=index)
    else:
      self.rule = HyperConnectionFn(mixer, **fields, layer_index=index)
    if traced is not None:
      self.layer_index = LayerIndex(traced, axes=())
    for name, value in self.rule.init(rngs.params(), traced).items():
      role = f"manifold:{self.rule.stored}" if name == "mixer" else "mixer"
      setattr(self, name, nnx.Param(value, axes=_AXES.get(name, (None,) * value.ndim), role=role))
    if self.rule.blend:
      self.progress = Progress(jnp.zeros((), jnp.float32), axes=())

  def _parameters(self) -> dict[str, Array]:
    return {name: value[...] for name, value in vars(self).items() if isinstance(value, _HELD)}

  def choice_weights(self) -> dict[str, Float[Array, ""]]:
    """Weight of every family of a learned choice by its name; nothing for the other mixers."""
    return self.rule.choice_weights(self._parameters())

  @property
  def link(self) -> Link:
    """The connection as part of a `Chain`."""
    return Link(self.rule, self._parameters())

  def seeing(self, seen: Float[Array, "*tokens n d"]) -> "Seeing":
    """The connection with coefficients made of these streams, whatever streams it acts on."""
    return Seeing(self.link, seen)

  def coefficients(self, streams: Float[Array, "*tokens n d"]) -> Coefficients:
    """Read, mix and write coefficients for these streams."""
    return self.rule.coefficients(self._parameters(), streams)

  def diagnostics(self, streams: Float[Array, "*tokens n d"]) -> tuple[dict[str, Float[Array, ""]], Array | None]:
    """What the connection does to these streams, as scalars by name, and its mixers (n, n, *tokens)."""
    return connection_diagnostics(self.rule, self._parameters(), streams)

  def __call__(self, streams: Shaped[Array, "*tokens n d"], sublayer: SubLayer) -> Any:
    """x' = H x + b ⊗ F(aᵀ x); (x', …) for a sub-layer that returns (y, …). See `HyperConnectionFn`."""
    return self.rule(self._parameters(), streams, sublayer)


@dataclasses.dataclass(frozen=True)
class Seeing:
  """A `HyperConnection` whose coefficients are made of the streams `seen`, not of those that it acts on."""

  link: Link
  seen: Float[Array, "*tokens n d"]

  @property
  def rule(self) -> HyperConnectionFn:
    """Of the connection."""
    return self.link.rule

  def choice_weights(self) -> dict[str, Float[Array, ""]]:
    """As of the connection."""
    return self.rule.choice_weights(self.link.parameters)

  def coefficients(self, streams: Float[Array, "*tokens n d"]) -> Coefficients:
    """For what is seen."""
    return self.rule.coefficients(self.link.parameters, self.seen)

  def diagnostics(self, streams: Float[Array, "*tokens n d"]) -> tuple[dict[str, Float[Array, ""]], Array | None]:
    """What the connection does to these streams."""
    return connection_diagnostics(self.rule, self.link.parameters, streams, self.seen)

  def __call__(self, streams: Float[Array, "*tokens n d"], sublayer: SubLayer) -> Any:
    """x' = H x + b ⊗ F(aᵀ x) with H, a and b of what is seen."""
    return self.rule(self.link.parameters, streams, sublayer, self.seen)
