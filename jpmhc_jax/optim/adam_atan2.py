"""AdamATan2: Adam whose ratio m/sqrt(v) goes through atan2, so that no epsilon is needed.

Two published forms exist and they differ in step length, so each is available by name:

  imoneoi    p <- p (1 - lr wd) - lr / (1 - b1^t) * atan2(m, sqrt(v) / sqrt(1 - b2^t))         (used by HRM and TRM)
  lucidrains p <- p (1 - lr wd) - 1.27 lr * atan2(m / (1 - b1^t), sqrt(v / (1 - b2^t)))

In the first the correction of m multiplies the step outside atan2; the second has a steady state 1.27 times longer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jpmhc_jax.core.errors import check_choice
from jpmhc_jax.optim.schedules import ScalarOrSchedule

FORMS = ("imoneoi", "lucidrains")
_LUCIDRAINS_SCALE = 1.27  # the package's default `a`, chosen there so that atan2 stays near 1 for |m| = sqrt(v)


def scale_by_adam_atan2(b1: Any = 0.9, b2: Any = 0.95, form: str = "imoneoi") -> optax.GradientTransformation:
  """The ascent direction of AdamATan2, before learning rate and decay.

  m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2; the direction is bounded by pi/2 (times 1/(1 - b1^t) or 1.27) and
  does not change when all gradients are scaled. atan2(0, 0) = 0. Moments are float32 (float64 for float64 leaves).

  Raises ConfigError for an unknown form. Source: Everett et al. 2024 (arXiv 2407.05872); imoneoi/adam-atan2;
  lucidrains/adam-atan2-pytorch.
  """
  check_choice("form", form, FORMS)

  def moment(leaf: Any) -> jax.Array:
    return jnp.zeros_like(leaf, dtype=jnp.promote_types(leaf.dtype, jnp.float32))

  def init(params: optax.Params) -> optax.ScaleByAdamState:
    return optax.ScaleByAdamState(
      count=jnp.zeros([], jnp.int32), mu=jax.tree.map(moment, params), nu=jax.tree.map(moment, params)
    )

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    count = optax.safe_increment(state.count)
    mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g.astype(m.dtype), updates, state.mu)
    nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * jnp.square(g.astype(v.dtype)), updates, state.nu)

    def direction(g: Any, m: jax.Array, v: jax.Array) -> jax.Array:
      first = 1 - jnp.asarray(b1, m.dtype) ** count
      second = 1 - jnp.asarray(b2, m.dtype) ** count
      if form == "imoneoi":
        step = jnp.atan2(m, jnp.sqrt(v) / jnp.sqrt(second)) / first
      else:
        step = _LUCIDRAINS_SCALE * jnp.atan2(m / first, jnp.sqrt(v / second))
      return step.astype(g.dtype)

    return jax.tree.map(direction, updates, mu, nu), optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

  return optax.GradientTransformation(init, update)


def adam_atan2(
  learning_rate: ScalarOrSchedule,
  b1: Any = 0.9,
  b2: Any = 0.95,
  weight_decay: Any = 0.1,
  mask: Any | Callable[[Any], Any] | None = None,
  form: str = "imoneoi",
) -> optax.GradientTransformation:
  """AdamATan2 with decoupled weight decay scaled by the learning rate.

  p <- p (1 - lr wd) - lr * direction; `mask` (tree or callable, as in optax.adamw) selects the leaves that decay.

  Example (one step from 1 with gradient 0.5):
    >>> optimizer = adam_atan2(1e-2)
    >>> params = jnp.array([1.0])
    >>> updates, _ = optimizer.update(jnp.array([0.5]), optimizer.init(params), params)
    >>> float(optax.apply_updates(params, updates)[0])  # doctest: +ELLIPSIS
    0.98903...
  """
  return optax.chain(
    scale_by_adam_atan2(b1, b2, form),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )
