"""`Task`, all that training and evaluation know of what a run learns, and `SinglePass`, the part that most tasks share.

The trainer, the checkpoints, the evaluator and the diagnostics know a model only through its task: a new one is a
class under `@register_task`, not an `if` there. `task_of` finds it by the name in `model.kind`.
"""

import abc
from collections.abc import Callable, Iterable, Mapping
import dataclasses
import inspect
from typing import Any, TypeVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from jpmhc_jax.config import plugins, schema
from jpmhc_jax.core.errors import ConfigError, require
from jpmhc_jax.data import TokenDataset

C = TypeVar("C", bound="type[Task]")
M = TypeVar("M", bound=nnx.Module)
Batch = dict[str, Array]
Sums = dict[str, Float[Array, ""]]
Probe = Callable[[Any, Float[Array, "*tokens n d"]], Any]  # (connection, the streams that enter it) -> arrays
Answer = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # a batch on the host -> the `predictions` of `predict`


@dataclasses.dataclass(frozen=True)
class Outputs:
  """What evaluation takes of a task's `predict` and `judge`; see the attributes of `Task` of the same names."""

  per_example: tuple[str, ...]
  kept: tuple[str, ...]
  collected: tuple[str, ...]
  judged: tuple[str, ...]

  def extended(self, **names: tuple[str, ...]) -> "Outputs":
    """With more names of a kind behind those that there are."""
    return dataclasses.replace(self, **{kind: (*getattr(self, kind), *more) for kind, more in names.items()})


