"""The run's optimiser: one optax transformation a group of parameters, from the config and the roles."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import optax

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import check_choice, ConfigError
from jpmhc_jax.manifolds import Grassmann, Manifold, MANIFOLDS
from jpmhc_jax.optim.adam_atan2 import adam_atan2
from jpmhc_jax.optim.labels import label_tree, manifold_names, MANIFOLD_PREFIX
from jpmhc_jax.optim.manifold_optimizers import cayley_adam, grassmann_adam
from jpmhc_jax.optim.schedules import make_schedule

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "adam_atan2": adam_atan2,
  "adam_atan2_lucidrains": functools.partial(adam_atan2, form="lucidrains"),
  "adamw": optax.adamw,
}


def make_optimizer(
  config: schema.Optimizer, roles: Any, total_steps: int, manifold_geometries: Mapping[str, Manifold] | None = None
) -> optax.GradientTransformation:
  """Clip, then one optimiser a group: trunk, mixers, matrices on manifolds; all follow the same schedule shape.

  `roles` is a tree of strings of the parameters' structure (see `optim.labels`); `manifold_geometries` maps the name in
  a role `manifold:<name>` to its manifold (default: `manifolds.MANIFOLDS`). A leaf with role `puzzle` does
  not move here: `sign_sgd_rows` moves its rows.

  Raises ConfigError for an uncovered leaf, an unknown role or optimiser, or a setting out of range.
  """
  manifolds = dict(MANIFOLDS if manifold_geometries is None else manifold_geometries)
  mixer = config.mixer
  transforms = {
    "trunk": _euclidean(config, total_steps, config.learning_rate, config.weight_decay),
    "mixer": optax.chain(
      _clip("optimizer.mixer.clip_norm", mixer.clip_norm),
      _euclidean(config, total_steps, config.learning_rate * mixer.learning_rate_multiplier, mixer.weight_decay),
    ),
    "puzzle": optax.set_to_zero(),
  }
  names = tuple(manifolds)
  for name in set(names) & set(manifold_names(roles)):
    transforms[MANIFOLD_PREFIX + name] = _riemannian(config, total_steps, manifolds[name])
  return optax.chain(
    _clip("optimizer.clip_norm", config.clip_norm),
    optax.partition(transforms, lambda params: label_tree(params, roles, names)),
  )


def config_schedule(config: schema.Optimizer, total_steps: int, learning_rate: float | None = None) -> optax.Schedule:
  """The run's schedule shape with peak `learning_rate` (default: the trunk's).

  Every group (trunk, mixers, manifold leaves, puzzle table) follows the same shape, as in the published trainer.
  """
  return make_schedule(
    config.schedule,
    config.learning_rate if learning_rate is None else learning_rate,
    config.warmup_steps,
    total_steps,
    config.min_ratio,
    config.step_boundaries,
    config.step_factors,
  )


def _euclidean(config: schema.Optimizer, total_steps: int, peak: float, decay: float) -> optax.GradientTransformation:
  check_choice("optimizer.name", config.name, OPTIMIZERS)
  schedule = config_schedule(config, total_steps, peak)
  return OPTIMIZERS[config.name](schedule, b1=config.beta1, b2=config.beta2, weight_decay=decay)


def _riemannian(config: schema.Optimizer, total_steps: int, manifold: Manifold) -> optax.GradientTransformation:
  every = config.mixer.stabilize_every
  if every < 0:
    raise ConfigError(f"optimizer.mixer.stabilize_every={every}: expected a number of steps, or 0 for never.")
  schedule = config_schedule(config, total_steps, config.mixer.manifold_learning_rate)
  if isinstance(manifold, Grassmann):
    return grassmann_adam(schedule, manifold, stabilize=every)
  return cayley_adam(schedule, manifold, stabilize=every)


def _clip(field: str, norm: float) -> optax.GradientTransformation:
  if norm < 0:
    raise ConfigError(f"{field}={norm}: expected a norm above 0, or 0 for no clipping.")
  return optax.clip_by_global_norm(norm) if norm > 0 else optax.identity()
