"""Tasks by the name in `model.kind`: ours and those of plugins."""

from collections.abc import Callable
import inspect
from typing import Any, TypeVar

from jpmhc_jax.config import plugins, schema
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.training.tasks.base import Task

C = TypeVar("C", bound=type[Task])


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
  task.check(config)
  return task
