"""Derivatives in float64: implicit = unrolled to convergence = finite differences, always against random cotangents."""

import jax
from jax.experimental.jet import jet
import jax.numpy as jnp
import numpy as np
import pytest

from jpmhc_jax.linalg.scaling import implicit_vjp
from jpmhc_jax.mixers import (  # fmt: skip
  BirkhoffNewton,
  Cayley,
  FAMILIES,
  Householder,
  Iso,
  make,
  parse,
  Polar,
  Sinkhorn,
)
from jpmhc_jax.mixers.birkhoff import gauss_seidel_sweeps

FIRST = ("cayley", "grassmann", "iso", "quaternion", "sinkhorn")  # one of each kind of rule; the others are slow
SMOOTH = {name: make(name) for name in FAMILIES if name not in ("birkhoff", "identity")}
# Converged, so that the implicit gradient is the gradient of the map.
SMOOTH["sinkhorn"] = Sinkhorn(sweeps=200, adjoint="implicit")
SMOOTH["householder"] = Householder(gate="soft")  # the hard gate passes a surrogate gradient on purpose
SMOOTH["iso_polar"] = Iso(method="express")
SMOOTH["polar_unrolled"] = Polar(method="newton_schulz", steps=12, adjoint="unrolled")


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def biased(n, bias, seed=0, tokens=8):
  return bias * jnp.eye(n)[:, :, None] + 0.5 * normal(seed, n, n, tokens)


@pytest.mark.parametrize("name", SMOOTH)
def test_jacobians_match_differences_and_have_the_rank_of_the_set(name, compiled):
  manifold, n = SMOOTH[name], 4
  with jax.enable_x64(True):
    start = np.asarray(manifold.identity_logits(n, 1.0)).reshape(manifold.logit_shape(n))
    logits = jnp.asarray(start + 0.4 * np.asarray(normal(3, *manifold.logit_shape(n))))
    # Sixteen tokens with the same logits and the sixteen unit cotangents: one call gives the whole Jacobian.
    copies = jnp.broadcast_to(logits[..., None], (*logits.shape, n * n))
    units = jnp.eye(n * n).reshape(n, n, n * n)
    _, rows = compiled(manifold, n)(copies, units)
    jacobian = np.asarray(rows).reshape(-1, n * n).T
    direction = normal(4, *logits.shape, n * n)
    step = 1e-5
    ahead, behind = (compiled(manifold, n)(copies + sign * step * direction, units)[0] for sign in (1, -1))
    difference = np.asarray((ahead - behind) / (2 * step)).reshape(n * n, n * n)
    predicted = jacobian @ np.asarray(direction).reshape(-1, n * n)
  np.testing.assert_allclose(difference, predicted, atol=2e-8 * max(1, np.abs(predicted).max()))
  sizes = np.linalg.svd(jacobian, compute_uv=False)
  rank = int(np.sum(sizes > 1e-7 * sizes[0]))
  if name == "orthostochastic_newton_schulz":
    assert rank >= manifold.dimension(n)  # its image is thicker than the set, because it is only near it
  else:
    assert rank == manifold.dimension(n)


@pytest.mark.parametrize(
  "name",
  [pytest.param(n, marks=() if n in FIRST else pytest.mark.slow) for n in FAMILIES if n != "identity"],
)
def test_forward_mode_is_the_transpose_of_reverse_mode_to_second_order(name):
  # The hard gate of a reflection passes a surrogate gradient, which is no derivative.
  manifold, n = Householder(gate="soft") if name == "householder" else make(name), 4
  shape = manifold.logit_shape(n)
  with jax.enable_x64(True):
    start = np.asarray(manifold.identity_logits(n, 1.0)).reshape(shape)
    logits = jnp.asarray(start[..., None] + 0.4 * np.asarray(normal(3, *shape, 2)))
    direction, cotangent = normal(4, *logits.shape), normal(5, n, n, 2)

    @jax.jit
    def derivatives(x):
      def slope(x):
        value, pullback = jax.vjp(lambda x: manifold.project(x, n), x)
        return value, pullback(cotangent)[0]

      return jax.jvp(slope, (x,), (direction,))

    (_, reverse), (forward, second) = derivatives(logits)
    step = 1e-5
    ahead, behind = (derivatives(logits + sign * step * direction)[0][1] for sign in (1, -1))
    difference = (ahead - behind) / (2 * step)
  forward, reverse, second = map(np.asarray, (forward, reverse, second))
  np.testing.assert_allclose(
    np.sum(np.asarray(cotangent) * forward), np.sum(reverse * np.asarray(direction)), rtol=1e-9, atol=1e-9
  )
  np.testing.assert_allclose(difference, second, atol=1e-6 * (np.abs(second).max() + 1e-6))


