"""Riemannian optimisation as optax transformations that chain, partition and schedule like any other.

Each piece takes a manifold of `manifolds`. Put together,

  optax.chain(
    riemannian_gradient(manifold),            # Euclidean gradient -> tangent vector
    scale_by_riemannian_adam(manifold),       # moments, carried along from point to point
    optax.scale_by_learning_rate(schedule),   # descent
    retract(manifold, method),                # tangent step -> update = new point - point
    stabilize_every(manifold, 100),           # removes the rounding that accumulates
  )

The additive contract holds at every stage: optax.apply_updates adds the update and lands on the manifold, from the
first step on: `stabilize_every` projects a start that is off it, and `init` warns where it sees values. Leaves are
`(*batch, n, p)` in float32 or float64; bfloat16 leaves the manifold within a hundred steps and is refused.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import optax

from jpmhc_jax.core.errors import check_choice, ConfigError
from jpmhc_jax.manifolds import Manifold

__all__ = [
  "ADAPTIVE", "RiemannianAdamState", "RiemannianMomentumState", "StabilizeState", "TRANSPORTS", "retract",
  "riemannian_gradient", "scale_by_riemannian_adam", "scale_by_riemannian_momentum", "stabilize_every", "warn_off",
]  # fmt: skip

ADAPTIVE = ("matrix", "elementwise", "none")
TRANSPORTS = ("isometric", "projection")


class RiemannianMomentumState(NamedTuple):
  """`momentum` is tangent at `point`, the parameters of the last update (empty for transport by projection)."""

  momentum: Any
  point: Any


class RiemannianAdamState(NamedTuple):
  """`mu` is tangent at `point`; `nu` holds one number a matrix or an entry, as `adaptive` says."""

  count: jax.Array  # type: ignore[assignment]  # optax's name, which shadows tuple.count
  mu: Any
  nu: Any
  point: Any


class StabilizeState(NamedTuple):
  """Updates made so far."""

  count: jax.Array  # type: ignore[assignment]  # optax's name, which shadows tuple.count


def riemannian_gradient(manifold: Manifold) -> optax.GradientTransformation:
  """Turns Euclidean gradients into Riemannian ones: <grad f, v> = df(v) in the manifold's metric.

  A matrix with an entry above max^0.4 (float32: 3e15) is scaled down to it first: its square length stays a number.
  `init` warns of parameters off the manifold.

  Raises ValueError without parameters and for shapes that hold no point, ConfigError for dtypes but float32 and
  float64.

  >>> sphere, x = jp.manifolds.Sphere(), jnp.array([[1.0], [0.0]])
  >>> transform = jp.optim.riemannian_gradient(sphere)
  >>> transform.update(jnp.array([[3.0], [4.0]]), transform.init(x), x)[0].tolist()  # what is left is tangent
  [[0.0], [4.0]]
  """

  def gradient(point: jax.Array, ambient: jax.Array) -> jax.Array:
    most = float(jnp.finfo(ambient.dtype).max) ** 0.4
    largest = jnp.max(jnp.abs(ambient), axis=(-2, -1), keepdims=True)
    return manifold.gradient(point, ambient * (most / jnp.maximum(largest, most)))

  def init(params: Any) -> optax.EmptyState:
    _check(manifold, params)
    warn_off(manifold, params, functools.partial(_is_off, manifold))
    return optax.EmptyState()

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    _check(manifold, params)
    return jax.tree.map(gradient, params, updates), state

  return optax.GradientTransformation(init, update)


def scale_by_riemannian_momentum(
  manifold: Manifold, decay: Any = 0.9, transport: str = "isometric"
) -> optax.GradientTransformation:
  """m <- decay * carried(m) + g for Riemannian gradients g; the momentum is carried to each new point.

  transport="isometric": by the manifold's own transport from the last point, which is stored. "projection": onto the
  tangent space at the new point, which needs no stored point and shortens m a little.

  Raises as `riemannian_gradient` does, and ConfigError for another transport.

  >>> sphere, x = jp.manifolds.Sphere(), jnp.array([[1.0], [0.0]])
  >>> transform = jp.optim.scale_by_riemannian_momentum(sphere, decay=0.5)
  >>> first, state = transform.update(jnp.array([[0.0], [1.0]]), transform.init(x), x)
  >>> transform.update(jnp.array([[0.0], [1.0]]), state, x)[0].tolist()
  [[0.0], [1.5]]
  """
  check_choice("transport", transport, TRANSPORTS)

  def init(params: Any) -> RiemannianMomentumState:
    _check(manifold, params)
    return RiemannianMomentumState(jax.tree.map(jnp.zeros_like, params), _remember(transport, params, copy=True))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    _check(manifold, params)
    carried = _carry(manifold, transport, state.point, params, state.momentum)
    momentum = jax.tree.map(lambda m, g: decay * m + g, carried, updates)
    return momentum, RiemannianMomentumState(momentum, _remember(transport, params))

  return optax.GradientTransformation(init, update)


def scale_by_riemannian_adam(
  manifold: Manifold,
  b1: Any = 0.9,
  b2: Any = 0.999,
  eps: Any = 1e-8,
  adaptive: str = "matrix",
  transport: str = "isometric",
) -> optax.GradientTransformation:
  """Adam on tangent vectors: direction = tangent(m_hat / (sqrt(v_hat) + eps)).

  m <- b1 carried(m) + (1 - b1) g,  m_hat = m / (1 - b1^t), likewise v_hat, with
  adaptive="matrix":       v <- b2 v + (1 - b2) <g, g>, one number a matrix: the direction stays tangent and no basis is
                           preferred; its length is about 1, so the learning rate is the angle of a step.
  adaptive="elementwise":  v <- b2 v + (1 - b2) g^2 as in plain Adam, projected back to the tangent space.
  adaptive="none":         momentum with bias correction only.

  Sources: Li et al. 2020 (arXiv 2002.01113; matrix), JPmHC (arXiv 2602.18308; elementwise), Becigneul & Ganea 2019.

  Raises as `riemannian_gradient` does, and ConfigError for an unknown `adaptive` or `transport`.

  >>> sphere, x = jp.manifolds.Sphere(), jnp.array([[1.0], [0.0]])
  >>> transform = jp.optim.scale_by_riemannian_adam(sphere)
  >>> direction, state = transform.update(jnp.array([[0.0], [25.0]]), transform.init(x), x)
  >>> direction.round(3).tolist()  # of length 1, whatever the gradient's
  [[0.0], [1.0]]
  """
  check_choice("adaptive", adaptive, ADAPTIVE)
  check_choice("transport", transport, TRANSPORTS)

  def square(point: jax.Array, gradient: jax.Array) -> jax.Array:
    if adaptive == "elementwise":
      return jnp.square(gradient)
    # Off the manifold, where a start may be, a canonical metric has no sign.
    return jnp.maximum(manifold.inner(point, gradient, gradient), 0)[..., None, None]

  def second_moment(leaf: Any) -> jax.Array:
    shape = leaf.shape if adaptive == "elementwise" else (*leaf.shape[:-2], 1, 1)
    return jnp.zeros(shape, leaf.dtype)

  def init(params: Any) -> RiemannianAdamState:
    _check(manifold, params)
    return RiemannianAdamState(
      count=jnp.zeros([], jnp.int32),
      mu=jax.tree.map(jnp.zeros_like, params),
      nu=jax.tree.map(second_moment, params) if adaptive != "none" else optax.EmptyState(),
      point=_remember(transport, params, copy=True),
    )

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    _check(manifold, params)
    count = optax.safe_increment(state.count)
    carried = _carry(manifold, transport, state.point, params, state.mu)
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, carried, updates)
    mu_hat = optax.tree.bias_correction(mu, b1, count)
    nu = state.nu
    if adaptive != "none":
      nu = jax.tree.map(lambda v, p, g: b2 * v + (1 - b2) * square(p, g), state.nu, params, updates)
      nu_hat = optax.tree.bias_correction(nu, b2, count)
      mu_hat = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
    direction = jax.tree.map(manifold.tangent, params, mu_hat)
    return direction, RiemannianAdamState(count, mu, nu, _remember(transport, params))

  return optax.GradientTransformation(init, update)


def retract(manifold: Manifold, method: str = "") -> optax.GradientTransformation:
  """Turns tangent steps into updates that stay on the manifold: update = R_p(step) - p.

  `method` is one of the manifold's retractions ('' takes its default). The step is projected to the tangent space
  first, so that anything (a clip, noise, Euclidean momentum) may stand before it in the chain.

  Raises as `riemannian_gradient` does, and ConfigError for a retraction that the manifold lacks.

  >>> sphere, x = jp.manifolds.Sphere(), jnp.array([[1.0], [0.0]])
  >>> transform = jp.optim.retract(sphere, "normalise")
  >>> update, state = transform.update(jnp.array([[0.0], [1.0]]), transform.init(x), x)
  >>> print((x + update).round(3).ravel())
  [0.707 0.707]
  """

  def step(point: jax.Array, vector: jax.Array) -> jax.Array:
    return manifold.retract(point, manifold.tangent(point, vector), method) - point

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    _check(manifold, params)
    return jax.tree.map(step, params, updates), state

  def init(params: Any) -> optax.EmptyState:
    _check(manifold, params)
    return optax.EmptyState()

  return optax.GradientTransformation(init, update)


def stabilize_every(manifold: Manifold, every: Any = 100) -> optax.GradientTransformation:
  """Replaces every `every`-th update by the one that lands on the projection of p + update; 0 = never.

  The first update of a matrix that starts off the manifold goes to its projection and no further. Rounding moves a
  trajectory off it by about 1e-8 a step in float32; this puts it back. Works after any transformation, Riemannian or
  not: with every=1 it turns a Euclidean optimiser into a projected one.

  Raises as `riemannian_gradient` does.

  >>> sphere, x = jp.manifolds.Sphere(), jnp.array([[1.0], [0.0]])
  >>> transform = jp.optim.stabilize_every(sphere, 1)
  >>> update, state = transform.update(jnp.array([[2.0], [4.0]]), transform.init(x), x)
  >>> print((x + update).round(3).ravel())
  [0.6 0.8]
  """

  def init(params: Any) -> StabilizeState:
    _check(manifold, params)
    return StabilizeState(jnp.zeros([], jnp.int32))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    _check(manifold, params)
    count = optax.safe_increment(state.count)
    scheduled = (every > 0) & (count % jnp.maximum(every, 1) == 0)
    due = scheduled | (count == 1)

    def land(point: jax.Array, update: jax.Array) -> jax.Array:
      stray = ((count == 1) & _is_off(manifold, point))[..., None, None]  # a step from there would have no meaning
      target = manifold.project(jnp.where(stray, point, point + update))
      return jnp.where(scheduled | stray, target - point, update)

    return jax.lax.cond(due, lambda u: jax.tree.map(land, params, u), lambda u: u, updates), StabilizeState(count)

  return optax.GradientTransformation(init, update)


def _check(manifold: Manifold, params: Any) -> None:
  """Every leaf can hold a point in a precision that stays on the manifold; decided from shapes, so free under jit."""
  if params is None:
    raise ValueError("Riemannian transformations need the parameters: call optimizer.update(gradients, state, params).")
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = _name(path)
    if leaf.dtype not in (jnp.float32, jnp.float64):
      raise ConfigError(
        f"parameter {name} has dtype {leaf.dtype}: a manifold leaf must be a float32 master parameter (lower precision "
        "drifts off the manifold); keep it float32 and cast it inside the model."
      )
    try:
      manifold.check_shape(tuple(leaf.shape))
    except ValueError as error:
      raise ConfigError(f"parameter {name}: {error}") from error


def _is_off(manifold: Manifold, point: jax.Array) -> jax.Array:
  """Which matrices miss their manifold by more than the root of rounding: far more than exact steps add up to."""
  result: jax.Array = ~(manifold.distance(point) <= float(jnp.finfo(point.dtype).eps) ** 0.5)
  return result


def warn_off(manifold: Manifold, params: Any, is_off: Callable[[jax.Array], jax.Array]) -> None:
  """Warns of leaves with a matrix that `is_off`, which the first step projects; silent where values are not at hand."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if isinstance(leaf, jax.core.Tracer) or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
      continue
    with jax.ensure_compile_time_eval():  # the values are at hand in a trace too
      off, worst = bool(jnp.any(is_off(leaf))), float(jnp.max(manifold.distance(leaf), initial=0.0))
    if off:
      warnings.warn(
        f"parameter {_name(path)} is off its manifold ({type(manifold).__name__}) by {worst:.1e}: the first step only "
        "projects it; pass manifold.project(parameter) so that the first gradient is taken there too.",
        stacklevel=3,
      )


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path) or "(the only leaf)"


def _remember(transport: str, params: Any, copy: bool = False) -> Any:
  # A copy at init: otherwise parameters and state share buffers, and a step that donates both fails.
  if transport == "projection":
    return optax.EmptyState()
  return jax.tree.map(jnp.copy, params) if copy else params


def _carry(manifold: Manifold, transport: str, point: Any, params: Any, vector: Any) -> Any:
  if transport == "projection":
    return jax.tree.map(manifold.tangent, params, vector)
  return jax.tree.map(manifold.transport, point, params, vector)
