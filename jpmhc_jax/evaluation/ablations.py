"""Causal ablations: the same trained parameters with the mixer of chosen connections replaced by a fixed matrix.

    identity     x'_i = x_i + b_i F(…)          the streams no longer mix
    mean         x'_i = mean_j x_j + b_i F(…)   the streams are made equal
    permutation  x'_i = x_(i+1) + b_i F(…)      each stream is taken for its neighbour

Reads and writes stay as they were trained. How much a metric falls says how much the network uses its mixers there.
"""

import dataclasses
import fnmatch

from flax import nnx
import jax

from jpmhc_jax.connections import HyperConnection
from jpmhc_jax.core.errors import ConfigError, nearest
from jpmhc_jax.training.state import Setup

_LONGEST_NAME = 120


def ablate(setup: Setup) -> tuple[Setup, list[str]]:
  """The setup whose model has the mixers of `evaluation.ablation_layers` replaced, and the names of the replaced.

  Parameters keep their structure, so any checkpoint of the run fits. Raises ConfigError for a name that no connection
  has.
  """
  evaluation = setup.config.evaluation
  if evaluation.ablation == "none":
    return setup, []
  # The number that a connection of a stack of layers goes by is one of its buffers.
  params, buffers = jax.eval_shape(setup.create).params, jax.jit(lambda: setup.create().buffers)()
  model = setup.model(params, buffers)
  connections = connections_of(model)
  chosen = _chosen(evaluation.ablation_layers, list(connections))
  for name in chosen:
    connection, index = connections[name]
    indices = None if index is None else (*(connection.rule.ablated_indices or ()), index)
    connection.rule = dataclasses.replace(connection.rule, ablation=evaluation.ablation, ablated_indices=indices)
  graph, _, _ = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
  return dataclasses.replace(setup, graph=graph), chosen


def connections_of(model: nnx.Module) -> dict[str, tuple[HyperConnection, int | None]]:
  """Every connection of a model by the name that its diagnostics have: block0.tokens, block0.features, block1.tokens, …

  With it, where one module holds a stack of connections, the `layer_index` of that one; else None.
  """
  found: dict[str, tuple[HyperConnection, int | None]] = {}
  for path, module in nnx.iter_modules(model):
    if isinstance(module, HyperConnection):
      parts = [str(part).removeprefix("connect_") for part in path]
      if hasattr(module, "layer_index"):
        indices = module.layer_index[...].tolist()
        found |= {".".join((f"block{k}", *parts[1:])): (module, index) for k, index in enumerate(indices)}
      else:
        found[".".join(parts)] = (module, None)
  return found


def folder_name(layers: str) -> str:
  """`evaluation.ablation_layers` as a part of a path; raises ConfigError where it is too long for one."""
  name = layers.replace(" ", "").replace(",", "+").replace("*", "x").replace("/", "_")
  if len(name) > _LONGEST_NAME:
    raise ConfigError(
      f"evaluation.ablation_layers={layers!r}: expected at most {_LONGEST_NAME} characters (it names a folder); use "
      "patterns, such as 'block*.tokens'"
    )
  return name


def _chosen(layers: str, names: list[str]) -> list[str]:
  patterns = [part.strip() for part in ("*" if layers == "all" else layers).split(",")]
  for pattern in patterns:
    if not fnmatch.filter(names, pattern):
      known = ", ".join(names) or "none (connection.streams=1)"
      raise ConfigError(
        f"evaluation.ablation_layers={layers!r}: no connection {pattern!r}; expected all, or names or patterns out of "
        f"{known}.{nearest(pattern, names)}"
      )
  return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
