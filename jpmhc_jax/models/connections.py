"""From a config to the library's objects: the one place where `config.Connection` becomes a mixer and a connection."""

from collections.abc import Iterator
import contextlib
import dataclasses
import re
from typing import SupportsIndex

from jpmhc_jax import mixers
from jpmhc_jax.config import schema
from jpmhc_jax.connections import Chain, HyperConnectionFn, Routing, StreamExpansionFn
from jpmhc_jax.connections.chain import check_link
from jpmhc_jax.core.errors import ConfigError, require
from jpmhc_jax.core.fields import check_whole

# Fields of the library's objects that a config calls otherwise.
_CALLED = {
  "width": "model.width", "layer_index": "layer_index", "initialisation": "connection.init",
  "form": "connection.read_write", "epsilon": "connection.read_epsilon", "expansion": "connection.expand",
  "embedding": "connection.stream_embedding", "reduction": "connection.reduce", "noise": "connection.init_scale",
}  # fmt: skip


def hyper_connection_fn(
  config: schema.Connection, width: SupportsIndex, layer_index: SupportsIndex | None = None
) -> HyperConnectionFn:
  """The connection that the config describes, as pure functions.

  Raises ConfigError as `HyperConnectionFn` and `mixers.parse` do, with the names that the fields have in a config.
  """
  mixer = mixers.parse(config.mixer, config.options)
  segments = config.segments if config.sublayer == "whole" else 1
  with _named_as_in_a_config():
    return HyperConnectionFn(
      mixer,
      streams=config.streams,
      width=sublayer_width(config, check_whole("width", width)),
      layer_index=None if layer_index is None else check_whole("layer_index", layer_index),
      routing=Routing(config.read_write, config.temperature, segments, config.read_epsilon),
      generator=config.generator,
      gate_init=config.gate_init,
      activation=config.activation,
      bias=config.bias,
      projection=config.projection,
      norm=config.norm,
      norm_epsilon=config.norm_epsilon,
      parameterisation=config.parameterisation,
      initialisation=config.init,
      init_scale=config.init_scale,
      identity_bias=config.identity_bias,
      transpose=config.transpose,
      implementation=config.implementation,
    )


def sublayer_width(config: schema.Connection, width: int) -> int:
  """Features of a sub-layer's vector in a network of this width."""
  return width if config.sublayer == "whole" else width // config.segments


def stream_expansion_fn(config: schema.Connection, width: SupportsIndex) -> StreamExpansionFn:
  """The ends of the streams that the config describes. Raises ConfigError as `StreamExpansionFn` does."""
  with _named_as_in_a_config():
    return StreamExpansionFn(
      streams=config.streams,
      width=check_whole("width", width),
      segments=config.segments,
      expansion=config.expand,
      embedding=config.stream_embedding,
      reduction=config.reduce,
      noise=config.init_scale if config.init == "random" else 0.0,
    )


def chain_of(config: schema.Connection, norm_epsilon: float | None = None) -> Chain | None:
  """The chain that connection.single_pass asks for; None where connections run one by one, and for one stream.

  norm_epsilon: of the network's norm behind every connection; None: there is none.
  """
  if config.single_pass == "off" or config.streams == 1:
    return None
  return Chain(config.single_pass, norm_epsilon)


def check(config: schema.Config) -> None:
  """Raises ConfigError for connections that cannot work, before anything is built. One stream takes no mixer."""
  check_connection(config.connection, config.model.width)


def check_connection(connection: schema.Connection, width: int) -> None:
  """The same of one connection of this width."""
  if connection.streams == 1:
    connection = dataclasses.replace(connection, mixer="identity", options="", parameterisation="logits")
  split = connection.sublayer == "whole" or connection.segments > 1
  require(split, "connection.segments", connection.segments, "2 or more with connection.sublayer=stream")
  stream_expansion_fn(connection, width)
  rule = hyper_connection_fn(connection, width, layer_index=0)
  if chain_of(connection) is not None:
    with _named_as_in_a_config():
      check_link(rule, remedy="or connection.single_pass=off")


@contextlib.contextmanager
def _named_as_in_a_config() -> Iterator[None]:
  try:
    yield
  except ConfigError as error:
    name, rest = re.match(r"(\w*)(.*)", str(error), re.DOTALL).groups()  # type: ignore[union-attr]
    raise ConfigError(_CALLED.get(name, f"connection.{name}") + rest) from error
