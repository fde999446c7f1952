"""Ready-made optimisers for matrices on a manifold, and the orthogonal-update family that one compares them with."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jpmhc_jax.core.errors import require
from jpmhc_jax.manifolds import Grassmann, Manifold, Stiefel
from jpmhc_jax.manifolds.retractions import gram, identity_like, matmul
from jpmhc_jax.optim.riemannian import (
  retract,
  riemannian_gradient,
  scale_by_riemannian_adam,
  scale_by_riemannian_momentum,
  stabilize_every,
  warn_off,
)
from jpmhc_jax.optim.schedules import ScalarOrSchedule

__all__ = [
  "CANONICAL", "EUCLIDEAN", "LandingState", "SUBSPACES", "cayley_adam", "cayley_sgd", "clip_singular_values",
  "grassmann_adam", "landing", "projected_muon",
]  # fmt: skip

CANONICAL, EUCLIDEAN, SUBSPACES = Stiefel(metric="canonical"), Stiefel(), Grassmann()


def _descent(
  learning_rate: ScalarOrSchedule,
  manifold: Manifold,
  moments: optax.GradientTransformation,
  method: str,
  stabilize: Any,
) -> optax.GradientTransformation:
  """Tangent gradient, moments, learning rate, retraction, and a re-projection every `stabilize` steps."""
  return optax.chain(
    riemannian_gradient(manifold),
    moments,
    optax.scale_by_learning_rate(learning_rate),
    retract(manifold, method),
    stabilize_every(manifold, stabilize),
  )


def cayley_sgd(
  learning_rate: ScalarOrSchedule,
  manifold: Manifold = CANONICAL,
  momentum: Any = 0.9,
  transport: str = "isometric",
  method: str = "",
  stabilize: Any = 100,
) -> optax.GradientTransformation:
  """Riemannian gradient descent with momentum: m <- momentum * carried(m) + grad f(p);  p <- R_p(-lr m).

  `method` '' is the manifold's default retraction, the exact Cayley transform for Stiefel. Re-projects every
  `stabilize` steps (0 = never). Source: Li et al. 2020 (arXiv 2002.01113), with the fixed-point solve made exact.

  Raises as `cayley_adam` does.

  >>> optimizer, x = jp.optim.cayley_sgd(0.1, jp.manifolds.Orthogonal()), jnp.eye(2)
  >>> updates, state = optimizer.update(-jnp.array([[0.0, -1.0], [1.0, 0.0]]), optimizer.init(x), x)
  >>> bool(jp.manifolds.Orthogonal().distance(x + updates) < 1e-6)
  True
  """
  moments = scale_by_riemannian_momentum(manifold, momentum, transport)
  return _descent(learning_rate, manifold, moments, method, stabilize)


def cayley_adam(
  learning_rate: ScalarOrSchedule,
  manifold: Manifold = CANONICAL,
  b1: Any = 0.9,
  b2: Any = 0.999,
  eps: Any = 1e-8,
  adaptive: str = "matrix",
  transport: str = "isometric",
  method: str = "",
  stabilize: Any = 100,
) -> optax.GradientTransformation:
  """Riemannian Adam on any manifold; Cayley-Adam on Stiefel. See `scale_by_riemannian_adam` for the moments.

  Leaves are (*batch, n, p), float32 or float64. Raises ConfigError for unknown words and other dtypes, ValueError for
  shapes that hold no point. Source: Li et al. 2020 (arXiv 2002.01113); Becigneul & Ganea 2019.

  >>> optimizer, x = jp.optim.cayley_adam(0.1, jp.manifolds.Orthogonal()), jnp.eye(2)
  >>> gradient = -jnp.array([[0.0, -1.0], [1.0, 0.0]])  # towards a quarter turn
  >>> updates, state = optimizer.update(gradient, optimizer.init(x), x)
  >>> print((x + updates).round(2)[1])  # a step of Frobenius norm 0.1 turns by 0.07
  [0.07 1.  ]
  """
  moments = scale_by_riemannian_adam(manifold, b1, b2, eps, adaptive, transport)
  return _descent(learning_rate, manifold, moments, method, stabilize)


def grassmann_adam(
  learning_rate: ScalarOrSchedule = 0.01,
  manifold: Grassmann = SUBSPACES,
  b1: Any = 0.9,
  b2: Any = 0.999,
  eps: Any = 1e-8,
  adaptive: str = "elementwise",
  transport: str = "isometric",
  method: str = "cayley_qr",
  stabilize: Any = 100,
) -> optax.GradientTransformation:
  """Adam for subspaces as published for JPmHC: horizontal gradient, elementwise moments, two Cayley sweeps, then QR.

  Source: arXiv 2602.18308 (learning rate 0.01, s = 2). adaptive="matrix" does not depend on the basis of the subspace.

  >>> optimizer, x = jp.optim.grassmann_adam(0.01), jnp.eye(3)[:, :1]
  >>> updates, state = optimizer.update(jnp.array([[1.0], [-1.0], [0.0]]), optimizer.init(x), x)
  >>> print((x + updates).round(2).ravel())  # the line turns away from the second axis; along itself it cannot move
  [1.   0.01 0.  ]
  """
  return cayley_adam(learning_rate, manifold, b1, b2, eps, adaptive, transport, method, stabilize)


def projected_muon(
  learning_rate: ScalarOrSchedule,
  manifold: Manifold = EUCLIDEAN,
  beta: Any = 0.95,
  sweeps: Any = 5,
  every: Any = 1,
) -> optax.GradientTransformation:
  """Riemannian gradient, Muon (optax.contrib), projection to the manifold every `every` steps: the comparison arm.

  Muon's update has singular values near 1 whatever the gradient, so the learning rate must decay for convergence. The
  gradient is made tangent first: Muon's quintic is not monotone, and on the normal part of a Euclidean gradient that
  can turn the tangent part into ascent (seen on Procrustes, where it settles 0.05 away). Source: Jordan et al. 2024.

  >>> optimizer, x = jp.optim.projected_muon(0.1), jnp.eye(3)[:, :2]
  >>> updates, state = optimizer.update(jnp.ones((3, 2)), optimizer.init(x), x)
  >>> bool(jp.manifolds.Stiefel().distance(x + updates) < 1e-5)
  True
  """

  def last_two_axes(updates: Any) -> Any:
    numbers = optax.contrib.MuonDimensionNumbers
    return jax.tree.map(lambda leaf: numbers(leaf.ndim - 2, leaf.ndim - 1), updates)

  return optax.chain(
    riemannian_gradient(manifold),
    optax.contrib.scale_by_muon(beta=beta, ns_steps=sweeps, weight_dimension_numbers=last_two_axes),
    optax.scale_by_learning_rate(learning_rate),
    stabilize_every(manifold, every),
  )


def clip_singular_values(low: float, high: float) -> optax.GradientTransformation:
  """The last of a chain: updates that land on the nearest matrices with all singular values in [low, high].

  Leaves (*batch, n, p). Raises ConfigError unless 0 <= low <= high.

  >>> optimizer, w = optax.chain(optax.sgd(1.0), jp.optim.clip_singular_values(0.5, 2.0)), jnp.eye(2)
  >>> updates, state = optimizer.update(jnp.diag(jnp.array([-9.0, 0.9])), optimizer.init(w), w)
  >>> (w + updates).round(3).tolist()
  [[2.0, 0.0], [0.0, 0.5]]
  """
  require(0 <= low <= high, "low, high", (low, high), "0 <= low <= high")

  def land(point: jax.Array, update: jax.Array) -> jax.Array:
    u, s, vt = jnp.linalg.svd(point + update, full_matrices=False)
    return matmul(u * jnp.clip(s, low, high)[..., None, :], vt) - point

  return optax.stateless(lambda updates, params: jax.tree.map(land, params, updates))


class LandingState(NamedTuple):
  """Updates made so far (the schedule's argument)."""

  count: jax.Array  # type: ignore[assignment]  # optax's name, which shadows tuple.count


def landing(learning_rate: ScalarOrSchedule, attraction: Any = 1.0, radius: Any = 0.5) -> optax.GradientTransformation:
  """Soft landing: no retraction; the iterate is pulled to X^T X = I while it descends.

  p <- p - eta L,  L = psi X + attraction * X (X^T X - I),  psi = skew(G X^T), the two parts being orthogonal. eta is
  the learning rate, cut to the largest step that provably keeps |X^T X - I|_F <= radius:
  eta <= min(1 / (2 lambda), (lambda d (1 - d) + sqrt(lambda^2 d^2 (1 - d)^2 + a^2 (radius - d))) / a^2)
  with d = |X^T X - I|_F, a = |psi X|_F, lambda = attraction. Start with d < 1, best on the manifold: between the radius
  and 1 it only contracts, and beyond 1 the first update goes to the projection.
  Source: Ablin & Peyre 2022; Ablin, Vary, Gao & Absil 2023 for n > p.

  Raises ValueError and ConfigError as `cayley_adam` does.

  >>> optimizer, x = jp.optim.landing(0.1), 1.1 * jnp.eye(2)
  >>> updates, state = optimizer.update(jnp.zeros((2, 2)), optimizer.init(x), x)
  >>> off = jp.manifolds.Orthogonal().distance
  >>> bool(off(x + updates) < off(x))  # without a gradient it is pulled to the manifold
  True
  """

  def step(point: jax.Array, gradient: jax.Array, rate: jax.Array) -> jax.Array:
    product = gram(point, point)
    excess = product - identity_like(product)
    relative = 0.5 * (matmul(gradient, product) - matmul(point, gram(gradient, point)))
    d, a = norm(excess), jnp.maximum(norm(relative), jnp.finfo(point.dtype).tiny ** 0.5)
    pull = attraction * d * (1 - d) / a
    room = jnp.maximum(radius - d, 0.0)
    safe = (pull + jnp.sqrt(pull**2 + room)) / a  # divided twice, because a² may be no number
    eta = jnp.minimum(rate, jnp.minimum(safe, 1 / (2 * attraction)))
    descent = -eta * (relative + attraction * matmul(point, excess))
    far = d >= 1
    result: jax.Array = jax.lax.cond(
      jnp.any(far), lambda u: jnp.where(far, EUCLIDEAN.project(point) - point, u), lambda u: u, descent
    )
    return result

  def norm(matrix: jax.Array) -> jax.Array:
    largest = jnp.maximum(jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True), jnp.finfo(matrix.dtype).tiny)
    return largest * jnp.sqrt(jnp.sum(jnp.square(matrix / largest), axis=(-2, -1), keepdims=True))

  def init(params: Any) -> LandingState:
    stabilize_every(EUCLIDEAN).init(params)  # the same demands on shape and precision
    warn_off(EUCLIDEAN, params, lambda leaf: norm(gram(leaf, leaf) - identity_like(gram(leaf, leaf))) >= 1)
    return LandingState(jnp.zeros([], jnp.int32))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
    steps = jax.tree.map(lambda p, g: step(p, g, jnp.asarray(rate, p.dtype)), params, updates)
    return steps, LandingState(optax.safe_increment(state.count))

  return optax.GradientTransformation(init, update)
