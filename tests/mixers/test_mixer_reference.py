"""The published reference vectors are what the code computes today."""

import numpy as np
import pytest

from jpmhc_jax.mixers import FAMILIES, reference


def assert_same(found, published):
  assert published.keys() == found.keys()
  for key, expected in published.items():
    assert expected.dtype == np.float64
    atol = 1e-10 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(found[key], expected, rtol=1e-9, atol=atol, err_msg=key)


@pytest.mark.slow
def test_vectors_of_two_families_are_regenerated():
  some = frozenset(("kronecker", "birkhoff_newton"))
  published = reference.load()
  assert_same(reference.vectors(some), {key: published[key] for key in published if key.startswith(tuple(some))})


@pytest.mark.slow
def test_all_vectors_are_regenerated():
  assert_same(reference.vectors(), reference.load())


def test_every_family_with_logits_is_published_in_a_small_file():
  published = {key.split("[")[0].split("/")[0] for key in reference.load()}
  assert published == set(FAMILIES) - {"identity", "birkhoff"}
  assert reference.PATH.stat().st_size < 300_000
