"""Gradients in bfloat16 under cotangents up to 1e4 at the logits of trained networks, against float64.

`trained_logits.npz` holds the mixer's logits, (16, tokens), of four streams of two Tiny Recursive Models after training
on Sudoku, 63 random tokens and the one with the largest logit: `sinkhorn` and `cayley`, up to 11.7 and 12.3.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.mixers import FAMILIES, make

TRAINED = np.load(pathlib.Path(__file__).parent / "trained_logits.npz")
QUICK = ("sinkhorn", "cayley")
NAMES = [name for name in FAMILIES if name not in ("birkhoff", "identity")]  # another name, and one without logits


def _logits(mixer):
  """Those of a trained network where the family takes a matrix of them, else as large random ones."""
  shape, trained = mixer.logit_shape(4), TRAINED["sinkhorn" if mixer.traits.nonnegative else "cayley"]
  size = int(np.prod(shape))
  rows = trained if size == len(trained) else 4 * np.random.default_rng(0).standard_normal((size, trained.shape[1]))
  return jnp.asarray(rows.reshape(*shape, -1), jnp.bfloat16)


def _pullback(mixer, logits, cotangent):
  return jax.vjp(lambda x: mixer.project(x, 4), logits)[1](cotangent)[0]


def _scanned(mixer, logits, cotangent):
  """The gradient inside of a loop, a token at a time."""
  each = (jnp.moveaxis(a, -1, 0)[..., None] for a in (logits, cotangent))
  gradients = jax.lax.scan(lambda _, pair: (None, _pullback(mixer, *pair)), None, tuple(each))[1]
  return jnp.moveaxis(gradients[..., 0], 0, -1)


@pytest.mark.parametrize(
  "name", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in NAMES]
)
def test_bfloat16_gradients_are_finite_and_right_under_large_cotangents(name):
  mixer = make(name)
  logits = _logits(mixer)
  tokens = logits.shape[-1]
  sizes = 10.0 ** np.linspace(0, 4, tokens)
  cotangent = jnp.asarray(sizes * np.random.default_rng(1).standard_normal((4, 4, tokens)), jnp.bfloat16)
  with jax.enable_x64(True):
    wide = (jnp.asarray(np.asarray(a, np.float64)) for a in (logits, cotangent))
    expected = np.asarray(jax.jit(_pullback, static_argnums=0)(mixer, *wide))
  largest = np.abs(expected).max(axis=tuple(range(expected.ndim - 1)))  # of a token
  scale = np.maximum(largest, 1e-3 * sizes)
  forms = {"jitted": jax.jit(_pullback, static_argnums=0), "scanned": jax.jit(_scanned, static_argnums=0)}
  if name in QUICK:
    forms["eager"] = _pullback
  for form, gradient in forms.items():
    result = gradient(mixer, logits, cotangent)
    assert result.dtype == jnp.bfloat16
    error = np.abs(np.asarray(result, np.float64) - expected)
    assert np.max(error / scale) < 2**-7, form  # false for NaN
