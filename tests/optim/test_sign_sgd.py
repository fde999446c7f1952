"""Sign-SGD on table rows: the published trace, duplicates, untouched rows, and the same bits on 1 and 8 devices."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from jpmhc_jax.optim.sign_sgd import sign_sgd_rows

step = jax.jit(sign_sgd_rows, static_argnames="replicated")


def test_golden_trace(shared):
  with np.load(shared / "fixtures" / "trm_optim.npz") as golden:
    table, ids, gradients, want = (golden[f"signsgd_trace/{key}"] for key in ("table0", "ids", "grads", "tables"))
  table = jnp.asarray(table)
  for k in range(3):
    table = step(table, ids[k], gradients[k], 0.05, 0.3)
    assert_allclose(table, want[k], rtol=0, atol=1e-6)


def test_golden_run_of_the_trainer(shared):
  with np.load(shared / "fixtures" / "trm_model.npz") as model:
    table = jnp.asarray(model["attn_T2n2/weights/model.inner.puzzle_emb.weights"])
  with np.load(shared / "fixtures" / "trm_optim.npz") as golden:
    for t in range(1, 6):
      lr = float(golden[f"step{t}/lr"][0])
      ids, gradients = golden[f"step{t}/puzzle_ids_used"], golden[f"step{t}/puzzle_grad_rows"]
      table = step(table, ids, gradients, lr, 0.1)
      assert_allclose(table, golden[f"step{t}/puzzle_table"], rtol=0, atol=1e-6)


def dense_reference(table, ids, gradients, lr, decay):
  total = np.zeros(table.shape)
  np.add.at(total, ids, gradients)
  out = np.array(table, np.float64)
  touched = np.unique(ids)
  out[touched] = out[touched] * (1 - lr * decay) - lr * np.sign(total[touched])
  return out


def problem(batch=64, rows=40, width=16):
  rng = np.random.default_rng(0)
  ids = rng.integers(0, rows // 2, batch).astype(np.int32)
  gradients = rng.integers(-2, 3, (batch, width)).astype(np.float32)  # small integers: many sums cancel exactly
  return rng.standard_normal((rows, width)).astype(np.float32), ids, gradients


def test_equals_the_dense_formula_and_leaves_other_rows_alone():
  table, ids, gradients = problem()
  got = step(table, ids, gradients, 0.05, 0.3)
  assert_allclose(got, dense_reference(table, ids, gradients, 0.05, 0.3), rtol=1e-6, atol=1e-7)
  untouched = np.setdiff1d(np.arange(40), ids)
  assert untouched.size >= 20
  assert_array_equal(np.asarray(got)[untouched], table[untouched])


def test_ids_outside_the_table_are_ignored():
  table, ids, gradients = problem()
  ids[::3], ids[1::7] = -1, 40
  valid = (ids >= 0) & (ids < 40)
  got = step(table, ids, gradients, 0.05, 0.3)
  assert_allclose(got, dense_reference(table, ids[valid], gradients[valid], 0.05, 0.3), rtol=1e-6, atol=1e-7)


def test_sharded_ids_gradients_and_table_give_the_same_bits():
  table, ids, gradients = problem()
  gradients += 1e-3 * np.random.default_rng(1).standard_normal(gradients.shape).astype(np.float32)
  want = step(table, ids, gradients, 0.05, 0.3)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  for table_spec in (P(), P("data"), P(None, "data")):
    for replicated in (None, NamedSharding(mesh, P())):
      placed = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in ((table, table_spec), (ids, P("data")), (gradients, P("data")))
      ]
      assert_array_equal(step(*placed, 0.05, 0.3, replicated=replicated), want)


def test_no_array_of_the_tables_size_is_made():
  table = jax.ShapeDtypeStruct((100_000, 8), jnp.float32)
  ids, gradients = jax.ShapeDtypeStruct((16,), jnp.int32), jax.ShapeDtypeStruct((16, 8), jnp.float32)
  compiled = jax.jit(sign_sgd_rows, donate_argnums=0).lower(table, ids, gradients, 0.1, 0.1).compile()
  memory = compiled.memory_analysis()
  assert memory.alias_size_in_bytes >= 100_000 * 8 * 4  # the table is updated in place
  assert memory.temp_size_in_bytes < 100_000
