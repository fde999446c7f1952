"""Latents of a trained model's examples at one of its connections, or in a map's spaces, with ids and labels."""

from collections.abc import Iterator
import io
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from jpmhc_jax.core.files import storing, write_atomically
from jpmhc_jax.data import Dataset
from jpmhc_jax.training import mesh as meshes
from jpmhc_jax.training.encoders import encoded
from jpmhc_jax.training.state import Setup, TrainState

Part = tuple[dict[str, np.ndarray], np.ndarray]  # a batch, and the ids of its rows


def latents(
  setup: Setup, dataset: Dataset, state: TrainState, layer: str, *, train: bool = False
) -> dict[str, np.ndarray]:
  """`latents` (n, d) float32, `ids` (n,), and `inputs` and `labels` where the examples have some, as they are learnt:
  classes of pictures from 1.

  Held-out examples have the ids 0, 1, …; with `train` the training examples, each as it is before augmentation, follow.
  Raises ConfigError for a layer that the model lacks, UserError for a model without connections.
  """

  def capture(params: Any, buffers: Any, table: Any, batch: dict[str, Array]) -> Array:
    return encoded(setup.task, setup.model(params, buffers), setup.rows(table, batch), batch, layer)

  captured = jax.jit(meshes.on_mesh(setup.mesh, capture))
  size = setup.config.evaluation.batch_size or setup.config.batch_size
  parts: dict[str, list[np.ndarray]] = {}
  for batch, ids in (*_held_out(dataset, size), *(_learnt(dataset, size) if train else ())):
    # The last batch is padded with zeros to the size of the others: one program serves all.
    padded = {name: jnp.asarray(_padded(values, size)) for name, values in batch.items()}
    rows = np.asarray(captured(state.evaluated, state.buffers, state.table, padded))[: len(ids)]
    answered = {name: batch[name] for name in ("inputs", "labels") if name in batch}
    for name, values in ({"latents": rows, "ids": ids} | answered).items():
      parts.setdefault(name, []).append(values)
  arrays = {name: np.concatenate(values) for name, values in parts.items()}
  if (labels := arrays.get("labels")) is not None and labels.shape[1:] == (1,):
    arrays["labels"] = labels[:, 0]
  return arrays


def _held_out(dataset: Dataset, size: int) -> Iterator[Part]:
  for batch in dataset.evaluation_batches(size):
    valid = batch["valid"]
    yield {name: v[valid] for name, v in batch.items() if name not in ("valid", "index")}, batch["index"][valid]


def _learnt(dataset: Any, size: int) -> Iterator[Part]:
  """The first example of every group of the training split."""
  first, offset = dataset.train.group_starts[:-1], dataset.coverage().held_out
  for start in range(0, len(first), size):
    examples = first[start : start + size]
    yield dataset.read(dataset.train, examples), offset + start + np.arange(len(examples))


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
  return np.concatenate([values, np.zeros((rows - len(values), *values.shape[1:]), values.dtype)])


def write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """The arrays as an .npz file, whole or not at all. Raises StorageError where it cannot be written."""
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)  # type: ignore[arg-type]
  with storing(str(path)):
    write_atomically(path, buffer.getvalue())
