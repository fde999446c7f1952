"""The Tiny Recursive Model as the trainer sees it: deep supervision, a halting head and a puzzle table."""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jpmhc_jax.config import schema
from jpmhc_jax.core import rng
from jpmhc_jax.core.errors import require
from jpmhc_jax.core.examples import IGNORED
from jpmhc_jax.data import TokenDataset
from jpmhc_jax.models.connections import sublayer_width
from jpmhc_jax.models.deep_supervision import Batch, Carry, halt, initial_carry, refresh
from jpmhc_jax.models.losses import binary_cross_entropy, TOKEN_LOSSES
from jpmhc_jax.models.trajectories import choose, disturbed, example_keys
from jpmhc_jax.models.trm import Output, TRM
from jpmhc_jax.training.tasks.base import (
  check_attention,
  check_own_connections,
  Probe,
  register_task,
  Task,
  token_model,
)

HALT_WEIGHT = 0.5
Latents = tuple[Array, Array | None]

# Sums over rows that halted in this step and have a label; divided by `count` when they are reported.
PER_HALTED = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")
# Sums over all rows; divided by the number of rows when they are reported.
PER_ROW = ("lm_loss", "q_halt_loss")


def losses(output: Output, labels: Int[Array, "b s"], kind: str) -> dict[str, Float[Array, "b"]]:
  """Per row: lm_loss (mean over its labelled positions), q_halt_loss, token accuracy, exact (0/1), valid (0/1).

  A row without labels counts as exact (its halting target is 1) and adds no token loss. Source: TRM's loss head.
  """
  labelled = labels != IGNORED
  count = jnp.sum(labelled, axis=-1)
  divisor = jnp.maximum(count, 1).astype(jnp.float32)
  right = labelled & (jnp.argmax(output.logits, axis=-1) == labels)
  exact = jnp.sum(right, axis=-1) == count
  lm_loss = jnp.sum(TOKEN_LOSSES[kind](output.logits, labels), axis=-1) / divisor
  target = jax.lax.stop_gradient(exact.astype(lm_loss.dtype))
  return {
    "lm_loss": lm_loss,
    "q_halt_loss": binary_cross_entropy(output.q[:, 0], target),
    "accuracy": jnp.sum(right, axis=-1) / divisor,
    "exact_accuracy": exact.astype(jnp.float32),
    "q_halt_accuracy": ((output.q[:, 0] >= 0) == exact).astype(jnp.float32),
    "valid": (count > 0).astype(jnp.float32),
  }


def objective(
  model: TRM, rows: Float[Array, "b w"] | None, carry: Carry, config: schema.Config, key: Key[Array, ""] | None
) -> tuple[Float[Array, ""], tuple[Carry, dict[str, Float[Array, ""]]]]:
  """Σ over rows of (lm_loss + ½ q_halt_loss), the carry after the step, and sums of the metrics."""
  output = model(carry.z_h, carry.z_l, carry.data["inputs"], rows)
  per_row = losses(output, carry.data["labels"], config.model.loss)
  steps = carry.steps + 1
  halted = halt(steps, output.q[:, 0], config.model.recursion, key)
  reported = halted * per_row["valid"]
  per_row["steps"] = steps.astype(jnp.float32)
  metrics = {name: jnp.sum(reported * per_row[name]) for name in PER_HALTED}
  metrics |= {name: jnp.sum(per_row[name]) for name in PER_ROW}
  metrics["count"] = jnp.sum(reported)
  loss = metrics["lm_loss"] + HALT_WEIGHT * metrics["q_halt_loss"]
  return loss, (Carry(output.z_h, output.z_l, steps, halted, carry.data), metrics)


def summarise(sums: dict[str, float], rows: int) -> dict[str, float]:
  """Means from summed metrics: per halted row (absent where none halted), or per row for the losses."""
  means = {name: sums[name] / sums["count"] for name in PER_HALTED if sums["count"]}
  means |= {name: sums[name] / max(rows, 1) for name in PER_ROW}
  return means | {"loss": means["lm_loss"] + HALT_WEIGHT * means["q_halt_loss"], "count": sums["count"]}


TABLE_ROWS_MULTIPLE = 256


