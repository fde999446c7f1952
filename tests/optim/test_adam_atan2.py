"""AdamATan2 against the published code's numbers and against what its formula implies."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import optax
import pytest

from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.optim.adam_atan2 import adam_atan2, scale_by_adam_atan2

FIXTURE = {
  "imoneoi": [0.989033135, 0.985362729, 0.982278307, 0.979554388, 0.973288593],
  "lucidrains": [0.989025443, 0.984706586, 0.981091465, 0.977917885, 0.970680923],
}


def trajectory(optimizer, params, gradients):
  """Parameters after each step, as one stacked array."""

  def step(carry, gradient):
    params, state = carry
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), params

  return jax.jit(lambda p, g: jax.lax.scan(step, (p, optimizer.init(p)), g)[1])(params, gradients)


@pytest.mark.parametrize("form", FIXTURE)
def test_five_steps_of_each_published_form(form):
  gradients = jnp.array([[0.5], [-0.25], [1e-8], [0.0], [3.0]])
  got = trajectory(adam_atan2(1e-2, form=form), jnp.ones(1), gradients)
  assert_allclose(got[:, 0], FIXTURE[form], rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-12)])
def test_golden_trace(shared, dtype, tolerance):
  with np.load(shared / "fixtures" / "trm_optim.npz") as golden, jax.enable_x64(dtype == "float64"):
    p0, gradients, want = (golden[f"adam_trace_{dtype}/{key}"] for key in ("p0", "grads", "params"))
    got = trajectory(adam_atan2(1e-2, weight_decay=0.1), jnp.asarray(p0), jnp.asarray(gradients))
    assert got.dtype == dtype
    assert_allclose(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", FIXTURE)
def test_scaling_all_gradients_leaves_the_trajectory(form):
  gradients = jax.random.normal(jax.random.key(0), (20, 32))
  optimizer = adam_atan2(1e-2, form=form)
  small = trajectory(optimizer, jnp.ones(32), 2.0**-20 * gradients)  # a power of two: no rounding, so the bits agree
  assert_array_equal(small, trajectory(optimizer, jnp.ones(32), gradients))


def test_zero_gradient_only_decays():
  got = trajectory(adam_atan2(0.1, weight_decay=0.5), jnp.full(3, 2.0), jnp.zeros((4, 3)))
  assert_allclose(got[-1], 2.0 * (1 - 0.1 * 0.5) ** 4, rtol=1e-6)


def test_mask_selects_what_decays():
  params = {"decayed": jnp.ones(2), "kept": jnp.ones(2)}
  optimizer = adam_atan2(0.1, weight_decay=0.5, mask={"decayed": True, "kept": False})
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  assert_allclose(updates["decayed"], -0.05, rtol=1e-6)
  assert_array_equal(updates["kept"], 0.0)


def test_bfloat16_leaves_keep_float32_moments():
  params = jnp.ones(4, jnp.bfloat16)
  transform = scale_by_adam_atan2()
  direction, state = transform.update(params, transform.init(params), params)
  assert direction.dtype == jnp.bfloat16
  assert state.mu.dtype == state.nu.dtype == jnp.float32


def test_unknown_form_is_refused():
  with pytest.raises(ConfigError, match="imoneoi, lucidrains"):
    adam_atan2(1e-3, form="imonei")


def test_the_angle_is_that_of_float64_from_the_smallest_ratio_to_the_largest():
  rng = np.random.default_rng(0)
  gradients = (rng.normal(size=20_000) * 10.0 ** rng.uniform(-15, 15, 20_000)).astype(np.float32)
  seconds = (rng.normal(size=20_000) * 10.0 ** rng.uniform(-15, 15, 20_000)).astype(np.float32) ** 2
  transform = scale_by_adam_atan2(b1=0.0, b2=0.5)
  state = transform.init(jnp.zeros(20_000))._replace(nu=jnp.asarray(seconds))
  got = transform.update(jnp.asarray(gradients), state)[0]
  v = 0.5 * seconds.astype(np.float64) + 0.5 * gradients.astype(np.float64) ** 2
  assert_allclose(got, np.arctan2(gradients.astype(np.float64), np.sqrt(v / 0.5)), rtol=1e-6)
