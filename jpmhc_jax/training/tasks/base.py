"""`Task`, all that training and evaluation know of a family of models, and `SinglePass`, the part transformers share.

The trainer, the checkpoints, the evaluator and the diagnostics know a model only through this protocol: a family adds
a class, not an `if` there. `registry` lists the families.
"""

import abc
from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Protocol, runtime_checkable, TypeVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jpmhc_jax.config import schema
from jpmhc_jax.data import Dataset
from jpmhc_jax.models.deep_supervision import Batch

M = TypeVar("M", bound=nnx.Module)
Sums = dict[str, Float[Array, ""]]
Probe = Callable[[Any, Float[Array, "*tokens n d"]], Any]  # (connection, the streams that enter it) -> arrays


@runtime_checkable
class Task(Protocol):
  """A family of models.

  data_kinds: data that it can learn from. per_example: names of the arrays (b,) of `answer` that evaluation sums up.
  main_metric: of `evaluation_metrics`, ranks checkpoints. A carry is a pytree of arrays (b, …) that persists from one
  step to the next and holds, as `carry.data`, the examples that the step works on.
  """

  data_kinds: tuple[str, ...]
  per_example: tuple[str, ...]
  main_metric: str
  higher_is_better: bool

  def build(self, config: schema.Config, dataset: Dataset, rngs: nnx.Rngs) -> nnx.Module:
    """The model for the data set's vocabulary and sequence length."""
    ...

  def table_shape(self, config: schema.Config, dataset: Dataset) -> tuple[int, int] | None:
    """(rows, width) of the table with one learned row per puzzle identifier; None without one."""
    ...

  def initial_carry(self, model: Any, batch: dict[str, Array]) -> Any:
    """The carry before the first step; `batch` has the shapes and dtypes of the data, all zeros."""
    ...

  def refresh(self, model: Any, carry: Any, batch: dict[str, Array]) -> Any:
    """The carry with which the next step starts."""
    ...

  def objective(
    self, model: Any, rows: Float[Array, "b w"] | None, carry: Any, config: schema.Config, key: Key[Array, ""] | None
  ) -> tuple[Float[Array, ""], tuple[Any, Sums]]:
    """Loss summed over rows, (carry after the step, metrics summed over rows; `lm_loss` is one of them)."""
    ...

  def summarise(self, sums: dict[str, float], rows: int) -> dict[str, float]:
    """Means from the metrics of `objective`, summed over steps with `rows` rows in all; `loss` is one of them."""
    ...

  def answer(
    self, model: Any, rows: Float[Array, "b w"] | None, batch: dict[str, Array], config: schema.Config
  ) -> dict[str, Array]:
    """`predictions` (b, s) and the arrays (b,) named in `per_example`, for held-out examples."""
    ...

  def evaluation_metrics(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
    """Metrics from the sums of `per_example` over all valid examples."""
    ...

  def inspect(self, model: Any, rows: Float[Array, "b w"] | None, carry: Any, probe: Probe) -> dict[str, Any]:
    """`probe` of every connection, by name, in the order in which the streams pass them."""
    ...


def build(model: Callable[..., M], config: schema.Config, dataset: Dataset, rngs: nnx.Rngs) -> M:
  """A model for the data set's vocabulary and sequence length, in the config's compute dtype."""
  return model(
    config.model,
    config.connection,
    vocab_size=dataset.vocab_size,
    sequence_length=dataset.sequence_length,
    dtype=jnp.dtype(config.precision.compute),
    rngs=rngs,
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LastBatch:
  """The examples of the latest step: what diagnostics look at."""

  data: Any


class SinglePass(abc.ABC):
  """The part of `Task` that all transformers share: one pass over a batch, of which only the batch stays."""

  @abc.abstractmethod
  def losses(self, logits: Float[Array, "b ..."], labels: Int[Array, "b ..."], loss: str) -> Sums:
    """Metrics summed over rows; `lm_loss` is what training minimises."""

  def table_shape(self, config: schema.Config, dataset: Dataset) -> None:
    return None

  def initial_carry(self, model: Any, batch: Batch) -> LastBatch:
    return LastBatch(batch)

  def refresh(self, model: Any, carry: LastBatch, batch: Batch) -> LastBatch:
    return LastBatch(batch)

  def objective(
    self, model: Any, rows: Float[Array, "b w"] | None, carry: Any, config: schema.Config, key: Key[Array, ""] | None
  ) -> tuple[Float[Array, ""], tuple[Any, Sums]]:
    sums = self.losses(model(carry.data["inputs"]), carry.data["labels"], config.model.loss)
    return sums["lm_loss"], (carry, sums)

  def inspect(self, model: Any, rows: Float[Array, "b w"] | None, carry: LastBatch, probe: Probe) -> dict[str, Any]:
    """One pass over the latest batch: "block0.tokens", "block0.features", "block1.tokens", …"""
    _, probed = model.run(model.embed(carry.data["inputs"]), probe)
    return {
      f"block{layer}.{name}": jax.tree.map(lambda leaf, layer=layer: leaf[layer], values)
      for layer in range(model.model.layers)
      for name, values in probed.items()
    }
