"""Projections and vector-Jacobian products of the authors' own implementations, in float64."""

import json
import math

from golden import assert_kept_close
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax import mixers

UNROLLED = dict(adjoint="unrolled", clip=0.0)
COLUMNS_FIRST = dict(order="columns_first", **UNROLLED)
FAMILIES = {
  "sinkhorn_mhclite_t20": mixers.Sinkhorn(**COLUMNS_FIRST),
  "sinkhorn_mhclite_t1": mixers.Sinkhorn(sweeps=1, **COLUMNS_FIRST),
  "sinkhorn_mhclite_t5": mixers.Sinkhorn(sweeps=5, **COLUMNS_FIRST),
  "sinkhorn_mhclite_t50": mixers.Sinkhorn(sweeps=50, **COLUMNS_FIRST),
  "sinkhorn_converged": mixers.BirkhoffNewton(clip=20.0),
  "sinkhorn_lucidrains_t20": mixers.Sinkhorn(**COLUMNS_FIRST),
  "sinkhorn_lucidrains_log_t20": mixers.Sinkhorn(**COLUMNS_FIRST),
  "sinkhorn_tokenbender_t10_tau0.05": mixers.Sinkhorn(sweeps=10, temperature=0.05, **UNROLLED),
  "sinkhorn_tokenbender_t20_tau1": mixers.Sinkhorn(**UNROLLED),
  "sinkhorn_edelta_t20": mixers.EpsilonSinkhorn(epsilon=1e-8, softmax_first=False),
  "sinkhorn_deepseek_t10": mixers.EpsilonSinkhorn(sweeps=10),
  "sinkhorn_deepseek_t20": mixers.EpsilonSinkhorn(),
  "orthostochastic_ns5": mixers.OrthostochasticNewtonSchulz(),
  "cayley_iter2_a0.1": mixers.CayleyIterative(),
  "cayley_iter3_a0.1": mixers.CayleyIterative(steps=3),
  "cayley_iter5_a0.1": mixers.CayleyIterative(steps=5),
  "cayley_iter2_a0.5": mixers.CayleyIterative(alpha=0.5),
  "permutation_mixture": mixers.PermutationMixture(),
  "kronecker": mixers.Kronecker(),
  "tbp": mixers.Transport(),
  "tbp_delta-8": mixers.Transport(delta=1 / (1 + math.exp(8))),
  "s2hc": mixers.SpectralSphere(),
  "gomhc_s1": mixers.Orthostochastic(copies=1),
  "gomhc_s2": mixers.Orthostochastic(copies=2),
}
SIZES = [pytest.param(4), *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 8))]


@pytest.fixture(scope="module")
def golden(shared):
  with np.load(shared / "fixtures" / "mixers.npz") as archive:
    return {key: archive[key] for key in archive.files if not key.startswith("block/")}


def rows_of(golden, family, n):
  """(label, logits, cotangent, H, vjp), tokens last."""
  meta, base = json.loads(bytes(golden["__meta__"])), f"proj/{family}/n{n}"
  rows = meta["rows"][f"proj/{family}"][f"n{n}"]
  for k, row in enumerate(rows):
    if f"{base}/logits" in golden:
      label, own, where = row[0], base, slice(row[1], row[2])
      arrays = [golden[f"{own}/{part}"][where] for part in ("logits", "cotangent", "H", "vjp")]
    else:
      label, scale = row, meta["scales"].index(row)
      arrays = [golden[f"{part}/n{n}"][scale] for part in ("logits", "cotangent")]
      arrays += [golden[f"{base}/{part}"][k] for part in ("H", "vjp")]
    yield label, *(np.moveaxis(array, 0, -1) for array in arrays)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_the_authors_code(family, n, golden, compiled):
  if f"proj/{family}/n{n}/H" not in golden:
    pytest.skip(f"no golden arrays of {family} for n = {n}")
  converged = family == "sinkhorn_converged"
  with jax.enable_x64(True):
    for label, logits, cotangent, expected, gradient in rows_of(golden, family, n):
      matrix, found = compiled(FAMILIES[family], n)(jnp.asarray(logits), jnp.asarray(cotangent))
      atol = (1e-9 if converged else 1e-12) * max(1, np.nanmax(np.abs(expected)))
      assert_kept_close(matrix, expected, rtol=0, atol=atol, err_msg=label)
      if family.endswith("tau0.05") and label not in ("N0.1", "N1", "diag0"):
        continue  # saturated: the reference gradient is rounding
      atol = (1e-6 if converged else 1e-9) * np.nanmax(np.abs(gradient)) + 1e-12
      assert_kept_close(found, gradient, rtol=0, atol=atol, err_msg=label)


def test_helmert_basis_of_the_spectral_sphere(golden):
  for n in (2, 3, 4, 8):
    np.testing.assert_allclose(mixers.helmert(n), golden[f"proj/s2hc/n{n}/Uz"], atol=1e-12)


def test_order_of_the_permutations(golden):
  from jpmhc_jax.mixers.permutation import permutation_matrices

  for n in (2, 3, 4):
    expected = golden[f"proj/permutation_mixture/n{n}/permutation_matrices"]
    np.testing.assert_array_equal(permutation_matrices(mixers.PermutationMixture().terms(n)), expected)
