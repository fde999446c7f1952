"""Loss and metrics of one supervision step, as pure functions of parameters, puzzle rows and carry."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jpmhc_jax.config import schema
from jpmhc_jax.models.deep_supervision import Carry, halt
from jpmhc_jax.models.losses import binary_cross_entropy, IGNORED, TOKEN_LOSSES
from jpmhc_jax.models.trm import Output, TRM

HALT_WEIGHT = 0.5

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