# Every family that reaches its set by iterations, and those that hold one.
ITERATED = (
  "sinkhorn", "sinkhorn(order=columns_first,sweeps=3)", "sinkhorn(clip=0)", "sinkhorn_epsilon", "birkhoff_newton",
  "sinkhorn_epsilon(sweeps=1,epsilon=0.1)", "sinkhorn_epsilon(softmax_first=false,epsilon=0.1)", "hybrid", "choice",
)  # fmt: skip


@pytest.mark.parametrize("text", ITERATED)
def test_the_gradient_is_that_of_what_is_computed_at_any_bias(text, compiled):
  manifold, n, tokens, step = parse(text), 4, 16, 1e-5
  shape = manifold.logit_shape(n)
  with jax.enable_x64(True):
    direction, cotangent = normal(1, *shape, tokens), normal(2, n, n, tokens)
    for bias in (0.0, 2.0, 4.0, 6.0, 8.0, 10.0):
      start = np.asarray(manifold.identity_logits(n, bias))[..., None]
      logits = start + 0.3 * normal(int(bias), *shape, tokens)
      ahead, behind = (compiled(manifold, n)(logits + sign * step * direction, cotangent)[0] for sign in (1, -1))
      _, gradient = compiled(manifold, n)(logits, cotangent)
      difference = np.sum(np.asarray(cotangent * (ahead - behind) / (2 * step)), axis=(0, 1))
      slope = np.sum(np.asarray(gradient * direction), axis=tuple(range(len(shape))))
      assert np.linalg.norm(slope - difference) < 1e-5 * np.linalg.norm(difference), bias


@pytest.mark.parametrize("n", (2, 4))
@pytest.mark.parametrize("bias", (0.0, 2.0, 4.0, 6.0))
def test_implicit_gradient_is_the_gradient_of_the_fixed_point(n, bias, compiled):
  with jax.enable_x64(True):
    logits, cotangent = biased(n, bias), normal(1, n, n, 8)
    newton, implicit = compiled(BirkhoffNewton(), n)(logits, cotangent)
    converged, unrolled = compiled(Sinkhorn(sweeps=4000, adjoint="unrolled"), n)(logits, cotangent)
    size = jnp.max(jnp.abs(unrolled))
    np.testing.assert_allclose(newton, converged, atol=1e-9)
    assert float(jnp.max(jnp.abs(implicit - unrolled)) / size) < 1e-6


def test_gauss_seidel_fails_near_the_identity_and_the_direct_solve_does_not(compiled):
  with jax.enable_x64(True):
    errors = {}
    for bias in (0.0, 2.0, 4.0, 6.0, 8.0):
      logits, cotangent = biased(4, bias), normal(1, 4, 4, 8)
      _, exact = compiled(BirkhoffNewton(clip=15.0), 4)(logits, cotangent)
      for adjoint in ("implicit", "gauss_seidel"):
        # Enough sweeps that only the backward differs.
        _, found = compiled(Sinkhorn(sweeps=20000, clip=15.0, adjoint=adjoint), 4)(logits, cotangent)
        errors[adjoint, bias] = float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))
  assert all(errors["implicit", bias] < 1e-6 for bias in (0.0, 2.0, 4.0, 6.0))
  assert errors["gauss_seidel", 0.0] < 1e-6 and errors["gauss_seidel", 2.0] < 1e-2
  assert errors["gauss_seidel", 4.0] > 0.03 and errors["gauss_seidel", 6.0] > 0.4 and errors["gauss_seidel", 8.0] > 0.7


def test_gradient_of_twenty_sweeps_is_another_function_near_the_identity(compiled):
  with jax.enable_x64(True):
    logits, cotangent = biased(4, 6.0, tokens=64), normal(1, 4, 4, 64)
    _, fixed_point = compiled(BirkhoffNewton(clip=15.0), 4)(logits, cotangent)
    _, implicit = compiled(Sinkhorn(clip=15.0, adjoint="implicit"), 4)(logits, cotangent)
    _, truncated = compiled(Sinkhorn(clip=15.0), 4)(logits, cotangent)
    size = jnp.linalg.norm(fixed_point)
    assert float(jnp.linalg.norm(truncated - fixed_point) / size) > 0.3
    # With the true sums of the P of sweep 20 the direct solve is the nearer of the two.
    assert float(jnp.linalg.norm(implicit - fixed_point)) < 0.5 * float(jnp.linalg.norm(truncated - fixed_point))


