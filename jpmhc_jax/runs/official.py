"""The official Tiny Recursive Model's tensors by its names, and ours: the same numbers in another layout.

PyTorch's weights are (out, in). Ours are (in, out) with the axes of heads and of gate and up written out, so each is
the transpose of theirs in another shape; vectors and tables are the same.

| theirs, below `model.inner.` | ours |
|---|---|
| embed_tokens.embedding_weight, embed_pos.embedding_weight | embedding, position_embedding |
| lm_head.weight, q_head.{weight,bias} | lm_head, q_kernel, q_bias |
| L_level.layers.K.self_attn.{qkv_proj,o_proj}.weight | blockK.tokens.{qkv,out} |
| L_level.layers.K.mlp_t.{gate_up_proj,down_proj}.weight | blockK.tokens.mlp.{gate_up,down} |
| L_level.layers.K.mlp.{gate_up_proj,down_proj}.weight | blockK.features.{gate_up,down} |
| H_init, L_init (buffers) | h_init, l_init |
| puzzle_emb.weights | the puzzle table |

Source: github SamsungSAILMontreal/TinyRecursiveModels @ e7b6871, models/recursive_reasoning/trm.py.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from jpmhc_jax.core.errors import CheckpointError, nearest
from jpmhc_jax.training import inherit

__all__ = ["PREFIX", "TABLE", "from_official", "stripped", "table_for", "to_official", "untouched"]

PREFIX = "_orig_mod.model.inner."  # what published files carry: of torch.compile, the loss head and the model
TABLE = "puzzle_emb.weights"
_PREFIXES = ("_orig_mod.", "module.", "model.", "inner.")

Tree = Mapping[str, Any]  # of arrays, or of their shapes


@dataclasses.dataclass(frozen=True)
class _Weight:
  """One tensor. inputs: how many leading axes of ours are their last; 0: the array is the same. field: what sets its
  size in the config."""

  theirs: str
  ours: tuple[str, ...]
  inputs: int
  field: str

  def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Theirs, from ours."""
    return (math.prod(ours[self.inputs :]), math.prod(ours[: self.inputs])) if self.inputs else ours

  def read(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Ours, of this shape."""
    return np.ascontiguousarray((tensor.T if self.inputs else tensor).reshape(shape), np.float32)

  def written(self, array: np.ndarray) -> np.ndarray:
    """Theirs, from ours."""
    wide = np.asarray(array, np.float32)
    return np.ascontiguousarray(wide.reshape(self.shape(wide.shape)[::-1]).T) if self.inputs else wide


_BUFFERS = (_Weight("H_init", ("h_init",), 0, "model.width"), _Weight("L_init", ("l_init",), 0, "model.width"))


def _weights(params: Tree) -> list[_Weight]:
  """Every tensor that a model with these parameters has in the official code, connections left out."""
  weights = [
    _Weight("embed_tokens.embedding_weight", ("embedding",), 0, "data (vocabulary) and model.width"),
    _Weight("lm_head.weight", ("lm_head",), 1, "data (vocabulary) and model.width"),
    _Weight("q_head.weight", ("q_kernel",), 1, "model.width"),
    _Weight("q_head.bias", ("q_bias",), 0, "model.width"),
  ]
  if "position_embedding" in params:
    weights.append(_Weight("embed_pos.embedding_weight", ("position_embedding",), 0, "data (sequence length)"))
  for layer in range(sum(name.startswith("block") for name in params)):
    block, theirs = f"block{layer}", f"L_level.layers.{layer}"
    if "qkv" in params[block]["tokens"]:
      fields = "model.width and model.heads"
      weights += [
        _Weight(f"{theirs}.self_attn.qkv_proj.weight", (block, "tokens", "qkv"), 1, fields),
        _Weight(f"{theirs}.self_attn.o_proj.weight", (block, "tokens", "out"), 2, fields),
      ]
    swiglus: dict[str, tuple[str, ...]] = {"mlp_t": (block, "tokens", "mlp"), "mlp": (block, "features")}
    for name, place in swiglus.items():
      if name == "mlp_t" and "mlp" not in params[block]["tokens"]:
        continue
      fields = "model.width, model.expansion and model.mlp_multiple"
      weights += [
        _Weight(f"{theirs}.{name}.gate_up_proj.weight", (*place, "gate_up"), 1, fields),
        _Weight(f"{theirs}.{name}.down_proj.weight", (*place, "down"), 1, fields),
      ]
  return weights


def stripped(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors without the prefixes that wrappers put in front of their names."""

  def bare(name: str) -> str:
    for prefix in _PREFIXES:
      name = name.removeprefix(prefix)
    return name

  return {bare(name): tensor for name, tensor in tensors.items()}


def from_official(
  tensors: Mapping[str, np.ndarray], params: Tree, buffers: Tree
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(params, buffers) with the file's numbers where the official model has them; what it lacks stays as it is given.

  tensors: as `stripped` returns them. params, buffers: nested dicts of arrays, of which shapes are taken and, for
  connections, values. Raises CheckpointError for the first tensor that is missing, of another shape or not of this
  model; it names what was expected and the fields that decide it.
  """
  new, constants = _copied(params), _copied(buffers)
  weights = _weights(params)
  known = {weight.theirs for weight in (*weights, *_BUFFERS)} | {TABLE}
  for name in tensors:
    if name not in known:
      raise CheckpointError(
        f"tensor {name!r}: the model of this config has no such tensor;{nearest(name, known)} set model.layers, "
        "model.token_mixer and model.positions as the file's model has them"
      )
  for weight, tree in (*((w, new) for w in weights), *((w, constants) for w in _BUFFERS)):
    *path, last = weight.ours
    for key in path:
      tree = tree[key]
    shape = tuple(tree[last].shape)
    if weight.theirs not in tensors:
      raise CheckpointError(
        f"tensor {weight.theirs!r}: missing; expected shape {weight.shape(shape)} of {weight.field}"
      )
    tensor = tensors[weight.theirs]
    if tensor.shape != weight.shape(shape):
      raise CheckpointError(
        f"tensor {weight.theirs!r}: shape {tensor.shape}; expected {weight.shape(shape)}, which {weight.field} decide"
      )
    if not np.isfinite(tensor).all():
      raise CheckpointError(
        f"tensor {weight.theirs!r}: {int(np.sum(~np.isfinite(tensor))):,} values are NaN or infinite"
      )
    tree[last] = weight.read(tensor, shape)
  return new, constants


def untouched(params: Tree) -> tuple[str, ...]:
  """Names of the parameters that the official model does not have: those of the connections."""
  weights = {weight.ours for weight in _weights(params)}

  def paths(tree: Tree, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in tree.items():
      yield from paths(value, (*above, name)) if isinstance(value, Mapping) else [(*above, name)]

  return tuple(".".join(path) for path in paths(params) if path not in weights)


def table_for(
  tensors: Mapping[str, np.ndarray], names: Sequence[str], shape: tuple[int, int], theirs: Sequence[str] | None
) -> tuple[np.ndarray, int]:
  """The puzzle table of our identifiers, and how many of them have a row in the file.

  names: our identifiers, one a row; shape: of our table, whose last rows may belong to nobody. theirs: the names of the
  file's rows, from the identifiers.json beside its data; None: the file's rows are in our order. Raises CheckpointError
  where there is no table, its width differs, or its rows are not as many as names.
  """
  if TABLE not in tensors:
    raise CheckpointError(
      f"tensor {TABLE!r}: missing; expected ({len(names)}, {shape[1]}); --fresh-table starts at zero"
    )
  table = tensors[TABLE]
  if table.ndim != 2 or table.shape[1] != shape[1]:
    raise CheckpointError(
      f"tensor {TABLE!r}: shape {table.shape}; expected width {shape[1]}, which model.puzzle.width decides"
    )
  expected = len(names) if theirs is None else len(theirs)
  if len(table) != expected:
    remedy = (
      "give its own names by --identifiers=identifiers.json, set the data fields that it was trained on, or take "
      "--fresh-table"
      if theirs is None
      else "take the identifiers.json that was written with the data of this file"
    )
    raise CheckpointError(f"tensor {TABLE!r}: {len(table):,} rows; expected {expected:,}, one an identifier; {remedy}")
  own, rows = inherit.rows_by_name(shape, names, table, names if theirs is None else theirs)
  if not rows:
    raise CheckpointError(
      f"tensor {TABLE!r}: none of its {len(table):,} names is one of this data; --fresh-table leaves it out"
    )
  return own, rows


def to_official(params: Tree, buffers: Tree, table: np.ndarray | None) -> dict[str, np.ndarray]:
  """Our arrays by the official names, with the prefix of published files. The model must have one stream."""
  tensors: dict[str, np.ndarray] = {}
  for weight, tree in (*((w, params) for w in _weights(params)), *((w, buffers) for w in _BUFFERS)):
    array: Any = tree
    for key in weight.ours:
      array = array[key]
    tensors[PREFIX + weight.theirs] = weight.written(array)
  if table is not None:
    tensors[PREFIX + TABLE] = np.asarray(table, np.float32)
  return tensors


def _copied(tree: Tree) -> dict[str, Any]:
  return {name: _copied(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
