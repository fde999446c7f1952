"""Laws that hold for every member, checked on random draws."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax import mixers

SEEDS = st.integers(0, 2**31 - 1)
QUICK = settings(max_examples=15, deadline=None, derandomize=True)
EQUIVARIANT = {
  "sinkhorn": mixers.Sinkhorn(),
  "birkhoff_newton": mixers.BirkhoffNewton(),
  "cayley": mixers.Cayley(alpha=1.0),
  "iso": mixers.Iso(alpha=1.0),
  "polar": mixers.Polar(),
  "cayley_iterative": mixers.CayleyIterative(),
}
ORTHOGONAL = {
  "cayley": mixers.Cayley(alpha=1.0), "iso": mixers.Iso(alpha=1.0), "quaternion": mixers.Quaternion(),
  "householder": mixers.Householder(alpha=1.0), "polar": mixers.Polar(),
  "iso_newton": mixers.Iso(method="newton"),
}  # fmt: skip
STOCHASTIC = ("sinkhorn", "birkhoff_newton", "permutation", "circulant", "kronecker", "orthostochastic", "transport")


@functools.cache
def projection(manifold, n=4):
  return jax.jit(lambda x: manifold.project(x, n))


def draw(seed, *shape, scale=1.0):
  return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("name", ("sinkhorn", "birkhoff_newton"))
@QUICK
@given(seed=SEEDS)
def test_adding_constants_to_rows_and_columns_changes_nothing(name, seed):
  logits, rows, columns = draw(seed, 4, 4, 3), draw(seed + 1, 4, 1, 3), draw(seed + 2, 1, 4, 3)
  project = projection(EQUIVARIANT[name])
  atol = 2e-4 if name == "sinkhorn" else 2e-6  # finite sweeps remember the columns
  np.testing.assert_allclose(project(logits + rows + columns), project(logits), atol=atol)


@pytest.mark.parametrize("name", EQUIVARIANT)
@QUICK
@given(seed=SEEDS)
def test_renaming_the_streams_renames_the_mixer(name, seed):
  logits = draw(seed, 4, 4, 3) + 2 * jnp.eye(4)[:, :, None]
  order = np.random.default_rng(seed).permutation(4)
  project = projection(EQUIVARIANT[name])
  np.testing.assert_allclose(project(logits[order][:, order]), project(logits)[order][:, order], atol=3e-5)


@pytest.mark.parametrize("name", ORTHOGONAL)
@QUICK
@given(seed=SEEDS)
def test_mixers_on_a_group_preserve_every_norm(name, seed):
  manifold = ORTHOGONAL[name]
  mixer = projection(manifold)(draw(seed, *manifold.logit_shape(4), 64))
  streams = draw(seed + 1, 4, 64)
  mixed = jnp.einsum("ijt,jt->it", mixer, streams)
  np.testing.assert_allclose(jnp.linalg.norm(mixed, axis=0), jnp.linalg.norm(streams, axis=0), rtol=3e-6)
  if name.startswith("iso"):
    np.testing.assert_allclose(jnp.mean(mixed, axis=0), jnp.mean(streams, axis=0), atol=2e-6)


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_products_of_256_orthogonal_mixers_are_orthogonal(name):
  manifold = ORTHOGONAL[name]
  project = projection(manifold)
  matrices = [np.moveaxis(np.asarray(project(draw(k, *manifold.logit_shape(4), 64))), -1, 0) for k in range(4)]
  product = functools.reduce(lambda a, b: b @ a, np.concatenate(matrices))
  assert float(manifold.distance(jnp.asarray(product))) < 1e-5


@pytest.mark.parametrize("name", STOCHASTIC)
@QUICK
@given(seed=SEEDS)
def test_products_of_doubly_stochastic_mixers_stay_and_collapse_no_slower_than_the_bound(name, seed):
  manifold = mixers.make(name)
  matrices = np.moveaxis(np.asarray(projection(manifold)(draw(seed, *manifold.logit_shape(4), 12)), np.float64), -1, 0)
  product = functools.reduce(lambda a, b: b @ a, matrices)
  birkhoff = mixers.BirkhoffNewton()
  assert float(birkhoff.distance(jnp.asarray(product, jnp.float32))) < 1e-5 + 20 * float(
    birkhoff.distance(jnp.asarray(np.moveaxis(matrices, 0, -1), jnp.float32)).max()
  )
  # Stream collapse: ‖ΠH − 11ᵀ/n‖₂ <= √n Π (1 − n min H).
  bound = 2 * np.prod([1 - 4 * mixer.min() for mixer in matrices])
  slack = 1e-5 if manifold.traits.exact else 1e-2
  assert np.linalg.norm(product - 0.25, 2) <= bound + slack


@QUICK
@given(seed=SEEDS, leak=st.sampled_from((0.1, 0.25, 0.4)))
def test_circulant_mixers_commute_and_keep_their_floor(seed, leak):
  manifold = mixers.Circulant(leak=leak)
  matrices = np.moveaxis(np.asarray(projection(manifold)(draw(seed, 4, 8, scale=5.0))), -1, 0)
  np.testing.assert_allclose(matrices[0] @ matrices[1], matrices[1] @ matrices[0], atol=1e-6)
  product = functools.reduce(np.matmul, matrices)
  assert np.linalg.svd(product, compute_uv=False)[-1] >= (1 - 2 * leak) ** 8 - 1e-6


@QUICK
@given(seed=SEEDS)
def test_mean_and_differences_split(seed):
  # E = (1/√n, Helmert): doubly stochastic and mean-preserving matrices are block diagonal, 1 ⊕ D.
  basis = np.concatenate([np.full((4, 1), 0.5), mixers.helmert(4)], axis=1)
  for name in ("birkhoff_newton", "iso", "sphere"):
    manifold = mixers.make(name)
    matrix = np.asarray(projection(manifold)(draw(seed, *manifold.logit_shape(4), 1)))[..., 0]
    block = basis.T @ matrix @ basis
    np.testing.assert_allclose(block[0], [1, 0, 0, 0], atol=2e-6)
    np.testing.assert_allclose(block[:, 0], [1, 0, 0, 0], atol=2e-6)
    assert np.linalg.norm(block[1:, 1:], 2) <= 1 + 1e-6


@pytest.mark.parametrize("name", [name for name in mixers.FAMILIES if name not in ("unconstrained", "birkhoff")])
def test_distance_sees_perturbations_and_not_members(name):
  manifold = mixers.make(name)
  draws = jax.jit(jax.vmap(lambda key: manifold.random(key, 4), out_axes=-1))
  members = draws(jax.random.split(jax.random.key(0), 2))
  assert float(jnp.min(manifold.distance(members + 1e-2 * draw(0, 4, 4, 2)))) > 1e-3
  assert float(jnp.min(manifold.distance(draw(3, 4, 4, 2)))) > 0.1
