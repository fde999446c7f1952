"""The published methods: exact where their assumptions hold, wrong by a known amount where the mixers matter."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest

from jpmhc_jax.core.errors import ConfigError, UserError
from jpmhc_jax.spectral import dyson, measured, published
from jpmhc_jax.spectral.layers import full_noise
from jpmhc_jax.spectral.published import one_layer

Z = np.linspace(0.1, 4, 12) + 0.1j


def _mixers(kind, depth, equal, seed=0):
  rng = np.random.default_rng(seed)
  mixers = rng.normal(size=(depth, 4, 4))
  mixers = np.linalg.qr(mixers)[0] if kind == "haar" else mixers / 2
  return np.stack([mixers[0]] * depth) if equal else mixers


def _default(mixers, sigma):
  with jax.enable_x64(True):
    return np.asarray(dyson.checked(full_noise(mixers, sigma), Z).g)


@pytest.mark.parametrize("method", ["scalar", "operator", "z1_mapping", "s_transform", "twisted"])
def test_one_layer_is_exact_by_every_method(method):
  mixers = _mixers("gauss", 1, True)
  assert_allclose(published.resolvent(mixers, 0.5, Z, method), _default(mixers, 0.5), rtol=1e-8)


@pytest.mark.parametrize(
  ("method", "equal", "depth"),
  [
    ("z1_mapping", True, 2),
    pytest.param("z1_mapping", True, 10, marks=pytest.mark.slow),
    pytest.param("s_transform", False, 10, marks=pytest.mark.slow),
    ("subordination", False, 2),
    ("twisted", False, 2),
  ],
)
def test_isometric_mixers_are_free_so_every_method_is_exact(method, equal, depth):
  mixers = _mixers("haar", depth, equal)
  assert_allclose(published.resolvent(mixers, 0.3, Z, method), _default(mixers, 0.3), rtol=1e-7)


def test_the_twisted_fold_is_exact_for_two_mixers_that_do_not_commute():
  mixers = _mixers("gauss", 2, False)
  assert_allclose(published.resolvent(mixers, 0.4, Z, "twisted"), _default(mixers, 0.4), rtol=1e-9)


@pytest.mark.parametrize("method", ["s_transform", "subordination"])
def test_scalar_freeness_fails_when_mixers_do_not_commute(method):
  """And both scalar methods fail alike, because they compute the same free product."""
  mixers = _mixers("gauss", 2, False)
  exact, scalar = _default(mixers, 0.4), published.resolvent(mixers, 0.4, Z, method)
  assert np.sum(np.abs(scalar - exact)) > 0.05 * np.sum(np.abs(exact))
  assert_allclose(scalar, published.resolvent(mixers, 0.4, Z, "s_transform"), rtol=1e-6)


def test_operator_equation_handles_covariances_and_low_rank():
  from jpmhc_jax.spectral.layers import Layers

  rng = np.random.default_rng(1)
  mixer = np.outer(rng.normal(size=4), rng.normal(size=4)) / 2
  read, write = (np.diag(rng.uniform(0.2, 2, 4)) for _ in range(2))
  with jax.enable_x64(True):
    layer = Layers(*(jnp.asarray(a)[None] for a in (mixer, np.float64(0.25), read, write)))
    expected = np.asarray(dyson.checked(layer, Z).g)
  assert_allclose(one_layer.operator_resolvent(mixer, 0.5, Z, read, write), expected, rtol=1e-8)


def test_choice_follows_size_depth_and_homogeneity():
  assert published.choose(4, 1, True) == "scalar"
  assert published.choose(32, 1, True) == "operator"
  assert published.choose(4, 10, True) == "z1_mapping"
  assert published.choose(4, 2, False) == "subordination"
  assert published.choose(4, 10, False) == "s_transform"
  mixers = _mixers("haar", 3, False)
  assert_allclose(published.resolvent(mixers, 0.2, Z), published.resolvent(mixers, 0.2, Z, "s_transform"))


def test_a_method_that_does_not_apply_says_so():
  with pytest.raises(UserError, match="unequal layers; 's_transform'"):
    published.resolvent(_mixers("gauss", 3, False), 0.1, Z, "z1_mapping")
  with pytest.raises(ConfigError, match="Did you mean 's_transform'"):
    published.resolvent(_mixers("gauss", 3, False), 0.1, Z, "s_transfrm")


def test_hutch_plus_plus_is_exact_on_low_rank_and_beats_plain_probes():
  rng = np.random.default_rng(0)
  basis = np.linalg.qr(rng.normal(size=(80, 80)))[0]
  low = jnp.asarray((basis[:, :5] * np.arange(1, 6)) @ basis[:, :5].T)
  assert_allclose(measured.hutch_plus_plus(lambda v: low @ v, 80, jax.random.key(0), 30), 15.0, rtol=1e-4)
  decaying = jnp.asarray((basis / np.arange(1, 81) ** 2) @ basis.T)
  exact = np.trace(decaying)
  keys = jax.random.split(jax.random.key(1), 40)
  error = {
    name: np.sqrt(np.mean([(float(method(lambda v: decaying @ v, 80, key, 30)) - exact) ** 2 for key in keys]))
    for name, method in (("plus", measured.hutch_plus_plus), ("plain", measured.hutchinson))
  }
  assert error["plus"] < 0.3 * error["plain"]
  with pytest.raises(ValueError, match="at least 3"):
    measured.hutch_plus_plus(lambda v: v, 4, keys[0], 2)
