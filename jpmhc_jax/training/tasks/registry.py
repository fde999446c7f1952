"""The model families that can be trained, by the name in `model.kind`."""

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import check_choice, ConfigError
from jpmhc_jax.training.tasks.base import Task
from jpmhc_jax.training.tasks.language import NextByte
from jpmhc_jax.training.tasks.trm import DeepSupervision
from jpmhc_jax.training.tasks.vision import ImageClass

KINDS: dict[str, Task] = {"trm": DeepSupervision(), "decoder": NextByte(), "vit": ImageClass()}


def kind_of(config: schema.Config) -> Task:
  """The family of `model.kind`; raises ConfigError where it cannot learn from `data.kind`."""
  check_choice("model.kind", config.model.kind, KINDS)
  kind = KINDS[config.model.kind]
  if config.data.kind not in kind.data_kinds:
    raise ConfigError(
      f"data.kind={config.data.kind!r}: model.kind={config.model.kind!r} learns from {', '.join(kind.data_kinds)}; "
      f"set one of these, or another model.kind ({', '.join(KINDS)})"
    )
  return kind