class Task(abc.ABC):
  """What a run learns: the model, its objective, its metrics and its predictions.

  data_kinds: names of data sets that it can learn from; () for any. per_example: names of the arrays (b,) of `predict`
  that evaluation sums up. kept: names of those of which evaluation/step_N.json holds all values; of a classifier truth,
  answer and confidence, which the report draws. main_metric: of `evaluation_metrics`, ranks checkpoints and heads the
  report. table_ids: the array of a batch that numbers the rows of the table; '' without one.
  linearised: `jpmhc spectrum` knows its network. attends: its layers have the config's `model.token_mixer`.
  has_trajectories: `evaluation.trajectories` may be more than one. has_loops: `model.loops` may be more than one.
  collected: names of the arrays (b, …) of `predict` that `judge` takes of all held-out examples together, judged: its
  metrics. alarms: of the scalars of `look` that are 1 when something is wrong, by the last part of the name, what to
  do. connected: whether parameters of other roles than "trunk" are those of hyper-connections.
  A carry is a pytree of arrays (b, …) that persists from one step to the next and holds, as `carry.data`, the examples
  that the step works on.

  >>> sorted(jp.Task.__abstractmethods__)
  ['build', 'initial_carry', 'objective', 'predict', 'refresh']
  """

  data_kinds: tuple[str, ...] = ()
  per_example: tuple[str, ...] = ("loss",)
  kept: tuple[str, ...] = ()
  main_metric: str = "loss"
  higher_is_better: bool = False
  table_ids: str = ""
  linearised: bool = False
  attends: bool = False
  has_trajectories: bool = False
  has_loops: bool = False
  collected: tuple[str, ...] = ()
  judged: tuple[str, ...] = ()
  alarms: Mapping[str, str] = {}
  connected: bool = True

  def check(self, config: schema.Config) -> None:
    """Raises ConfigError for fields that cannot work with this task."""
    return None

  @abc.abstractmethod
  def build(self, config: schema.Config, dataset: Any, rngs: nnx.Rngs) -> nnx.Module:
    """The model for the data set's examples."""

  def table_shape(self, config: schema.Config, dataset: Any) -> tuple[int, int] | None:
    """(rows, width) of a table with one learned row per identifier; None without one."""
    return None

  def steps_per_batch(self, config: schema.Config) -> int:
    """How many steps an example stays in the carry at most."""
    return 1

  @abc.abstractmethod
  def initial_carry(self, model: Any, batch: Batch) -> Any:
    """The carry before the first step; `batch` has the shapes and dtypes of the data, all zeros."""

  @abc.abstractmethod
  def refresh(self, model: Any, carry: Any, batch: Batch) -> Any:
    """The carry with which the next step starts."""

  @abc.abstractmethod
  def objective(
    self, model: Any, rows: Float[Array, "b w"] | None, carry: Any, config: schema.Config, key: Key[Array, ""] | None
  ) -> tuple[Float[Array, ""], tuple[Any, Sums]]:
    """Loss summed over rows, (carry after the step, metrics summed over rows)."""

  def summarise(self, sums: dict[str, float], rows: int) -> dict[str, float]:
    """Means from `loss` and the metrics of `objective`, summed over steps with `rows` rows in all; `loss` is one."""
    return {name: total / rows for name, total in sums.items()}

  @abc.abstractmethod
  def predict(self, model: Any, rows: Float[Array, "b w"] | None, batch: Batch, config: schema.Config) -> Batch:
    """The arrays (b,) named in `per_example` and `kept`, and `predictions` (b, …) for what is shown.

    Also `valid` (b,) where some rows have nothing to be compared with: 0 keeps a row out of all means.
    """

  def evaluation_metrics(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
    """Metrics from the sums of `per_example` over all valid examples: their means."""
    return {name: total / max(examples, 1) for name, total in sums.items()}

  def capture(self, model: Any, rows: Float[Array, "b w"] | None, carry: Any, probe: Probe) -> dict[str, Any]:
    """`probe` of every connection, by name, in the order in which the streams pass them; {} where none is looked at."""
    return {}

  def spaces(self, model: Any, batch: Batch) -> dict[str, Float[Array, "b d"]]:
    """Latents by name that `jpmhc latents` writes; {} where they are those at the connections that `capture` shows."""
    return {}

  def adjust(self, params: Any, updates: Any, carry: Any, config: schema.Config) -> Any:
    """The updates that the optimiser's become; `carry` is that with which the step starts."""
    return updates

  def restart(self, model: Any, carry: Any, batch: Batch) -> Any:
    """The carry after a step whose loss or gradient is not finite; `carry` is that before it."""
    return self.initial_carry(model, batch)

  def look(self, model: Any, carry: Any, config: schema.Config) -> dict[str, Float[Array, ""]]:
    """Diagnostics of the carry's examples by full name, beside those of the connections."""
    return {}

  def outputs(self, config: schema.Config) -> Outputs:
    """What evaluation takes under these fields: the task's attributes, unless it says more."""
    return Outputs(self.per_example, self.kept, self.collected, self.judged)

  def judge(
    self, model: Any, dataset: Any, arrays: Mapping[str, np.ndarray], config: schema.Config, step: int
  ) -> tuple[dict[str, float], dict[str, Any]]:
    """(metrics of all held-out examples together, what else evaluation/step_N.json holds) from `collected`.

    What the latter has under "cost", such as times, goes to evaluation/cost_N.json.
    """
    return {}, {}

  def samples(self, dataset: Any, batch: Mapping[str, np.ndarray], answer: Answer) -> list[dict[str, Any]] | None:
    """Examples for the report that take calls of their own, as plain JSON values; None leaves it to the data set."""
    return None


def register_task(name: str, *, fields: type | None = None) -> Callable[[C], C]:
  """A decorator: `model.kind=name` is this class, a `Task`.

  fields: a frozen dataclass of the task's own config fields, which then stand in `config.model.<name>`. Raises
  ConfigError for a name that is taken, for a class that is no whole task, and for fields not declared by `field`.

  >>> @jp.register_task("line")
  ... class Line(jp.SinglePass):
  ...   def build(self, config, dataset, rngs):
  ...     return nnx.Linear(1, 1, rngs=rngs)
  ...   def losses(self, model, batch, config):
  ...     return {"loss": jnp.sum((model(batch["x"]) - batch["y"]) ** 2, axis=-1)}
  """

  def decorate(cls: Any) -> Any:
    if not inspect.isclass(cls) or not issubclass(cls, Task):
      raise ConfigError(f"model.kind={name!r}: {cls!r}: expected a class that inherits Task, such as SinglePass")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
      raise ConfigError(f"model.kind={name!r}: {cls.__qualname__} lacks {', '.join(missing)}; expected a whole task")
    return plugins.TASKS.register(name, fields)(cls)

  return decorate


def task_of(config: schema.Config) -> Task:
  """The task of `model.kind`; raises ConfigError where it cannot learn from `data.kind`, or with these fields."""
  plugins.check(config)
  task: Task = plugins.TASKS[config.model.kind].value()
  if task.data_kinds and config.data.kind not in task.data_kinds:
    raise ConfigError(
      f"data.kind={config.data.kind!r}: model.kind={config.model.kind!r} learns from {', '.join(task.data_kinds)}; "
      f"set one of these, or another model.kind ({', '.join(plugins.TASKS.names(config.plugins))})"
    )
  trajectories = config.evaluation.trajectories
  words = f"1: an example of model.kind={config.model.kind!r} has one rollout"
  require(trajectories == 1 or task.has_trajectories, "evaluation.trajectories", trajectories, words)
  loops, words = config.model.loops, f"1: model.kind={config.model.kind!r} has no loops over its layers"
  require(loops == 1 or task.has_loops, "model.loops", loops, words)
  task.check(config)
  return task


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LastBatch:
  """The examples of the latest step: what diagnostics look at."""

  data: Any


class SinglePass(Task):
  """A task that looks at a batch once: a subclass says how to `build` the model and what its `losses` are.

  >>> sorted(jp.SinglePass.__abstractmethods__)
  ['build', 'losses']
  """

  @abc.abstractmethod
  def losses(self, model: Any, batch: Batch, config: schema.Config) -> dict[str, Float[Array, "b"]]:
    """Per row: `loss`, which training minimises, and the metrics of `per_example`."""

  def initial_carry(self, model: Any, batch: Batch) -> LastBatch:
    """The batch."""
    return LastBatch(batch)

  def refresh(self, model: Any, carry: LastBatch, batch: Batch) -> LastBatch:
    """The new batch: nothing persists."""
    return LastBatch(batch)

  def objective(
    self, model: Any, rows: Float[Array, "b w"] | None, carry: Any, config: schema.Config, key: Key[Array, ""] | None
  ) -> tuple[Float[Array, ""], tuple[Any, Sums]]:
    """Sums of `losses` over the rows; raises ConfigError unless each gives one number a row."""
    losses = self.losses(model, carry.data, config)
    check_per_row(f"{type(self).__name__}.losses", losses, ("loss", *losses), carry.data)
    sums = {name: jnp.sum(values) for name, values in losses.items()}
    return sums["loss"], (carry, sums)

  def predict(self, model: Any, rows: Float[Array, "b w"] | None, batch: Batch, config: schema.Config) -> Batch:
    """The `losses` of the held-out rows."""
    return self.losses(model, batch, config)


def check_per_row(what: str, arrays: Mapping[str, Array], names: Iterable[str], batch: Batch) -> None:
  """Raises ConfigError unless the named arrays are there with one number a row of the batch."""
  rows = len(next(iter(batch.values())))
  for name in names:
    if name not in arrays:
      raise ConfigError(f"{what} gives {', '.join(arrays) or 'nothing'}; expected {name!r} among them")
    if arrays[name].shape != (rows,):
      raise ConfigError(f"{what}: {name!r} has the shape {arrays[name].shape}; expected one number a row, ({rows},)")


def check_attention(model: schema.Model) -> None:
  """Raises ConfigError for heads that do not share the features evenly."""
  require(model.width % model.heads == 0, "model.width", model.width, f"a multiple of model.heads={model.heads}")
  even = model.width // model.heads % 2 == 0
  require(even or model.positions != "rope", "model.heads", model.heads, "an even width per head (rope rotates pairs)")


def check_sublayers(config: schema.Config) -> None:
  """Raises ConfigError for sub-layers as wide as a stream."""
  sublayer = config.connection.sublayer
  require(sublayer == "whole", "connection.sublayer", sublayer, "whole: stream is for model.kind=trm and urm")


def check_one_call(config: schema.Config, otherwise: str = "") -> None:
  """Raises ConfigError as `check_sublayers`, and for what only a network has that is called again and again.

  otherwise: how this one becomes such a network.
  """
  check_sublayers(config)
  sharing, rematerialise = config.connection.sharing, config.model.rematerialise
  words = "all: only a network that is called again and again repeats connections"
  require(sharing == "all", "connection.sharing", sharing, words + otherwise)
  words = "none, products, coefficients or block: the network is one call"
  require(rematerialise != "call", "model.rematerialise", rematerialise, words + otherwise)


def check_own_connections(config: schema.Config) -> None:
  """Raises ConfigError for connections of each call's own where there are none."""
  alone = config.connection.streams == 1 and config.connection.sharing == "per_call"
  require(not alone, "connection.streams", 1, "2 or more, since connection.sharing=per_call is about connections")


class TransformerPass(SinglePass):
  """What the transformers of `models.transformer` share: one pass, all of whose layers can be looked at."""

  linearised = attends = has_loops = True

  def check(self, config: schema.Config) -> None:
    """Raises ConfigError for heads that share the features unevenly, and for fields of loops that there are not."""
    model, connection = config.model, config.connection
    check_attention(model)
    require(model.convolution == 0, "model.convolution", model.convolution, "0: it is for model.kind=trm and urm")
    if model.loops == 1:
      check_one_call(config, "; or set model.loops to 2 or more")
      embedding = model.recursion.call_embedding
      require(not embedding, "model.recursion.call_embedding", embedding, "False, or 2 or more model.loops beside it")
    else:
      check_sublayers(config)
      check_own_connections(config)
      words = "carry: the streams go from loop to loop"
      require(connection.scope == "carry", "connection.scope", connection.scope, words)

  def capture(self, model: Any, rows: Float[Array, "b w"] | None, carry: LastBatch, probe: Probe) -> dict[str, Any]:
    """One pass over the latest batch: "block0.tokens", "block0.features", …; of later loops "block0.tokens.call1", …"""
    _, probed = model.run(model.embed(carry.data["inputs"]), probe)
    depth = np.ndindex(model.model.loops, model.model.layers)
    return {
      f"block{layer}.{name}" + (f".call{loop}" if loop else ""): jax.tree.map(lambda leaf, k=k: leaf[k], values)
      for k, (loop, layer) in enumerate(depth)
      for name, values in probed.items()
    }


def token_model(model: Callable[..., M], config: schema.Config, dataset: TokenDataset, rngs: nnx.Rngs) -> M:
  """A model for the data set's vocabulary and sequence length, in the config's compute dtype."""
  return model(
    config.model,
    config.connection,
    vocab_size=dataset.vocab_size,
    sequence_length=dataset.sequence_length,
    dtype=jnp.dtype(config.precision.compute),
    rngs=rngs,
  )
