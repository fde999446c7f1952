"""Causal ablations: what a trained network loses when a part of it is taken away.

The mixer of chosen connections is replaced by a fixed matrix, while reads and writes stay as they were trained:

    identity     x'_i = x_i + b_i F(…)          the streams no longer mix
    mean         x'_i = mean_j x_j + b_i F(…)   the streams are made equal
    permutation  x'_i = x_(i+1) + b_i F(…)      each stream is taken for its neighbour

Or every puzzle is given the learned row of another one. How much a metric falls says how much the network uses them.
"""

import dataclasses
import fnmatch
import pathlib

from flax import nnx
import jax

from jpmhc_jax.connections import HyperConnection
from jpmhc_jax.connections.spec import ABLATIONS
from jpmhc_jax.core.errors import check_choice, ConfigError, nearest
from jpmhc_jax.training.state import Setup

_LONGEST_NAME = 120


@dataclasses.dataclass(frozen=True)
class Ablation:
  """What an evaluation takes away; nothing by default.

  mixer: none, or what replaces the mixers: identity, mean or permutation (a shift by one stream). layers: the
  connections whose mixer is replaced: all, or names and patterns such as 'block0.tokens,block1.*'. wrong_puzzle: the
  examples are evaluated a second time, with the puzzle identifiers permuted.

  Raises ConfigError for another mixer, and for layers without one.
  """

  mixer: str = "none"
  layers: str = "all"
  wrong_puzzle: bool = False

  def __post_init__(self) -> None:
    check_choice("ablation", self.mixer, ("none", *ABLATIONS))
    if self.mixer == "none" and self.layers != "all":
      raise ConfigError(f"layers={self.layers!r}: expected an ablation of them beside it, such as ablation='identity'")

  def folder(self, workdir: pathlib.Path) -> pathlib.Path:
    """Where the results go: evaluation/, or evaluation/ablation_<mixer>_<layers> where mixers are replaced.

    Raises ConfigError where the layers are too long for the name of a folder.
    """
    if self.mixer == "none":
      return workdir / "evaluation"
    name = self.layers.replace(" ", "").replace(",", "+").replace("*", "x").replace("/", "_")
    if len(name) > _LONGEST_NAME:
      raise ConfigError(
        f"layers={self.layers!r}: expected at most {_LONGEST_NAME} characters (they name a folder); use patterns, such "
        "as 'block*.tokens'"
      )
    return workdir / "evaluation" / f"ablation_{self.mixer}_{name}"


NOTHING = Ablation()


def ablate(setup: Setup, ablation: Ablation) -> tuple[Setup, list[str]]:
  """The setup whose model has the mixers of `ablation.layers` replaced, and the names of the replaced.

  Parameters keep their structure, so any checkpoint of the run fits. Raises ConfigError for a name that no connection
  has, and for `wrong_puzzle` of a network that learns no row a puzzle.
  """
  if ablation.wrong_puzzle and setup.shardings.table is None:
    kind = setup.config.model.kind
    raise ConfigError(f"wrong_puzzle=True: expected a network with puzzle embeddings, but model.kind={kind!r} has none")
  if ablation.mixer == "none":
    return setup, []
  # The number that a connection of a stack of layers goes by is one of its buffers.
  params, buffers = jax.eval_shape(setup.create).params, jax.jit(lambda: setup.create().buffers)()
  model = setup.model(params, buffers)
  connections = connections_of(model)
  chosen = _chosen(ablation.layers, list(connections))
  for name in chosen:
    connection, index = connections[name]
    indices = None if index is None else (*(connection.rule.ablated_indices or ()), index)
    connection.rule = dataclasses.replace(connection.rule, ablation=ablation.mixer, ablated_indices=indices)
  graph, _, _ = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
  return dataclasses.replace(setup, graph=graph), chosen


def connections_of(model: nnx.Module) -> dict[str, tuple[HyperConnection, int | None]]:
  """Every connection of a model by the name that its diagnostics have: block0.tokens, block0.features, block1.tokens, …

  With it, where one module holds a stack of connections, the `layer_index` of that one; else None.
  """
  connections: dict[str, tuple[HyperConnection, int | None]] = {}
  for path, module in nnx.iter_modules(model):
    if isinstance(module, HyperConnection):
      parts = [str(part).removeprefix("connect_") for part in path if part != "calls"]  # one of a call: all of them
      if hasattr(module, "layer_index"):
        indices = module.layer_index[...].reshape(module.layer_index.shape[0], -1)[:, 0].tolist()  # of a call: of all
        connections |= {".".join((f"block{k}", *parts[1:])): (module, index) for k, index in enumerate(indices)}
      else:
        connections[".".join(parts)] = (module, None)
  return connections


def _chosen(layers: str, names: list[str]) -> list[str]:
  patterns = [part.strip() for part in ("*" if layers == "all" else layers).split(",")]
  for pattern in patterns:
    if not fnmatch.filter(names, pattern):
      known = ", ".join(names) or "none (connection.streams=1)"
      raise ConfigError(
        f"layers={layers!r}: no connection {pattern!r}; expected all, or names or patterns out of "
        f"{known}.{nearest(pattern, names)}"
      )
  return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
