"""The decoder language model as the trainer sees it: cross entropy of the next byte, nothing carried but the batch."""

from collections.abc import Mapping
import math
from typing import Any

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import require
from jpmhc_jax.core.examples import IGNORED, PAD
from jpmhc_jax.data import TokenDataset
from jpmhc_jax.models.losses import TOKEN_LOSSES
from jpmhc_jax.models.transformer import Decoder
from jpmhc_jax.training.tasks.base import Answer, Batch, register_task, token_model, TransformerPass

LONGEST, SHOWN = 32, 12  # bytes written on, which is as many forward passes; windows shown


def byte_sums(logits: Float[Array, "b l vocab"], labels: Int[Array, "b l"], loss: str) -> dict[str, Float[Array, "b"]]:
  """Per row, summed over its labelled positions: nats (−log p of the byte), bytes, right (argmax is the byte)."""
  labelled = labels != IGNORED
  return {
    "nats": jnp.sum(TOKEN_LOSSES[loss](logits, labels), axis=-1),
    "bytes": jnp.sum(labelled, axis=-1).astype(jnp.float32),
    "right": jnp.sum(labelled & (jnp.argmax(logits, axis=-1) == labels), axis=-1).astype(jnp.float32),
  }


@register_task("decoder")
class NextByte(TransformerPass):
  """See `Task`. A row's loss is the mean over its bytes; evaluation weighs every byte the same."""

  data_kinds = ("text",)
  per_example = ("nats", "bytes", "right")
  main_metric = "bits_per_byte"

  def check(self, config: schema.Config) -> None:
    """Also raises ConfigError for a token mixer that is not causal."""
    super().check(config)
    mixer = config.model.token_mixer
    require(mixer == "attention", "model.token_mixer", mixer, "'attention', which is causal")

  def build(self, config: schema.Config, dataset: TokenDataset, rngs: nnx.Rngs) -> Decoder:
    """A `Decoder` for the data set's vocabulary."""
    return token_model(Decoder, config, dataset, rngs)

  def losses(self, model: Decoder, batch: Batch, config: schema.Config) -> dict[str, Float[Array, "b"]]:
    """Means over the labelled bytes of each row: `loss` in nats, `byte_accuracy`."""
    sums = byte_sums(model(batch["inputs"]), batch["labels"], config.model.loss)
    divisor = jnp.maximum(sums["bytes"], 1.0)
    return {"loss": sums["nats"] / divisor, "byte_accuracy": sums["right"] / divisor}

  def summarise(self, sums: dict[str, float], rows: int) -> dict[str, float]:
    """Also `bits_per_byte`, loss / ln 2."""
    means = super().summarise(sums, rows)
    return means | {"bits_per_byte": means["loss"] / math.log(2)}

  def predict(self, model: Decoder, rows: Float[Array, "b w"] | None, batch: Batch, config: schema.Config) -> Batch:
    """Also the likeliest byte behind each position, `predictions` (b, l)."""
    logits = model(batch["inputs"])
    predictions = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return byte_sums(logits, batch["labels"], config.model.loss) | {"predictions": predictions}

  def evaluation_metrics(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
    """Per byte: loss in nats, bits_per_byte = loss / ln 2, perplexity = e^loss, byte_accuracy."""
    loss = sums["nats"] / max(sums["bytes"], 1.0)
    return {
      "loss": loss,
      "bits_per_byte": loss / math.log(2),
      "perplexity": math.exp(min(loss, 700.0)),
      "byte_accuracy": sums["right"] / max(sums["bytes"], 1.0),
    }

  def samples(self, batch: Mapping[str, np.ndarray], answer: Answer) -> list[dict[str, Any]]:
    """Prompt, true continuation and the model's of the batch's first windows.

    The model sees all of a window but its last bytes (32, at most half) and always takes the likeliest next byte.
    """
    inputs, length = batch["inputs"].copy(), batch["inputs"].shape[1]
    count = min(LONGEST, length // 2)
    start = length - count
    written = np.zeros((len(inputs), count), np.int32)
    for i in range(count):
      written[:, i] = answer({**batch, "inputs": inputs})[:, start - 1 + i]
      inputs[:, start + i] = written[:, i]
    truth = batch["labels"][:, start - 1 : -1]
    rows = np.flatnonzero(batch["valid"] & (truth[:, 0] != IGNORED))[:SHOWN]
    return [
      _continuation(int(batch["index"][row]), batch["inputs"][row, :start], truth[row], written[row]) for row in rows
    ]


def _continuation(index: int, prompt: np.ndarray, truth: np.ndarray, written: np.ndarray) -> dict[str, Any]:
  truth = truth[truth != IGNORED]  # a file may end before its window
  written = written[: len(truth)]
  return {
    "kind": "text",
    "task": f"text {index}",
    "test": 0,
    "input": _text(prompt),
    "truth": _text(truth),
    "predictions": [{"text": _text(written)}],
    "solved_at": 1 if np.array_equal(written, truth) else None,
  }


def _text(tokens: Int[np.ndarray, " s"]) -> str:
  """Bytes as text; the byte in front of a file is left out, halves of characters become U+FFFD."""
  return bytes(tokens[tokens != PAD].astype(np.uint8)).decode("utf-8", "replace")
