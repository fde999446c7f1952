"""The public face: laws of singular values, predicted and measured, against closed forms and each other."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest

import jpmhc_jax as jp
from jpmhc_jax.spectral import jacobian, laws, measure, predict

WIDTH = 150


def _product(mixers, sigma, reads=None, writes=None, seed=0):
  """A draw of the product that `predict` describes, WIDTH features a stream."""
  rng, (depth, streams, _) = np.random.default_rng(seed), mixers.shape
  size, whole = streams * WIDTH, np.eye(streams * WIDTH)
  for index in range(depth):
    if reads is None:
      noise = rng.normal(size=(size, size)) / np.sqrt(size)
    else:
      inner = rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)
      noise = np.kron(np.outer(writes[index], reads[index]), inner)
    whole = (np.kron(mixers[index], np.eye(WIDTH)) + sigma * noise) @ whole
  return jnp.asarray(whole, jnp.float32)


def test_one_gaussian_matrix_is_the_quarter_circle():
  law = predict(np.zeros((1, 2, 2)), sigma=1.0, points=96)
  x = np.linspace(0, 2, 2001)
  cumulative = np.cumsum(np.sqrt(4 - x**2)) * (x[1] - x[0]) / np.pi
  assert law.source == "dyson" and law.residual < 1e-8 and law.grid.shape == law.density.shape == (96,)
  assert_allclose(law.quantile([0.25, 0.5, 0.9]), np.interp([0.25, 0.5, 0.9], cumulative, x), rtol=0.04)
  assert_allclose(law.top, laws.GinibreProduct(1).edges()[1] ** 0.5, rtol=0.02)
  assert_allclose(np.trapezoid(law.density, np.log(law.grid)), 1.0, atol=0.02)
  assert law.support[0] < 0.05 and law.dead < 1e-3


@pytest.mark.parametrize("noise", ["full", "block"])
def test_the_prediction_is_what_a_drawn_product_measures(noise):
  mixers = jacobian.mixer_stack(jp.Sinkhorn(), 2, 3, "init")
  ends = {} if noise == "full" else {"reads": np.full((3, 2), 0.5), "writes": np.ones((3, 2))}
  law = predict(mixers, 0.4, **ends, points=96)
  product = _product(mixers, 0.4, **ends)
  exact = measure(lambda v, matrix: matrix @ v, jnp.zeros(2 * WIDTH), product)
  assert law.source == "dyson" and exact.source == "exact"
  assert law.w1(exact) < 0.03 and exact.w1(law) == law.w1(exact)
  assert_allclose(law.top, exact.top, rtol=0.05)
  assert_allclose(law.summary().mean_log, exact.summary().mean_log, atol=0.02)
  estimated = measure(lambda v, matrix: matrix @ v, jnp.zeros(2 * WIDTH), product, exact_limit=0, steps=48, probes=4)
  assert estimated.source == "lanczos" and estimated.w1(exact) < 0.05 + 2 * estimated.chance
  assert_allclose(estimated.top, exact.top, rtol=1e-3)


def test_a_mixer_stands_for_members_of_its_family():
  drawn = predict(jp.Sinkhorn(), 0.4, streams=2, depth=3, draw="init", points=96)
  given = predict(jacobian.mixer_stack(jp.Sinkhorn(), 2, 3, "init"), 0.4, points=96)
  np.testing.assert_array_equal(drawn.log_values, given.log_values)
  with jax.enable_x64(True):
    layers = jp.spectral.full_noise(jacobian.mixer_stack(jp.Sinkhorn(), 2, 3, "init"), 0.4)
  np.testing.assert_array_equal(predict(layers, points=96).weights, given.weights)


def test_a_product_that_is_not_solved_is_sampled_and_says_so(monkeypatch):
  mixers = jacobian.mixer_stack(jp.Sinkhorn(), 2, 3, "init")
  solved = predict(mixers, 0.4, points=96)
  monkeypatch.setattr(jacobian, "DEEPEST", 1)
  law = predict(mixers, 0.4)
  assert law.source == "sampled" and "the Dyson equation was not tried" in law.remark and law.residual is None
  assert law.w1(solved) < 0.06


def test_directions_without_a_place_in_the_output_are_dead():
  law = measure(lambda x: 2 * x[:1], jnp.ones(4))
  assert law.dead == 0.75 and law.support == (2.0, 2.0) and law.quantile(0.9) == pytest.approx(2.0)
  nothing = measure(lambda x: 0 * x, jnp.ones(2))
  assert nothing.dead == 1.0 and nothing.top == 0.0


@pytest.mark.parametrize(
  ("error", "message", "arguments"),
  [
    (jp.UserError, "sigma=None", {"mixers": np.eye(2)[None]}),
    (jp.UserError, "streams=4, depth=None", {"mixers": jp.Cayley(), "sigma": 0.1, "streams": 4}),
    (jp.UserError, "depth=3: expected nothing", {"mixers": np.eye(2)[None], "sigma": 0.1, "depth": 3}),
    (jp.UserError, "reads, writes: expected both", {"mixers": np.eye(2)[None], "sigma": 0.1, "reads": np.ones((1, 2))}),
    (ValueError, "mixers: shape", {"mixers": np.eye(2), "sigma": 0.1}),
    (ValueError, "not finite", {"mixers": np.full((1, 2, 2), np.nan), "sigma": 0.1}),
    (jp.UserError, "draw='drawn'", {"mixers": jp.Cayley(), "sigma": 0.1, "streams": 4, "depth": 2, "draw": "drawn"}),
  ],
)
def test_what_makes_no_prediction_is_refused_in_words(error, message, arguments):
  with pytest.raises(error, match=message):
    predict(**arguments)


@pytest.mark.parametrize("limit", [0, 100])
def test_what_makes_no_measurement_is_refused_in_words(limit):
  with pytest.raises(ValueError, match="at: int32"):
    measure(lambda x: x, jnp.arange(3), exact_limit=limit)
  with pytest.raises(ValueError, match="at: nothing"):
    measure(lambda x: x, exact_limit=limit)
  with pytest.raises(jp.UserError, match="not finite at this point"):
    measure(lambda x: jnp.sqrt(x), jnp.array([-1.0, 1.0]), exact_limit=limit)
