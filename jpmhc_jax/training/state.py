"""Everything that training changes, as one plain pytree, how it is laid out over the mesh, and its norms by layer."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float
import optax

from jpmhc_jax.config import schema
from jpmhc_jax.core import rng
from jpmhc_jax.data import Dataset
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.optimizer import config_schedule, make_optimizer, STACKED
from jpmhc_jax.training.tasks.base import Task, task_of


@dataclasses.dataclass(frozen=True)
class LayerNorms:
  """‖g‖, ‖w‖ and ‖Δw‖ by layer. A layer is the leaves that share all of their path but the last name.

  names: of the columns, such as "block0.features"; parameters stacked over layers give one column a slice,
  "blocks.features[3]". The norms cost one pass over each tree, fused with the optimiser's where the compiler can.
  """

  names: tuple[str, ...]
  groups: tuple[tuple[str, int | None], ...]  # of each leaf: layer and, for stacked leaves, the number of slices

  @classmethod
  def of(cls, shapes: Any, axes: Any) -> "LayerNorms":
    """The layers of a parameter tree; `axes` holds the tuple of logical axes wherever `shapes` holds an array."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    groups: list[tuple[str, int | None]] = []
    for (path, leaf), names in zip(
      leaves, jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, tuple)), strict=True
    ):
      keys = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
      stacked = bool(names) and names[0] == STACKED
      groups.append((".".join(keys[:-1] or keys), leaf.shape[0] if stacked else None))
    columns: list[str] = []
    for name, slices in dict.fromkeys(groups):
      columns += [name] if slices is None else [f"{name}[{k}]" for k in range(slices)]
    return cls(tuple(columns), tuple(groups))

  def __call__(self, gradients: Any, parameters: Any, updates: Any) -> Float[Array, "3 layers"]:
    """Rows: gradient norm, parameter norm, update norm; float32."""
    return jnp.stack([self._norms(tree) for tree in (gradients, parameters, updates)])

  def scalars(self, norms: Float[Any, "3 layers"]) -> dict[str, float]:
    """`gradient_norm/<layer>` and `update_ratio/<layer>` = ‖Δw‖/‖w‖ (of a layer that is all zero: ‖Δw‖/1e-12)."""
    gradient, parameter, update = (row.tolist() for row in norms)
    norms_by_name = dict(zip((f"gradient_norm/{name}" for name in self.names), gradient, strict=True))
    ratios = [u / max(p, 1e-12) for u, p in zip(update, parameter, strict=True)]
    return norms_by_name | dict(zip((f"update_ratio/{name}" for name in self.names), ratios, strict=True))

  def _norms(self, tree: Any) -> Float[Array, "layers"]:
    squares: dict[tuple[str, int | None], Array] = {}
    for group, leaf in zip(self.groups, jax.tree.leaves(tree), strict=True):
      own = tuple(range(0 if group[1] is None else 1, leaf.ndim))
      total = jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=own)
      squares[group] = squares[group] + total if group in squares else total
    return jnp.sqrt(jnp.concatenate([jnp.atleast_1d(total) for total in squares.values()]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """A pytree whose leaves may also be shapes or shardings.

  step: finished steps, () int32; params, ema: float32 masters and their average (None when off); optimizer: optax
  state; buffers: the model's variables that no gradient moves; table: puzzle embeddings (puzzles, w) float32 or None;
  carry: what the task keeps from step to step.
  """

  step: Any
  params: Any
  ema: Any
  optimizer: Any
  buffers: Any
  table: Any
  carry: Any

  @property
  def evaluated(self) -> Any:
    """The parameters that evaluation uses."""
    return self.params if self.ema is None else self.ema


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a run keeps constant: task, model graph, optimiser, mesh, and the layout of the state."""

  config: schema.Config
  task: Task
  graph: nnx.GraphDef
  optimizer: optax.GradientTransformation
  mesh: Mesh
  shardings: TrainState  # of NamedSharding
  create: Callable[[], TrainState]
  parameter_count: int
  connection_parameters: int  # of them in the hyper-connections
  layers: LayerNorms

  def model(self, params: Any, buffers: Any) -> Any:
    """The model with these parameters and buffers."""
    return nnx.merge(self.graph, nnx.State(params), nnx.State(buffers))

  def buffers_of(self, model: Any) -> Any:
    """The buffers that a model of this setup holds now."""
    return nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[2])  # type: ignore[misc]

  def rows(self, table: Array | None, batch: Any) -> Array | None:
    """The table's rows of a batch (b, w); None without a table."""
    return None if table is None else table[batch[self.task.table_ids]]

  def learning_rate(self, finished_steps: int) -> float:
    """The trunk's learning rate of the next step."""
    return float(self._schedule(finished_steps))

  @functools.cached_property
  def _schedule(self) -> Callable[[int], Array]:
    return jax.jit(config_schedule(self.config.optimizer, self.config.steps))  # one program: 10 µs a call, not 1 ms


def build_model(config: schema.Config, dataset: Dataset, key: Array) -> nnx.Module:
  """The model of the config for this data set's examples."""
  return task_of(config).build(config, dataset, nnx.Rngs(params=key))


def _axes(state: nnx.State) -> Any:
  """The logical axes of every variable; one that names none, as those of Flax's own layers, is split nowhere."""
  return _metadata(state, "axes", lambda variable: (None,) * len(variable.shape))


def _metadata(state: nnx.State, name: str, default: Callable[[nnx.Variable], Any]) -> Any:
  def one(variable: nnx.Variable) -> Any:
    return variable.get_metadata(name, default(variable))

  return nnx.to_pure_dict(jax.tree.map(one, state, is_leaf=lambda v: isinstance(v, nnx.Variable)))


def prepare(config: schema.Config, dataset: Dataset, mesh: Mesh, *, trains: bool = True) -> Setup:
  """Shapes, optimiser and shardings of a run; `setup.create()` then makes the state on the devices.

  trains=False: for a state that is only read. Any number of devices holds it: a carry whose rows they do not divide
  lies whole on each. Raises ConfigError for a mesh that the batch, in training, or a parameter does not divide into.
  """
  if trains:
    meshes.check_batch(config.batch_size, config.accumulation, mesh)
  key = rng.key_for(config.seed, "parameters")
  graph, params, buffers = nnx.split(  # type: ignore[misc]
    jax.eval_shape(lambda: build_model(config, dataset, key)), nnx.Param, ...
  )
  axes, roles = _axes(params), _metadata(params, "role", lambda _: "trunk")
  optimizer = make_optimizer(config.optimizer, roles, config.steps, axes=axes)
  create = _creator(config, dataset, optimizer)
  shapes = jax.eval_shape(create)
  of_params = meshes.shardings(mesh, shapes.params, axes)
  whole = meshes.replicated(mesh)
  by_row = whole if config.batch_size % meshes.ways(mesh) else meshes.batch_sharding(mesh)
  shardings = TrainState(
    step=whole,
    params=of_params,
    ema=None if shapes.ema is None else of_params,
    optimizer=_like_params(shapes.optimizer, shapes.params, of_params, whole),
    buffers=meshes.shardings(mesh, shapes.buffers, _axes(buffers)),
    table=None if shapes.table is None else meshes.shardings(mesh, shapes.table, ("puzzles", None)),
    carry=jax.tree.map(lambda _: by_row, shapes.carry),
  )
  sizes = [leaf.size for leaf in jax.tree.leaves(shapes.params)]
  task = task_of(config)
  others = [size for size, role in zip(sizes, jax.tree.leaves(roles), strict=True) if role != "trunk"]
  return Setup(
    config=config,
    task=task,
    graph=graph,
    optimizer=optimizer,
    mesh=mesh,
    shardings=shardings,
    create=jax.jit(create, out_shardings=shardings),
    parameter_count=sum(sizes),
    connection_parameters=sum(others) if task.connected else 0,
    layers=LayerNorms.of(shapes.params, axes),
  )


def _like_params(optimizer: Any, params: Any, of_params: Any, otherwise: NamedSharding) -> Any:
  """Moments are laid out like their parameter: a leaf whose path ends in a parameter's path, with its shape."""
  shapes = {path: leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
  layouts = dict(jax.tree_util.tree_flatten_with_path(of_params)[0])

  def one(path: tuple, leaf: Any) -> NamedSharding:
    for start in range(len(path)):
      if shapes.get(path[start:]) == leaf.shape:
        return layouts[path[start:]]
    return otherwise

  return jax.tree_util.tree_map_with_path(one, optimizer)


def _creator(
  config: schema.Config, dataset: Dataset, optimizer: optax.GradientTransformation
) -> Callable[[], TrainState]:
  key, task = rng.key_for(config.seed, "parameters"), task_of(config)
  table = task.table_shape(config, dataset)

  def create() -> TrainState:
    model = build_model(config, dataset, key)
    zeros = {name: jnp.zeros((config.batch_size, *row.shape), row.dtype) for name, row in dataset.element_spec.items()}
    _, params, buffers = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    params = nnx.to_pure_dict(params)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      ema=jax.tree.map(jnp.copy, params) if config.optimizer.ema else None,
      optimizer=optimizer.init(params),
      buffers=nnx.to_pure_dict(buffers),
      table=None if table is None else jnp.zeros(table),
      carry=task.initial_carry(model, zeros),
    )

  return create
