"""Mixer and stream diagnostics against direct numpy on examples whose answer is known."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jpmhc_jax.config import schema
from jpmhc_jax.connections import Coefficients, expand
from jpmhc_jax.connections.diagnostics import (
  alarms,
  composite_diagnostics,
  connection_diagnostics,
  logit_diagnostics,
  matrices_of,
  mixer_diagnostics,
  SAMPLE,
  stream_diagnostics,
)
from jpmhc_jax.mixers import Cayley, Identity, Sinkhorn
from jpmhc_jax.models.connections import hyper_connection_fn
from jpmhc_jax.training.progress import ProgressBar

N, TOKENS = 4, (2, 3)
ROUTES = jnp.full((N, *TOKENS), 1 / N)


def _values(diagnostics):
  return {name: float(value) for name, value in diagnostics.items()}


def _coefficients(matrix):
  """The same mixer for every token, with equal read and write weights."""
  return Coefficients(ROUTES, jnp.asarray(_tiled(matrix), jnp.float32), 2 * ROUTES)


def _tiled(matrix):
  return np.broadcast_to(np.asarray(matrix, np.float32)[:, :, None, None], (N, N, *TOKENS))


def _rotation(*degrees):
  """Block-diagonal rotation of the planes (0, 1) and (2, 3)."""
  matrix = np.zeros((N, N))
  for k, angle in enumerate(np.radians(degrees)):
    matrix[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  return matrix


def test_copies_of_one_stream_have_no_difference_energy():
  x = expand(jax.random.normal(jax.random.key(0), (*TOKENS, 8)), N)
  values = _values(stream_diagnostics(x))
  np.testing.assert_allclose(
    [values["difference_energy"], values["cosine"], values["effective_rank"]], [0, 1, 1], atol=1e-4
  )


def test_orthonormal_streams_have_full_rank_and_streams_that_sum_to_zero_only_differ():
  x = jnp.broadcast_to(jnp.eye(N, 8), (*TOKENS, N, 8))
  values = _values(stream_diagnostics(x))
  # Of n orthonormal streams the mean takes 1/n of the energy.
  expected = [1 - 1 / N, 0, N]
  np.testing.assert_allclose(
    [values["difference_energy"], values["cosine"], values["effective_rank"]], expected, atol=1e-5
  )
  signs = jnp.array([1.0, -1.0, 1.0, -1.0])[:, None]
  opposed = _values(stream_diagnostics(jnp.broadcast_to(signs * jnp.ones((1, 8)), (*TOKENS, N, 8))))
  np.testing.assert_allclose(
    [opposed["difference_energy"], opposed["cosine"], opposed["effective_rank"]], [1, -1 / 3, 1], atol=1e-4
  )


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e25])
def test_stream_diagnostics_equal_their_definitions_on_random_streams_of_any_size(size):
  """Squares of 1e25 overflow in float32: a network that diverges is when the numbers are wanted."""
  x = np.random.default_rng(0).normal(size=(*TOKENS, N, 8)) + 0.7
  values = _values(stream_diagnostics(jnp.asarray(size * x, jnp.float32)))
  energy, cosine, rank = [], [], []
  for token in x.reshape(-1, N, 8):
    centred = token - token.mean(axis=0)
    energy.append((centred**2).sum() / (token**2).sum())
    unit = token / np.linalg.norm(token, axis=1, keepdims=True)
    cosine.append((unit @ unit.T)[~np.eye(N, dtype=bool)].mean())
    weights = np.linalg.svd(token, compute_uv=False) ** 2
    weights /= weights.sum()
    rank.append(np.exp(-(weights * np.log(weights)).sum()))
  expected = {"difference_energy": np.mean(energy), "cosine": np.mean(cosine), "effective_rank": np.mean(rank)}
  assert values == pytest.approx(expected, rel=1e-5)


def test_a_single_stream_has_finite_diagnostics():
  values = _values(stream_diagnostics(jnp.ones((*TOKENS, 1, 8))))
  np.testing.assert_allclose(
    [values["difference_energy"], values["cosine"], values["effective_rank"]], [0, 0, 1], atol=1e-5
  )


def test_a_rotation_has_unit_singular_values_and_its_own_angle():
  values = _values(mixer_diagnostics(Cayley(), _coefficients(_rotation(30.0, 75.0))))
  assert values["max_angle_deg"] == pytest.approx(75.0, abs=1e-3)
  assert [values[f"angle_deg_{k}"] for k in range(N)] == pytest.approx([75, 75, 30, 30], abs=1e-3)
  assert values["smallest_singular_value"] == pytest.approx(1.0, abs=1e-5)
  assert values["largest_singular_value"] == pytest.approx(1.0, abs=1e-5)
  assert values["distance_to_set"] < 1e-6
  # ‖R(θ) − I‖² = 4 − 4 cos θ in each plane
  expected = np.sqrt(sum(4 - 4 * np.cos(np.radians(angle)) for angle in (30, 75)))
  assert values["distance_to_identity"] == pytest.approx(expected, rel=1e-5)


def test_distance_to_the_set_is_the_worst_token_and_the_angle_the_mean():
  matrices = np.array(_tiled(_rotation(20.0, 20.0)))
  matrices[:, :, 1, 2] = 1.5 * _rotation(20.0, 20.0)
  matrices[:, :, 0, 0] = _rotation(80.0, 0.0)
  values = _values(mixer_diagnostics(Cayley(), Coefficients(ROUTES, jnp.asarray(matrices), ROUTES)))
  assert values["distance_to_set"] == pytest.approx(1.5**2 - 1, rel=1e-5)
  assert values["largest_singular_value"] == pytest.approx(1.5, rel=1e-5)
  assert values["smallest_singular_value"] == pytest.approx(1.0, rel=1e-5)
  # 1.5 cos 20° is above 1: a scaled matrix counts as angle 0, and the mean is over six tokens.
  assert values["max_angle_deg"] == pytest.approx((4 * 20 + 80 + 0) / 6, abs=1e-2)


def test_routing_dominance_tells_a_uniform_route_from_a_single_stream():
  first = jnp.zeros((N, *TOKENS)).at[0].set(1.0)
  values = _values(mixer_diagnostics(Identity(), Coefficients(first, None, -2 * ROUTES)))
  assert values == {"read_dominance": pytest.approx(1.0), "write_dominance": pytest.approx(1 / N)}


def test_averaging_is_measured_as_rank_one_by_its_singular_values():
  values = _values(mixer_diagnostics(Sinkhorn(), _coefficients(np.full((N, N), 1 / N))))
  assert values["distance_to_set"] < 1e-6
  assert values["largest_singular_value"] == pytest.approx(1.0, rel=1e-6)
  assert values["smallest_singular_value"] == pytest.approx(0.0, abs=1e-6)
  assert [values[f"singular_value_{k}"] for k in range(N)] == pytest.approx([1, 0, 0, 0], abs=1e-6)
  assert values["distance_to_identity"] == pytest.approx(np.sqrt(N - 1), rel=1e-6)


def test_composite_of_doubly_stochastic_mixers_has_gain_one_and_shrinking_singular_values():
  rng = np.random.default_rng(1)
  permutations = [np.eye(N)[rng.permutation(N)] for _ in range(12)]
  mixtures = [np.average(permutations[k : k + 4], axis=0, weights=rng.dirichlet(np.ones(4))) for k in (0, 4, 8)]
  values = _values(composite_diagnostics([jnp.asarray(_tiled(m), jnp.float32) for m in mixtures]))
  singular = np.linalg.svd(mixtures[2] @ mixtures[1] @ mixtures[0], compute_uv=False)
  assert values == {
    "forward_gain": pytest.approx(1.0, rel=1e-5),
    "backward_gain": pytest.approx(1.0, rel=1e-5),
    "largest_singular_value": pytest.approx(singular[0], rel=1e-5),
    "smallest_singular_value": pytest.approx(singular[-1], abs=1e-5),
  }


def test_composite_multiplies_later_mixers_from_the_left_and_skips_identities():
  shear, scale = np.eye(N), np.diag([2.0, 1.0, 1.0, 1.0])
  shear[0, 1] = 3.0
  expected = scale @ shear  # rows (2, 6): forward gain 8; columns: max(2, 6 + 1) = 7. The other order gives 5 and 4.
  values = _values(composite_diagnostics([jnp.asarray(_tiled(shear)), None, jnp.asarray(_tiled(scale))]))
  assert values["forward_gain"] == pytest.approx(np.abs(expected).sum(axis=1).max())
  assert values["backward_gain"] == pytest.approx(np.abs(expected).sum(axis=0).max())
  assert (values["forward_gain"], values["backward_gain"]) == (pytest.approx(8.0), pytest.approx(7.0))
  assert composite_diagnostics([None, None]) == {}


def test_a_permutation_composes_to_gain_one_and_a_rotation_does_not():
  permutation = np.eye(N)[[1, 2, 3, 0]]
  permuted = _values(composite_diagnostics([jnp.asarray(_tiled(permutation), jnp.float32)] * 3))
  np.testing.assert_allclose(list(permuted.values()), 1.0, rtol=1e-6)
  rotated = _values(composite_diagnostics([jnp.asarray(_tiled(_rotation(45.0, 0.0)), jnp.float32)]))
  assert rotated["forward_gain"] == pytest.approx(np.sqrt(2), rel=1e-5)
  assert rotated["largest_singular_value"] == pytest.approx(1.0, rel=1e-5)


def test_matrices_keep_rows_and_columns_and_at_most_the_sample_is_decomposed():
  mix = jnp.arange(2 * 2 * 3, dtype=jnp.float32).reshape(2, 2, 3)
  np.testing.assert_array_equal(matrices_of(mix)[1], [[1, 4], [7, 10]])
  # 2 x SAMPLE tokens: every second one is looked at, so a spike on an odd token is not seen and one on an even is.
  quiet = jnp.broadcast_to(jnp.eye(2)[:, :, None], (2, 2, 2 * SAMPLE))
  unseen, seen = quiet.at[0, 0, 3].set(9.0), quiet.at[0, 0, 4].set(9.0)
  assert float(composite_diagnostics([unseen])["largest_singular_value"]) == pytest.approx(1.0)
  assert float(composite_diagnostics([seen])["largest_singular_value"]) == pytest.approx(9.0)


def _of_logits(logits, **fields):
  """Logit diagnostics of a static connection whose bias is given, with every read and write logit at 0."""
  rule = hyper_connection_fn(schema.Connection(**({"generator": "static"} | fields)), 8, 0)
  routing = sum(rule.logit_sizes[:2])
  bias = jnp.concatenate([jnp.zeros(routing), jnp.ravel(jnp.asarray(logits, jnp.float32))])
  return _values(jax.jit(lambda: logit_diagnostics(rule, {"bias": bias}, jnp.ones((1, N, 8))))())


def test_sensitivities_are_those_of_maps_whose_derivative_is_known():
  linear = _of_logits(np.eye(N), mixer="unconstrained", read_write="linear")
  assert [linear["mixer_sensitivity"], linear["routing_sensitivity"]] == pytest.approx([1.0, 1.0])
  assert linear["logit_saturation"] == linear["frozen_gradient"] == 0
  # σ'(0) = 1/4 on the read, (2σ)'(0) = 1/2 on the write, with the normal cotangents of the diagnostics.
  sigmoid = _of_logits(np.eye(N), mixer="unconstrained")
  assert 0.25 < sigmoid["routing_sensitivity"] < 0.5


@pytest.mark.parametrize("bias", [2.0, 6.0])
def test_the_sensitivity_of_sinkhorn_is_its_jacobian_averaged_over_cotangents(bias):
  sinkhorn = Sinkhorn()
  jacobian = jax.jit(jax.jacobian(lambda logits: sinkhorn.project(logits, N)))(bias * jnp.eye(N))
  average = float(jnp.linalg.norm(jacobian)) / N  # √E‖Jᵀc‖² = ‖J‖_F, over √E‖c‖² = n
  found = _of_logits(bias * np.eye(N), mixer="sinkhorn")
  assert found["mixer_sensitivity"] == pytest.approx(average, rel=0.6)


@pytest.mark.parametrize(
  ("manifold", "options", "logits"),
  [
    ("permutation", "", np.where(np.arange(24) == 0, 0.0, -200.0)),  # softmax weights underflow to 0
    ("sinkhorn", "", 80.0 * np.eye(N) - 40.0),  # every logit outside the clip
    ("sinkhorn", "clip=0,temperature=0.05", 8.0 * np.eye(N)),  # tokenbender's constants: exp(−160) is 0
  ],
)
def test_the_alarm_fires_where_the_gradient_is_gone(manifold, options, logits):
  found = _of_logits(logits, mixer=manifold, options=options)
  assert found["frozen_gradient"] == 1 and found["mixer_sensitivity"] < 1e-6
  assert found["logit_saturation"] > 0.3
  (line,) = alarms({"mixer/block0.tokens/frozen_gradient": 1.0, "mixer/composite/equal_streams": 0.0, "loss": 1.0})
  assert line.startswith("mixer/block0.tokens/frozen_gradient: the coefficients no longer answer")


@pytest.mark.parametrize(
  ("manifold", "options", "chosen"),
  [("choice", "", [0.0, 0.0, 0.5]), ("hybrid", "first=iso,second=identity,weight=0,final=1", None)],
)
def test_a_blend_that_went_over_to_the_identity_is_no_alarm(manifold, options, chosen):
  rule = hyper_connection_fn(schema.Connection(mixer=manifold, options=options), 8, 0)
  parameters = rule.init(jax.random.key(0)) | ({"choice": jnp.array(chosen)} if chosen else {})
  measure = jax.jit(lambda share: logit_diagnostics(rule, parameters | {"progress": share}, jnp.ones((5, N, 8))))
  for share in (0.0, 0.5, 0.6, 0.65, 0.69, 0.7, 0.9, 1.0):
    found = _values(measure(jnp.float32(share)))
    assert found["frozen_gradient"] == 0, (share, found)
  assert found["mixer_sensitivity"] < 1e-8 < found["routing_sensitivity"]


def test_a_choice_of_a_family_whose_gradient_is_gone_is_still_an_alarm():
  rule = hyper_connection_fn(schema.Connection(mixer="choice", generator="static"), 8, 0)
  parameters = rule.init(jax.random.key(0)) | {"choice": jnp.array([0.0, 0.5, 0.0]), "progress": jnp.ones(())}
  start = sum(rule.logit_sizes[:2]) + N * N  # after the logits of the first family, Iso
  frozen = parameters | {"bias": parameters["bias"].at[start : start + N * N].set(jnp.ravel(80.0 * jnp.eye(N) - 40.0))}
  measure = jax.jit(lambda p: logit_diagnostics(rule, p, jnp.ones((1, N, 8)))["frozen_gradient"])
  assert [float(measure(each)) for each in (parameters, frozen)] == [0.0, 1.0]


def test_transposed_mixers_and_segments_are_measured_as_they_are():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(*TOKENS, N, 4)), jnp.float32)
  fields = dict(mixer="grassmann", read_write="linear", segments=2, init_scale=1.0)
  plain, turned = (
    hyper_connection_fn(schema.Connection(**fields, transpose=transpose), 8, 0) for transpose in (False, True)
  )
  parameters = plain.init(jax.random.key(0))
  measure = jax.jit(lambda p: [connection_diagnostics(rule, p, x) for rule in (plain, turned)])
  (values, mix), (others, other) = measure(parameters)
  np.testing.assert_array_equal(other, jnp.swapaxes(mix, 0, 1))
  assert float(others["distance_to_set"]) == float(values["distance_to_set"]) < 1e-5
  read = np.abs(np.asarray(plain.coefficients(parameters, x).read))  # (m, n, *tokens)
  assert float(values["read_dominance"]) == pytest.approx(float(np.mean(read.max(axis=1) / read.sum(axis=1))), rel=1e-4)


def test_an_alarm_is_said_once_when_it_comes_on():
  console = Console(file=io.StringIO())
  bar = ProgressBar(10, 0, console)
  for step, on in ((1, []), (2, ["a: stuck"]), (3, ["a: stuck", "b: equal"]), (4, []), (5, ["a: stuck"])):
    bar.warn(step, on)
  assert console.file.getvalue().splitlines() == [
    "step 2: warning: a: stuck",
    "step 3: warning: b: equal",
    "step 5: warning: a: stuck",
  ]
