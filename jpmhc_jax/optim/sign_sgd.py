"""Row-wise sign-SGD for embedding tables: no dense gradient, only the rows of the batch are read and written."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["sign_sgd_rows"]


def sign_sgd_rows(
  table: Float[Array, "rows width"],
  ids: Int[Array, "batch"],
  gradients: Float[Array, "batch width"],
  learning_rate: float | Float[Array, ""],
  weight_decay: float | Float[Array, ""],
  replicated: jax.sharding.Sharding | None = None,
) -> Float[Array, "rows width"]:
  """One sign-SGD step on the rows `ids` of `table`; every other row keeps its bits.

  w_i <- w_i (1 - lr wd) - lr sign(sum of the gradients whose id is i),   sign(0) = 0.

  Gradients of one id are summed before the sign. Ids outside [0, rows) are ignored, so they can mark padding. Costs
  O(batch log batch + batch * width) and no array of the table's size, provided that the caller donates `table`.

  The sum of one id's gradients is a scan over the sorted batch: elementwise additions in an order that only depends on
  the batch, so one device and many give the same bits however ids, gradients and table are sharded. `replicated`
  (a NamedSharding with an empty spec) gathers ids and gradients first, which avoids a sharded sort.

  Source: TinyRecursiveModels `CastedSparseEmbeddingSignSGD_Distributed`.

  >>> table = jnp.zeros((3, 2))
  >>> gradients = jnp.array([[1.0, -5.0], [1.0, 2.0]])
  >>> jp.optim.sign_sgd_rows(table, jnp.array([2, 2]), gradients, 0.5, 0.0).tolist()
  [[0.0, 0.0], [0.0, 0.0], [-0.5, 0.5]]
  """
  if replicated is not None:
    ids, gradients = jax.lax.with_sharding_constraint((ids, gradients), replicated)
  rows, batch = table.shape[0], ids.shape[0]
  order = jnp.argsort(ids, stable=True)
  ids = ids[order]
  changes = ids[1:] != ids[:-1]
  edge = jnp.ones((1,), bool)
  sums = _segment_sums(gradients[order].astype(table.dtype), jnp.concatenate([edge, changes]))
  # The last of each run of equal ids holds the sum and writes; the others point at distinct places past the end.
  writes = jnp.concatenate([changes, edge]) & (ids >= 0) & (ids < rows)
  targets = jnp.where(writes, ids, rows + jnp.arange(batch, dtype=ids.dtype))
  old = table.at[targets].get(mode="fill", fill_value=0)
  new = old * (1 - learning_rate * weight_decay) - learning_rate * jnp.sign(sums)
  return table.at[targets].set(new.astype(table.dtype), mode="drop", unique_indices=True)


def _segment_sums(values: Float[Array, "batch width"], starts: Array) -> Float[Array, "batch width"]:
  """Running sums that restart wherever `starts` is true."""

  def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
    (left_start, left_sum), (right_start, right_sum) = left, right
    return left_start | right_start, jnp.where(right_start, right_sum, left_sum + right_sum)

  result: Array = jax.lax.associative_scan(combine, (starts[:, None], values))[1]
  return result