def test_the_direct_solve_holds_the_true_sums_of_an_unfinished_matrix(compiled):
  """With I in place of diag(r) the system is inconsistent where the sweeps have not converged."""
  with jax.enable_x64(True):
    matrix, cotangent = compiled(Sinkhorn(sweeps=1), 4)(biased(4, 4.0), normal(1, 4, 4, 8))[0], normal(1, 4, 4, 8)
    found = np.asarray(jax.jit(implicit_vjp)(matrix, cotangent))
  for p, g, gradient in zip(*(np.moveaxis(np.asarray(a), -1, 0) for a in (matrix, cotangent, found)), strict=True):
    system = np.block([[np.diag(p.sum(axis=1)), p], [p.T, np.diag(p.sum(axis=0))]])
    uv, *_ = np.linalg.lstsq(system, np.concatenate([(p * g).sum(axis=1), (p * g).sum(axis=0)]), rcond=None)
    np.testing.assert_allclose(gradient, p * (g - uv[:4, None] - uv[None, 4:]), atol=1e-10)


@pytest.mark.parametrize("manifold", (BirkhoffNewton(clip=15.0), Sinkhorn(clip=15.0)))
@pytest.mark.parametrize("bias", (0.0, 4.0, 8.0))
def test_float32_keeps_the_gradient_accurate(manifold, bias, compiled):
  # Without subtraction of near equals: the naive forms lose 1e-7 / (1 − P_ii), 1e-3 at bias 8.
  logits, cotangent = biased(4, bias), normal(1, 4, 4, 8)
  _, single = compiled(manifold, 4)(logits.astype(jnp.float32), cotangent.astype(jnp.float32))
  with jax.enable_x64(True):
    wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (logits, cotangent)]
    _, double = compiled(manifold, 4)(*wide)
  tolerance = 1e-5 if isinstance(manifold, Sinkhorn) else 1e-4
  np.testing.assert_allclose(single, np.asarray(double, np.float32), atol=tolerance * float(np.abs(double).max()))


@pytest.mark.parametrize("adjoint", ("implicit", "gauss_seidel", "unrolled"))
def test_clipped_logits_get_no_gradient(adjoint, compiled):
  logits = biased(4, 0.0).astype(jnp.float32).at[1, 2].set(11.0).at[3, 0].set(-40.0)
  _, gradient = compiled(Sinkhorn(adjoint=adjoint), 4)(logits, normal(1, 4, 4, 8).astype(jnp.float32))
  assert not np.any(gradient[1, 2]) and not np.any(gradient[3, 0])
  assert float(jnp.min(jnp.max(jnp.abs(gradient), axis=(0, 1)))) > 1e-3


def test_all_ones_cotangents_test_nothing(compiled):
  # 1ᵀP1 is constant: a wrong backward pass (here: none at all) would pass such a test.
  ones = jnp.ones((4, 4, 8), jnp.float32)
  _, gradient = compiled(BirkhoffNewton(), 4)(biased(4, 0.0).astype(jnp.float32), ones)
  assert float(jnp.max(jnp.abs(gradient))) < 1e-6


@pytest.mark.parametrize("manifold", (Cayley(alpha=1.0), BirkhoffNewton(), Polar(), Sinkhorn(clip=0.0)))
def test_second_derivatives(manifold):
  with jax.enable_x64(True):
    logits, cotangent, v = biased(4, 2.0)[..., 0], normal(1, 4, 4), normal(2, 4, 4)

    @jax.jit
    def slopes(x):
      def slope(x):
        return jnp.sum(jax.grad(lambda y: jnp.sum(cotangent * manifold.project(y, 4)))(x) * v)

      return jax.value_and_grad(slope)(x)

    step = 1e-5
    numeric = (slopes(logits + step * v)[0] - slopes(logits - step * v)[0]) / (2 * step)
    np.testing.assert_allclose(np.sum(np.asarray(slopes(logits)[1] * v)), numeric, rtol=1e-6, atol=1e-9)


def test_published_number_of_backward_sweeps():
  assert [gauss_seidel_sweeps(n) for n in (2, 3, 4, 5, 6, 8, 100)] == [10, 12, 16, 21, 26, 37, 50]


@pytest.mark.parametrize("name", ["unconstrained", "permutation", "circulant", "kronecker", "quaternion"])
def test_taylor_coefficients_of_mixers_without_a_rule_of_their_own(name):
  """`jet` fails on every `jax.custom_jvp`, and so on the other families; see `core.derivatives`."""
  mixer = make(name)

  def project(logits):
    return mixer.project(logits, 4)

  @jax.jit
  def both(x, v):
    derivative = jax.jvp(project, (x,), (v,))[1]
    second = jax.jvp(lambda x: jax.jvp(project, (x,), (v,))[1], (x,), (v,))[1]
    return jet(project, (x,), ((v, jnp.zeros_like(v)),))[1], [derivative, second]

  with jax.enable_x64(True):
    coefficients, derivatives = both(*(normal(seed, *mixer.logit_shape(4), 2) for seed in (5, 6)))
  for coefficient, derivative in zip(coefficients, derivatives, strict=True):
    np.testing.assert_allclose(coefficient, derivative, atol=1e-12)
