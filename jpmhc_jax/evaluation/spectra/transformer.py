"""A trained decoder or vision transformer as the spectral theory sees it: layer after layer, and loop after loop.

With one loop every layer has weights of its own, as the theory of independent layers supposes; with several the same
weights come back once a loop, as in TRM. The norm stands inside the sub-layer. So F' has the norm's projection
already: it takes its own input u to zero (|F' u| is under 1e-4 of what it makes of a random vector of that length), and
to project once more, as behind a TRM's norms, would change nothing. What remains outside of it: attention couples
positions and features as a product, not as one full matrix, and a decoder's only backwards in time, so that early
positions carry more noise than late ones.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from jpmhc_jax.config import schema
from jpmhc_jax.evaluation.spectra import network
from jpmhc_jax.evaluation.spectra.network import Number
from jpmhc_jax.evaluation.spectra.stacks import Stack, successive_layers, Trace
from jpmhc_jax.models.blocks import Part
from jpmhc_jax.models.transformer import Layer, Transformer


@dataclasses.dataclass(frozen=True)
class Network(network.Network):
  """The layers of a transformer, once a loop. z are the streams, period the layers of a loop."""

  noun: ClassVar[str] = "layer"
  scales: ClassVar[tuple[str, str]] = ("layer", "depth")
  judged: ClassVar[str] = "all layers of the last loop"

  loops: int

  @classmethod
  def of(cls, graph: nnx.GraphDef, config: schema.Model) -> "Network":
    """The network of a model's graph, its number of layers and of loops."""
    return cls(graph, config.layers, config.loops)

  @property
  def calls(self) -> int:
    """Layers that the streams pass, of two parts each."""
    return self.period * self.loops

  def start(self, params: Any, buffers: Any, inputs: Array, rows: Array | None) -> tuple[Array, Array, tuple[str, ...]]:
    """x are the streams in front of the first layer, too."""
    streams = self.model(params, buffers).embed(inputs)
    return streams, streams, tuple(f"block{self.period - 1}.{half}" for half in ("tokens", "features"))

  def removed(self, params: Any, buffers: Any, streams: Array) -> tuple[float, ...]:
    """No norm stands behind a part."""
    return (0.0, 0.0)

  def parts(self, model: Transformer, index: Number) -> tuple[Part, ...]:
    """The two halves of a layer, as its loop has them."""
    return self._layer(model, index).parts(index // self.period)

  def entering(self, model: Transformer, z: Array, x: Array, index: Number) -> Array:
    """The streams; of the first layer of a loop with its vector."""
    return jnp.where(index % self.period == 0, model.entering(z, index // self.period), z)

  def call(self, state: Array, params: Any, buffers: Any, index: Number) -> Array:
    """One layer."""
    return self._layer(self.model(params, buffers), index)(state, call=index // self.period)

  def rotated(self, states: Array, rows: Array) -> Callable[..., Array] | None:
    """None with one loop, where no weights come back."""
    return super().rotated(states, rows) if self.loops > 1 else None

  def layers(self, trace: Trace, count: int, token: int) -> Stack:
    """All parts of the first layers."""
    return successive_layers(trace, range(count), token)

  def design(self, trace: Trace, token: int, mixers: np.ndarray | None = None) -> Stack:
    """The last loop."""
    stack = successive_layers(trace, range(self.calls - self.period, self.calls), token)
    return stack if mixers is None else stack._replace(mixers=mixers)

  def _layer(self, model: Transformer, index: Number) -> Layer:
    layer: Layer = jax.tree.map(lambda leaf: leaf[index % self.period], model.layers)
    return layer
