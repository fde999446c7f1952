"""Norms of gradient, parameters and update of every layer, computed inside the step as one small array."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STACKED = "layers"  # logical axis of parameters that hold one slice a layer


@dataclasses.dataclass(frozen=True)
class LayerNorms:
  """‖g‖, ‖w‖ and ‖Δw‖ by layer. A layer is the leaves that share all of their path but the last name.

  names: of the columns, such as "block0.features"; parameters stacked over layers give one column a slice,
  "blocks.features[3]". The norms cost one pass over each tree, fused with the optimiser's where the compiler can.
  """

  names: tuple[str, ...]
  groups: tuple[tuple[str, int | None], ...]  # of each leaf: layer and, for stacked leaves, the number of slices

  @classmethod
  def of(cls, shapes: Any, axes: Any) -> "LayerNorms":
    """The layers of a parameter tree; `axes` holds the tuple of logical axes wherever `shapes` holds an array."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    groups: list[tuple[str, int | None]] = []
    for (path, leaf), names in zip(
      leaves, jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, tuple)), strict=True
    ):
      keys = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
      stacked = bool(names) and names[0] == STACKED
      groups.append((".".join(keys[:-1] or keys), leaf.shape[0] if stacked else None))
    columns: list[str] = []
    for name, slices in dict.fromkeys(groups):
      columns += [name] if slices is None else [f"{name}[{k}]" for k in range(slices)]
    return cls(tuple(columns), tuple(groups))

  def __call__(self, gradients: Any, parameters: Any, updates: Any) -> Float[Array, "3 layers"]:
    """Rows: gradient norm, parameter norm, update norm; float32."""
    return jnp.stack([self._norms(tree) for tree in (gradients, parameters, updates)])

  def scalars(self, norms: Float[Any, "3 layers"]) -> dict[str, float]:
    """`gradient_norm/<layer>` and `update_ratio/<layer>` = ‖Δw‖/‖w‖ (of a layer that is all zero: ‖Δw‖/1e-12)."""
    gradient, parameter, update = (row.tolist() for row in norms)
    norms_by_name = dict(zip((f"gradient_norm/{name}" for name in self.names), gradient, strict=True))
    ratios = [u / max(p, 1e-12) for u, p in zip(update, parameter, strict=True)]
    return norms_by_name | dict(zip((f"update_ratio/{name}" for name in self.names), ratios, strict=True))

  def _norms(self, tree: Any) -> Float[Array, "layers"]:
    squares: dict[tuple[str, int | None], Array] = {}
    for group, leaf in zip(self.groups, jax.tree.leaves(tree), strict=True):
      own = tuple(range(0 if group[1] is None else 1, leaf.ndim))
      total = jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=own)
      squares[group] = squares[group] + total if group in squares else total
    return jnp.sqrt(jnp.concatenate([jnp.atleast_1d(total) for total in squares.values()]))
