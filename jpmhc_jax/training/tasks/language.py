"""The decoder language model as the trainer sees it: cross entropy of the next token, nothing carried but the batch.

A token is a byte, or what the data set's tokenizer makes; then batches say how many bytes the labels of a row are.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import require
from jpmhc_jax.core.examples import IGNORED
from jpmhc_jax.data import TokenDataset
from jpmhc_jax.data.text import TextDataset
from jpmhc_jax.models.losses import TOKEN_LOSSES
from jpmhc_jax.models.transformer import Decoder
from jpmhc_jax.training.tasks.base import Answer, Batch, register_task, token_model, TransformerPass

LONGEST, SHOWN = 32, 12  # tokens written on, which is as many forward passes; windows shown


def token_sums(logits: Float[Array, "b l vocab"], batch: Batch, loss: str) -> dict[str, Float[Array, "b"]]:
  """Per row, summed over its labels: nats (−log p of the token), tokens, bytes, right (argmax is the token)."""
  labels = batch["labels"]
  labelled = labels != IGNORED
  tokens = jnp.sum(labelled, axis=-1).astype(jnp.float32)
  return {
    "nats": jnp.sum(TOKEN_LOSSES[loss](logits, labels), axis=-1),
    "tokens": tokens,
    "bytes": batch.get("label_bytes", tokens),
    "right": jnp.sum(labelled & (jnp.argmax(logits, axis=-1) == labels), axis=-1).astype(jnp.float32),
  }


@register_task("decoder")
class NextByte(TransformerPass):
  """See `Task`. A row's loss is the mean over its tokens; evaluation weighs every token the same."""

  data_kinds = ("text",)
  per_example = ("nats", "tokens", "bytes", "right")
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
    """Means over the labels of each row: `loss` in nats, `byte_accuracy`, `bits_per_byte`."""
    sums = token_sums(model(batch["inputs"]), batch, config.model.loss)
    tokens, bits = jnp.maximum(sums["tokens"], 1.0), sums["nats"] / math.log(2)
    return {
      "loss": sums["nats"] / tokens,
      "byte_accuracy": sums["right"] / tokens,
      "bits_per_byte": bits / jnp.maximum(sums["bytes"], 1.0),
    }

  def predict(self, model: Decoder, rows: Float[Array, "b w"] | None, batch: Batch, config: schema.Config) -> Batch:
    """Also the likeliest token behind each position, `predictions` (b, l)."""
    logits = model(batch["inputs"])
    predictions = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return token_sums(logits, batch, config.model.loss) | {"predictions": predictions}

  def evaluation_metrics(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
    """A token: loss in nats, perplexity = e^loss, byte_accuracy (of bytes, where a token is one); bits_per_byte."""
    tokens = max(sums["tokens"], 1.0)
    loss = sums["nats"] / tokens
    return {
      "loss": loss,
      "bits_per_byte": sums["nats"] / max(sums["bytes"], 1.0) / math.log(2),
      "perplexity": math.exp(min(loss, 700.0)),
      "byte_accuracy": sums["right"] / tokens,
    }

  def samples(self, dataset: TextDataset, batch: Mapping[str, np.ndarray], answer: Answer) -> list[dict[str, Any]]:
    """Prompt, true continuation and the model's of the batch's first windows.

    The model sees all of a window but its last tokens (32, at most half) and always takes the likeliest next.
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
    read, given = dataset.decoded, batch["inputs"][:, :start]
    return [_continuation(int(batch["index"][row]), read, given[row], truth[row], written[row]) for row in rows]


def _continuation(
  index: int, read: Callable[[np.ndarray], str], prompt: np.ndarray, truth: np.ndarray, written: np.ndarray
) -> dict[str, Any]:
  truth = truth[truth != IGNORED]  # a document may end before its window
  written = written[: len(truth)]
  return {
    "kind": "text",
    "task": f"text {index}",
    "test": 0,
    "input": read(prompt),
    "truth": read(truth),
    "predictions": [{"text": read(written)}],
    "solved_at": 1 if np.array_equal(written, truth) else None,
  }
