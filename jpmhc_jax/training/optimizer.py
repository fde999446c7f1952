"""The run's optimiser: one optax transformation a group of parameters, from the config and the roles."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, TypeVar

import jax
import optax
import optax.contrib

from jpmhc_jax.config import plugins, schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.manifolds import Grassmann, Manifold, MANIFOLDS
from jpmhc_jax.optim.adam_atan2 import adam_atan2
from jpmhc_jax.optim.labels import label_tree, manifold_names, MANIFOLD_PREFIX
from jpmhc_jax.optim.manifold_optimizers import cayley_adam, grassmann_adam
from jpmhc_jax.optim.schedules import make_schedule

STACKED, CALLS, VOCABULARY = "layers", "calls", "vocab"  # logical axes: one slice a layer, or a call; one row a token
F = TypeVar("F", bound=Callable[..., optax.GradientTransformation])


@dataclasses.dataclass(frozen=True)
class Group:
  """The parameters that an optimiser is made for.

  learning_rate: a schedule, update count -> step size. weight_decay: decoupled, scaled by the learning rate. matrices:
  params -> a tree of their structure, True where a leaf holds matrices that act on features: (in, out), or
  (layers, calls, in, out) where layers or calls are stacked; the embedding and the head of a vocabulary do not count.
  """

  learning_rate: optax.Schedule
  weight_decay: float
  matrices: Callable[[Any], Any]


def register_optimizer(name: str, *, fields: type | None = None) -> Callable[[F], F]:
  """A decorator: `optimizer.name=name` is what this function makes, any optax transformation.

  The function is called as `build(config, group)` for the trunk and for the connections; `config` is the group
  `optimizer`, with the fields that the plugin declares in `config.<name>`, and `group` has `learning_rate`,
  `weight_decay` and `matrices`. Raises ConfigError for a name that is taken, and for fields not declared by `field`.

  >>> import optax
  >>> @jp.register_optimizer("adabelief")
  ... def adabelief(config, group):
  ...   return optax.adabelief(group.learning_rate, b1=config.beta1, b2=config.beta2)
  """
  return plugins.OPTIMIZERS.register(name, fields)


@register_optimizer("adam_atan2")
def _adam_atan2(config: schema.Optimizer, group: Group, form: str = "imoneoi") -> optax.GradientTransformation:
  return adam_atan2(group.learning_rate, b1=config.beta1, b2=config.beta2, weight_decay=group.weight_decay, form=form)


@register_optimizer("adam_atan2_lucidrains")
def _adam_atan2_lucidrains(config: schema.Optimizer, group: Group) -> optax.GradientTransformation:
  return _adam_atan2(config, group, form="lucidrains")


@register_optimizer("adamw")
def _adamw(config: schema.Optimizer, group: Group) -> optax.GradientTransformation:
  return optax.adamw(group.learning_rate, b1=config.beta1, b2=config.beta2, weight_decay=group.weight_decay)


@register_optimizer("lion")
def _lion(config: schema.Optimizer, group: Group) -> optax.GradientTransformation:
  """Chen et al. 2023 (arXiv 2302.06675); its learning rate is 3 to 10 times smaller than Adam's."""
  return optax.lion(group.learning_rate, b1=config.beta1, b2=config.beta2, weight_decay=group.weight_decay)


@register_optimizer("muon")
def _muon(config: schema.Optimizer, group: Group) -> optax.GradientTransformation:
  """Muon (Jordan et al. 2024) on matrices, Adam on all else, at one learning rate.

  Updates of matrices have the root mean square 0.2 of Adam's, so that Adam's learning rate fits (Liu et al. 2025,
  arXiv 2502.16982). beta1 is the momentum of both.
  """

  def numbers(params: Any) -> Any:
    last_two = optax.contrib.MuonDimensionNumbers(-2, -1)
    return jax.tree.map(lambda matrix: last_two if matrix else None, group.matrices(params))

  return optax.contrib.muon(
    group.learning_rate, beta=config.beta1, weight_decay=group.weight_decay, adam_b1=config.beta1,
    adam_b2=config.beta2, adam_weight_decay=group.weight_decay, muon_weight_dimension_numbers=numbers,
    consistent_rms=0.2,
  )  # fmt: skip


@register_optimizer("sgd")
def _sgd(config: schema.Optimizer, group: Group) -> optax.GradientTransformation:
  return optax.chain(
    optax.trace(config.beta1) if config.beta1 else optax.identity(),
    optax.add_decayed_weights(group.weight_decay),
    optax.scale_by_learning_rate(group.learning_rate),
  )


def make_optimizer(
  config: schema.Optimizer,
  roles: Any,
  total_steps: int,
  manifold_geometries: Mapping[str, Manifold] | None = None,
  axes: Any = None,
) -> optax.GradientTransformation:
  """Clip, then one optimiser a group: trunk, mixers, matrices on manifolds; all follow the same schedule shape.

  `roles` is a tree of strings of the parameters' structure (see `optim.labels`); `manifold_geometries` maps the name in
  a role `manifold:<name>` to its manifold (default: `manifolds.MANIFOLDS`). A leaf with role `puzzle` does
  not move here: `sign_sgd_rows` moves its rows. `axes` is a tree of the logical axes, which tell a stack of vectors
  from a matrix; without it a leaf of two axes is a matrix.

  Raises ConfigError for an uncovered leaf, an unknown role or optimiser, or a setting out of range.
  """
  manifolds = dict(MANIFOLDS if manifold_geometries is None else manifold_geometries)
  mixer, matrices = config.mixer, functools.partial(_matrices, _by_path(axes))
  rate = config.learning_rate * mixer.learning_rate_multiplier
  trunk = Group(config_schedule(config, total_steps), config.weight_decay, matrices)
  connections = Group(config_schedule(config, total_steps, rate), mixer.weight_decay, matrices)
  build = plugins.OPTIMIZERS[config.name].value
  transforms = {
    "trunk": build(config, trunk),
    "mixer": optax.chain(_clip("optimizer.mixer.clip_norm", mixer.clip_norm), build(config, connections)),
    "puzzle": optax.set_to_zero(),
  }
  names = tuple(manifolds)
  for name in set(names) & set(manifold_names(roles)):
    transforms[MANIFOLD_PREFIX + name] = _riemannian(config, total_steps, manifolds[name])
  return optax.chain(
    _clip("optimizer.clip_norm", config.clip_norm),
    optax.partition(transforms, lambda params: label_tree(params, roles, names)),
  )


def _by_path(axes: Any) -> dict[str, tuple[Any, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
  return {jax.tree_util.keystr(path): names for path, names in leaves}


def _matrices(axes: Mapping[str, tuple[Any, ...]], params: Any) -> Any:
  def one(path: Any, leaf: Any) -> bool:
    names = axes.get(jax.tree_util.keystr(path), (None,) * leaf.ndim)
    return leaf.ndim - (STACKED in names) - (CALLS in names) == 2 and VOCABULARY not in names

  return jax.tree_util.tree_map_with_path(one, params)


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
