"""The network of `model.kind=transport`: encoders, the map between their spaces, a head and a fused map, or fewer."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax import transport
from jpmhc_jax.config import schema
from jpmhc_jax.config.transport_fields import Transport
from jpmhc_jax.core.errors import ConfigError, DataError, require
from jpmhc_jax.training.encoders import Encoder, read_encoder
from jpmhc_jax.training.tasks.base import Batch
from jpmhc_jax.transport.maps import Fixed

LEAST, FITTED = 2, 1024  # known pairs that a map is fitted to


class PairModel(nnx.Module):
  """The map with what stands before and behind it; see `build`. `kept`: rows of the bank for each row of a batch."""

  def __init__(
    self,
    rule: transport.MapRule,
    sides: dict[str, "Side"],
    kept: int,
    classes: int,
    known: Batch | None,
    rngs: nnx.Rngs,
    distilled: bool = False,
  ):
    """known: pairs that the map is fitted to; None for a map as it is drawn. distilled: with a fused map to train."""
    self.kept, self.source, self.target = kept, sides["source"], sides["target"]
    parameters = rule.init(rngs.params())
    if known is not None:
      parameters |= _fitted(rule, parameters, *self.latents(known))
    self.map = transport.TransportMap(rule, rngs=rngs, parameters=parameters)
    self.head = nnx.Linear(rule.target, classes, rngs=rngs) if classes else None
    self.fused = _fused(rule, None if known is None else self.latents(known), rngs) if distilled else None

  def latents(self, batch: Batch, averaged: bool = False) -> tuple[Float[Array, "b m"], Float[Array, "b k"]]:
    """Both clouds of a batch; averaged: by the averages of the encoders, where they have some."""
    return self.source(batch["x"], averaged), self.target(batch["y"], averaged)


class Side(nnx.Module):
  """Rows -> latents: the rows themselves, or those of a trained encoder around the mean of its first batch."""

  def __init__(self, encoder: Encoder | None, rows: Any, averaged: bool = False):
    """averaged: with an average of the network over steps, which the task moves."""
    self.encoder, self.averaged = encoder, averaged and encoder is not None
    if encoder is not None:
      self.network = encoder.module()
      if averaged:
        self.average = encoder.module()
      raw = encoder(self.network, jax.lax.optimization_barrier(jnp.asarray(rows)))
      mean = jnp.mean(raw, axis=0)
      length = jnp.sqrt(jnp.mean(jnp.sum((raw - mean[None]) ** 2, axis=1)))
      self.mean, self.length = Fixed(mean, axes=(None,)), Fixed(length, axes=())

  def __call__(self, rows: Array, averaged: bool = False) -> Float[Array, "b d"]:
    if self.encoder is None:
      return rows
    network = self.average if averaged and self.averaged else self.network
    return (self.encoder(network, rows) - self.mean[...][None]) / self.length[...]


def encoders(fields: Transport) -> dict[str, Encoder | None]:
  """Of both sides; None for a side of latents. Raises ConfigError for a workdir or a layer that is none."""
  named = {
    "source": (fields.source_run, fields.source_layer),
    "target": (fields.target_run, fields.target_layer),
  }
  for side, (run, layer) in named.items():
    require(bool(run) == bool(layer), f"model.transport.{side}_layer", layer, f"a layer of {side}_run={run!r}, or none")
  return {
    side: read_encoder(f"model.transport.{side}_run", run, layer) if run else None
    for side, (run, layer) in named.items()
  }


def build(config: schema.Config, dataset: Any, rngs: nnx.Rngs, classes: int, distilled: bool) -> PairModel:
  """The model for the data set's rows.

  Raises ConfigError for inputs without an encoder and latents with one, DataError for inputs that it was not made for.
  """
  fields, batch = config.model.transport, dataset.batch(0)
  sides = {}
  for (side, encoder), name in zip(encoders(fields).items(), ("x", "y"), strict=True):
    array = getattr(config.data.pairs, f"{side}_array")
    if (encoder is None) != (array == "latents"):
      raise ConfigError(
        f"data.pairs.{side}_array={array!r}: expected {'latents' if encoder is None else 'inputs'} with "
        f"model.transport.{side}_run={getattr(fields, f'{side}_run')!r}"
      )
    if encoder is not None:
      _check_inputs(side, encoder, batch[name])
    sides[side] = Side(encoder, batch[name], averaged=fields.momentum > 0)
  m, k = (
    jax.eval_shape(sides[side], jax.ShapeDtypeStruct(batch[name].shape, batch[name].dtype)).shape[1]
    for side, name in (("source", "x"), ("target", "y"))
  )
  known = known_pairs(dataset)
  fits = fields.init == "fit" and len(known["x"]) >= LEAST
  # Behind the barrier these rows are no constants: XLA folds products of those while it compiles, on one core.
  pairs = jax.lax.optimization_barrier({name: jnp.asarray(rows) for name, rows in known.items()}) if fits else None
  return PairModel(map_rule(fields, m, k), sides, fields.bank // config.batch_size, classes, pairs, rngs, distilled)


def _check_inputs(side: str, encoder: Encoder, rows: np.ndarray) -> None:
  spec = encoder.inputs
  if rows.shape[1:] != spec.shape or rows.dtype.kind != spec.dtype.kind:
    raise DataError(
      f"data.pairs.{side}: inputs are {rows.dtype} of shape {rows.shape[1:]}; expected {spec.dtype} of shape "
      f"{spec.shape}, which model.transport.{side}_run was trained on"
    )


def known_pairs(dataset: Any) -> dict[str, np.ndarray]:
  """Those among the first FITTED rows to train on."""
  rows = dataset.read(dataset.train, np.arange(min(dataset.train.examples, FITTED)))
  return {name: np.asarray(values)[rows["paired"] > 0] for name, values in rows.items()}


def _fused(rule: transport.MapRule, known: tuple[Array, Array] | None, rngs: nnx.Rngs) -> transport.TransportMap:
  """One matrix and a shift, before it is distilled: the least-squares map of known pairs."""
  linear = transport.LinearMap(rule.source, rule.target)
  return transport.TransportMap(linear, rngs=rngs, parameters=None if known is None else linear.fit(*known))


def _fitted(rule: transport.MapRule, drawn: Any, x: Array, y: Array) -> dict[str, Array]:
  """Parameters from known pairs: of a linear part, behind or before a flow, which starts as the identity."""
  if isinstance(rule, transport.Chain):
    parts = [rule.of_part(drawn, i) for i in range(len(rule.parts))]
    linear = next(i for i, part in enumerate(rule.parts) if part.affine(parts[i]) is not None)
    fitted = _fitted(rule.parts[linear], parts[linear], x, y)
    return {f"part{linear}_{name}": value for name, value in fitted.items()}
  return rule.fit(x, y) if isinstance(rule, transport.OrthogonalMap | transport.LinearMap) else {}


def map_rule(fields: Transport, m: int, k: int) -> transport.MapRule:
  """The map of the config between spaces of m and k dimensions; a flow stands on the smaller side."""
  orthogonal = transport.OrthogonalMap(m, k, scaled=fields.scaled)
  if fields.map == "flow":
    words = f"another map for latents of {m} and {k} features: a flow couples halves of at least 2"
    require(min(m, k) >= 2, "model.transport.map", fields.map, words)
    flow = transport.FlowMap(min(m, k), min(m, k), couplings=fields.couplings, hidden=fields.hidden)
    return transport.Chain.of(*((flow, orthogonal) if m <= k else (orthogonal, flow)))
  return {
    "orthogonal": lambda: orthogonal,
    "linear": lambda: transport.LinearMap(m, k),
    "spectral": lambda: transport.SpectralMap(m, k, low=fields.low, high=fields.high),
    "mlp": lambda: transport.OrthogonalMLP(m, k),
    "attention": lambda: transport.AttentionMap(m, k, anchors=fields.anchors),
  }[fields.map]()
