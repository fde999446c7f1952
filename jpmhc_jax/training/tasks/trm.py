"""The Tiny Recursive Model as the trainer sees it: deep supervision, a halting head and a puzzle table."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jpmhc_jax.config import schema
from jpmhc_jax.data import Dataset
from jpmhc_jax.models.deep_supervision import Batch, Carry, initial_carry, refresh
from jpmhc_jax.models.trm import TRM
from jpmhc_jax.training import objective as supervision
from jpmhc_jax.training.tasks.base import build, Probe

TABLE_ROWS_MULTIPLE = 256


class DeepSupervision:
  """See `Task`. Evaluation metrics are means over examples."""

  data_kinds: tuple[str, ...] = ("arc", "sudoku", "maze")
  per_example: tuple[str, ...] = (
    "loss", "lm_loss", "q_halt_loss", "accuracy", "exact_accuracy", "q_halt_accuracy",
  )  # fmt: skip
  main_metric: str = "exact_accuracy"
  higher_is_better: bool = True
  objective = staticmethod(supervision.objective)
  summarise = staticmethod(supervision.summarise)

  def build(self, config: schema.Config, dataset: Dataset, rngs: nnx.Rngs) -> TRM:
    return build(TRM, config, dataset, rngs)

  def table_shape(self, config: schema.Config, dataset: Dataset) -> tuple[int, int] | None:
    # Rounded up by a number that no mesh changes, so that a checkpoint fits every mesh.
    rows = -(-dataset.num_identifiers // TABLE_ROWS_MULTIPLE) * TABLE_ROWS_MULTIPLE
    return (rows, config.model.puzzle.width) if config.model.puzzle.width else None

  def initial_carry(self, model: TRM, batch: Batch) -> Carry:
    return initial_carry(self._latents(model, *batch["inputs"].shape), batch)

  def refresh(self, model: TRM, carry: Carry, batch: Batch) -> Carry:
    """Halted rows start on the batch's examples from the initial latents."""
    return refresh(carry, model.initial_latents(*carry.z_h.shape[:2]), batch)

  def answer(
    self, model: TRM, rows: Float[Array, "b w"] | None, batch: Batch, config: schema.Config
  ) -> dict[str, Array]:
    """The rollout: every example takes all `max_steps` supervision steps, q is not used to stop; the last one answers.

    Also `q_halt` (b,).
    """

    def one(latents: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
      output = model(*latents, batch["inputs"], rows)
      return (output.z_h, output.z_l), None

    start = self._latents(model, *batch["inputs"].shape)
    latents, _ = jax.lax.scan(one, start, None, length=config.model.recursion.max_steps - 1)
    output = model(*latents, batch["inputs"], rows)
    per_row = supervision.losses(output, batch["labels"], config.model.loss)
    per_row["loss"] = per_row["lm_loss"] + supervision.HALT_WEIGHT * per_row["q_halt_loss"]
    return per_row | {"predictions": jnp.argmax(output.logits, axis=-1).astype(jnp.int32), "q_halt": output.q[:, 0]}

  def evaluation_metrics(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
    return {name: total / max(examples, 1) for name, total in sums.items()}

  def inspect(self, model: TRM, rows: Float[Array, "b w"] | None, carry: Carry, probe: Probe) -> dict[str, Any]:
    """One reasoning update on the carry."""
    found: dict[str, Any] = {}

    def visit(name: str, connection: Any, streams: Array) -> None:
      found[name] = probe(connection, streams)

    x = model.embed(carry.data["inputs"], rows)
    model.network(carry.z_l, carry.z_h + model.injected(x), visit)
    return found

  def _latents(self, model: TRM, rows: int, length: int) -> tuple[Array, Array]:
    return model.initial_latents(rows, length + model.model.puzzle.slots)
