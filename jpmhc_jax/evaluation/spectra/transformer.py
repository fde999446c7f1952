"""A trained decoder or vision transformer as the spectral theory sees it: layer after layer, each with its own weights.

Of all networks this one fits the theory best: no weights are shared between layers, and the norm stands inside the
sub-layer. So F' has the norm's projection already: it takes its own input u to zero (|F' u| is under 1e-4 of what it
makes of a random vector of that length), and to project once more, as behind a TRM's norms, would change nothing. What
remains outside of it: attention couples positions and features as a product, not as one full matrix, and a decoder's
only backwards in time, so that early positions carry more noise than late ones.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
import numpy as np

from jpmhc_jax.config import schema
from jpmhc_jax.evaluation.spectra.cells import Cells
from jpmhc_jax.evaluation.spectra.stacks import chosen_noise, Stack, stream_layers, Trace
from jpmhc_jax.evaluation.spectra.trm import products, through
from jpmhc_jax.models.transformer import Decoder, Layer, Transformer, VisionTransformer


@dataclasses.dataclass(frozen=True)
class Network:
  """The layers of a transformer as functions to be linearised; asked the same as a TRM, see `linearised.Network`."""

  graph: nnx.GraphDef
  calls: int  # layers, of two parts each

  noun: ClassVar[str] = "layer"
  scales: ClassVar[tuple[str, str]] = ("layer", "depth")

  @classmethod
  def of(cls, graph: nnx.GraphDef, config: schema.Model) -> "Network":
    """The network of a model's graph and its number of layers."""
    return cls(graph, config.layers)

  @property
  def counts(self) -> tuple[int, ...]:
    """Numbers of layers after which the streams are looked at: all."""
    return (self.calls,)

  def model(self, params: Any, buffers: Any) -> Decoder | VisionTransformer:
    """The model with these parameters and buffers."""
    return nnx.merge(self.graph, nnx.State(params), nnx.State(buffers))

  def start(self, params: Any, buffers: Any, inputs: Array, rows: Array | None) -> tuple[Array, Array, tuple[str, ...]]:
    """(streams before the first layer, the same as the input, names of the parts of the last layer)."""
    streams = self.model(params, buffers).embed(inputs)
    return streams, streams, tuple(f"block{self.calls - 1}.{half}" for half in ("tokens", "features"))

  def removed(self, params: Any, buffers: Any, streams: Array) -> tuple[float, ...]:
    """Share of the directions that the norm behind each part removes: no norm stands behind a part."""
    return (0.0, 0.0)

  def part(self, index: int) -> Callable[..., Array]:
    """(streams, params, buffers) -> streams behind part `index` of the last layer."""

    def function(streams: Array, params: Any, buffers: Any) -> Array:
      part = _layer(self.model(params, buffers), self.calls - 1).parts()[index]
      return part.connect(streams, part.sublayer)

    return function

  def call(self, state: Array, params: Any, buffers: Any, index: Array) -> Array:
    """One layer."""
    return _layer(self.model(params, buffers), index)(state)

  def carry(self, streams: Array, params: Any, buffers: Any, x: Array, calls: Array) -> Array:
    """Streams behind the first `calls` layers."""

    def one(h: Array, turn: tuple[Layer, Array]) -> tuple[Array, None]:
      layer, index = turn
      return jnp.where(index < calls, layer(h), h), None

    return jax.lax.scan(one, streams, (self.model(params, buffers).layers, jnp.arange(self.calls)))[0]

  def trace(self, streams: Array, params: Any, buffers: Any, x: Array, cells: Cells, key: Key[Array, ""]) -> Trace:
    """Everything a prediction needs but the noise, at the given cells."""
    model = self.model(params, buffers)

    def one(h: Array, layer: Layer) -> tuple[Array, Any]:
      behind, inputs, layers = through(layer.parts(), h, model.model.norm_epsilon, cells)
      return behind, (h, inputs, layers)

    _, (states, inputs, layers) = jax.lax.scan(one, streams, model.layers)
    gains, mixers, reads, writes = layers
    return Trace(states, inputs[-1], gains, mixers, reads, writes, enter=jnp.zeros(0), leave=jnp.zeros(0))

  def products(self, states: Array, params: Any, buffers: Any, probe: Array, rows: Array) -> Array:
    """(K·P, 2, N): what the sub-layers of every layer make of a probe; see `moments.estimate`."""
    model = self.model(params, buffers)

    def one(_: None, turn: tuple[Array, Layer, Array]) -> tuple[None, Array]:
      h, layer, rows = turn
      return None, products(layer.parts(), h, model.model.norm_epsilon, probe, rows)

    images = jax.lax.scan(one, None, (states, model.layers, rows.reshape(self.calls, -1, rows.shape[1])))[1]
    return images.reshape(-1, *images.shape[2:])

  def rotated(self, states: Array, rows: Array) -> None:
    """None: the Gaussian form of the noise is near enough here (W1 0.03 to 0.05)."""

  def layers(self, trace: Trace, count: int, token: int) -> Stack:
    """All parts of the first layers."""
    stacks = [stream_layers(trace, call, token) for call in range(count)]
    mixers, reads, writes = (np.concatenate([stack[field] for stack in stacks]) for field in range(3))
    return Stack(mixers, reads, writes, chosen_noise(trace, np.arange(len(mixers))))

  def design(self, trace: Trace, token: int, mixers: np.ndarray | None = None) -> Stack:
    """What the design rules judge: the whole depth, with other mixers (parts, n, n) if given."""
    stack = self.layers(trace, self.calls, token)
    return stack if mixers is None else stack._replace(mixers=mixers)


def _layer(model: Transformer, index: int | Array) -> Layer:
  return jax.tree.map(lambda leaf: leaf[index], model.layers)