@register_task("trm")
class DeepSupervision(Task):
  """See `Task`. Evaluation metrics are means over examples."""

  data_kinds: tuple[str, ...] = ("arc", "sudoku", "maze")
  per_example = (
    "loss", "lm_loss", "q_halt_loss", "accuracy", "exact_accuracy", "q_halt_accuracy",
  )  # fmt: skip
  main_metric = "exact_accuracy"
  higher_is_better = True
  table_ids = "puzzle_identifiers"
  linearised = attends = True
  has_trajectories = True
  objective = staticmethod(objective)
  summarise = staticmethod(summarise)

  def build(self, config: schema.Config, dataset: TokenDataset, rngs: nnx.Rngs) -> TRM:
    """A `TRM` for the data set's vocabulary."""
    return token_model(TRM, config, dataset, rngs)

  def table_shape(self, config: schema.Config, dataset: TokenDataset) -> tuple[int, int] | None:
    """A row for each puzzle identifier, rounded up; None with model.puzzle.width=0."""
    # Rounded up by a number that no mesh changes, so that a checkpoint fits every mesh.
    rows = -(-dataset.num_identifiers // TABLE_ROWS_MULTIPLE) * TABLE_ROWS_MULTIPLE
    return (rows, config.model.puzzle.width) if config.model.puzzle.width else None

  def check(self, config: schema.Config) -> None:
    """Raises ConfigError for heads that share the features unevenly, and a puzzle vector wider than its slots."""
    check_attention(dataclasses.replace(config.model, width=sublayer_width(config.connection, config.model.width)))
    check_own_connections(config)
    voted = config.evaluation.choice == "vote" and config.data.kind == "arc"
    require(not voted, "evaluation.choice", "vote", "halting, since the augmented copies of ARC's test inputs vote")
    puzzle, most = config.model.puzzle, config.model.puzzle.slots * config.model.width
    words = f"0 to slots*width = {most} (the vector is zero-padded into the slots)"
    require(0 <= puzzle.width <= most, "model.puzzle.width", puzzle.width, words)

  def steps_per_batch(self, config: schema.Config) -> int:
    """model.recursion.max_steps: an example that never halts stays so long."""
    return config.model.recursion.max_steps

  def initial_carry(self, model: TRM, batch: Batch) -> Carry:
    """Initial latents in every row, all of them halted."""
    return initial_carry(self._latents(model, *batch["inputs"].shape), batch)

  def refresh(self, model: TRM, carry: Carry, batch: Batch) -> Carry:
    """Halted rows start on the batch's examples from the initial latents."""
    return refresh(carry, model.initial_latents(*carry.z_h.shape[:2]), batch)

  def predict(
    self, model: TRM, rows: Float[Array, "b w"] | None, batch: Batch, config: schema.Config
  ) -> dict[str, Array]:
    """The rollout: every example takes all `max_steps` supervision steps, q is not used to stop; the last one answers.

    Of `evaluation.trajectories` rollouts the chosen one. Also `q_halt` (b,).
    """
    evaluation, start = config.evaluation, self._latents(model, *batch["inputs"].shape)

    def enter(latents: Latents, trajectory: Array | None, step: Array) -> Latents:
      if trajectory is None:
        return latents
      keys = example_keys(rng.key_for(config.seed, "trajectories"), batch["inputs"], batch[self.table_ids])
      return disturbed(latents, keys, trajectory, step, evaluation.noise)

    def rollout(trajectory: Array | None) -> dict[str, Array]:
      def one(latents: Latents, step: Array) -> tuple[Latents, None]:
        output = model(*enter(latents, trajectory, step), batch["inputs"], rows)
        return (output.z_h, output.z_l), None

      last = config.model.recursion.max_steps - 1
      latents, _ = jax.lax.scan(one, start, jnp.arange(last))
      output = model(*enter(latents, trajectory, jnp.asarray(last)), batch["inputs"], rows)
      per_row = losses(output, batch["labels"], config.model.loss)
      per_row["loss"] = per_row["lm_loss"] + HALT_WEIGHT * per_row["q_halt_loss"]
      return per_row | {"predictions": jnp.argmax(output.logits, axis=-1).astype(jnp.int32), "q_halt": output.q[:, 0]}

    if evaluation.trajectories == 1:
      return rollout(None)
    every = jax.lax.map(rollout, jnp.arange(evaluation.trajectories))
    chosen = choose(every["q_halt"], every["predictions"], evaluation.choice)
    return {name: values[chosen, jnp.arange(len(chosen))] for name, values in every.items()}

  def capture(self, model: TRM, rows: Float[Array, "b w"] | None, carry: Carry, probe: Probe) -> dict[str, Any]:
    """One reasoning update on the carry; where calls have connections of their own, one by those of each call."""
    probed: dict[str, Any] = {}

    def visit(name: str, connection: Any, streams: Array) -> None:
      probed[name] = probe(connection, streams)

    x = model.embed(carry.data["inputs"], rows)
    for call in range(model.connections_of_its_own):
      named = visit if call == 0 else lambda name, *seen, call=call: visit(f"{name}.call{call}", *seen)
      model.look(carry.z_h, carry.z_l, model.injected(x), call, named)
    return probed

  def _latents(self, model: TRM, rows: int, length: int) -> Latents:
    return model.initial_latents(rows, length + model.model.puzzle.slots)
