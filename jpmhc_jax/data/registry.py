"""Data sets by the name in `data.kind`: ours and those of plugins."""

from collections.abc import Callable
from typing import Any, TypeVar

from jpmhc_jax.config import plugins
from jpmhc_jax.config.schema import Data
from jpmhc_jax.core.errors import ConfigError
from jpmhc_jax.core.fields import check
from jpmhc_jax.data.dataset import Dataset

B = TypeVar("B", bound=Callable[..., Any])


def register_dataset(name: str, *, fields: type | None = None, voting: bool = False) -> Callable[[B], B]:
  """A decorator: `data.kind=name` is what this function builds.

  The function is called as `build(config, batch_size=…, seed=…)` and returns a `Dataset`; `config` is the group `data`,
  with the fields that the plugin declares in `config.<name>`. voting: predictions of augmented copies are votes, as in
  ARC (`pass@k`). Raises ConfigError for a name that is taken, and for fields that are not declared by `field`.

  >>> import dataclasses
  >>> @dataclasses.dataclass(frozen=True)
  ... class RampFields:
  ...   slope: float = jp.field(2.0, "rise of y over x", gt=0)
  >>> @jp.register_dataset("ramp", fields=RampFields)
  ... def ramp(config, *, batch_size, seed):
  ...   x = np.linspace(0, 1, 10)[:, None]
  ...   arrays = {"x": x, "y": config.ramp.slope * x}
  ...   return jp.ArrayDataset.of(arrays, arrays, kind="ramp", batch_size=batch_size, seed=seed)
  """
  return plugins.DATASETS.register(name, fields, voting=voting)


def build(config: Data, *, batch_size: int, seed: int) -> Dataset:
  """The data set of config.kind, with training batches of `batch_size` rows drawn from `seed`.

  Raises ConfigError for a field of `data` out of its bounds, DataError for a malformed file.
  """
  check(config, "data.")
  builder = plugins.DATASETS[config.kind].value
  dataset = builder(config, batch_size=batch_size, seed=seed)
  if not isinstance(dataset, Dataset):
    raise ConfigError(
      f"data.kind={config.kind!r}: {builder.__qualname__}() returned {type(dataset).__name__}; expected a data set, "
      "such as jpmhc_jax.ArrayDataset.of(…)"
    )
  return dataset


def votes(config: Data) -> bool:
  """Whether predictions of augmented copies of a test input are votes on its answer."""
  return bool(plugins.DATASETS[config.kind].traits["voting"])
