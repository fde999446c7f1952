"""Latents of the same examples in two spaces, x (n, m) and y (n, k), with any share of the pairs known.

Both sides come from one .npz file with x and y, row by row a pair, or from two files with `latents` and `ids`, as
`jpmhc latents` writes them: rows with the same id are a pair. `labels` (n,) of the source, where there are some, go
along. Without a file: scikit-learn's digits as two random networks of 48 and 64 features see them.

Latents are taken around their mean, at mean squared length 1, both over the rows to train on. Of pairs that are not
known the rows of y stand in another order: what is left are two clouds.
"""

from collections.abc import Mapping
import pathlib
import zipfile
import zlib

import numpy as np

from jpmhc_jax.config.schema import Data, PairData
from jpmhc_jax.core.errors import ConfigError, DataError, require
from jpmhc_jax.core.reading import check_regular, memory_limit
from jpmhc_jax.data.arrays import ArrayDataset
from jpmhc_jax.data.registry import register_dataset

LEAST = 4  # rows of a cloud that can be split
VIEWS = (48, 64)  # features of the two random networks
_DAMAGE = (EOFError, ValueError, zipfile.BadZipFile, zlib.error)
Arrays = Mapping[str, np.ndarray]


@register_dataset("pairs")
def build_pairs(config: Data, *, batch_size: int, seed: int) -> ArrayDataset:
  """Arrays x, y, paired (1 for a known pair) and, where there are some, labels (classes from 0) of the source.

  Raises DataError for files that are not as described, ConfigError for fewer than batch_size rows to train on, or
  for a share of them that has no pair.
  """
  options = config.pairs
  x, y, labels = read_pairs(options)
  order = np.random.default_rng(0).permutation(len(x))
  held = max(2, round(options.held_out * len(x)))
  train, rest = order[held:], order[:held]
  require(len(train) >= batch_size, "batch_size", batch_size, f"at most {len(train)}, the rows to train on")
  x, y = (_standardised(name, rows, train) for name, rows in (("x", x), ("y", y)))
  known = round(options.known * len(train))
  words = f"0, or a share of the {len(train)} rows to train on that has a pair"
  require(known > 0 or options.known == 0, "data.pairs.known", options.known, words)
  partner = np.concatenate([train[:known], np.random.default_rng(1).permutation(train[known:])])
  paired = (np.arange(len(train)) < known).astype(np.float32)
  sides = {
    "train": {"x": x[train], "y": y[partner], "paired": paired},
    "evaluation": {"x": x[rest], "y": y[rest], "paired": np.ones(held, np.float32)},
  }
  if labels is not None:
    sides["train"]["labels"], sides["evaluation"]["labels"] = labels[train], labels[rest]
  notes = {"rows_to_train_on": len(train), "known_pairs": known}
  return ArrayDataset.of(
    sides["train"], sides["evaluation"], kind="pairs", batch_size=batch_size, seed=seed,
    epochs=config.epochs_per_interval, notes=notes,
  )  # fmt: skip


def read_pairs(fields: PairData) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """(x, y, labels or None), row by row a pair. Raises DataError for files that hold none."""
  if not fields.source:
    require(not fields.target, "data.pairs.target", fields.target, "data.pairs.source beside it, or neither")
    return digit_views()
  source = _read("data.pairs.source", fields.source)
  if not fields.target:
    if "latents" in source and "x" not in source:
      raise DataError(
        f"data.pairs.source={fields.source!r}: holds the latents of one side; expected data.pairs.target beside it, or "
        "a file with x and y"
      )
    x, y = _rows("data.pairs.source", source, "x"), _rows("data.pairs.source", source, "y")
    if len(x) != len(y):
      raise DataError(f"data.pairs.source: x has {len(x)} rows and y {len(y)}; expected pairs, row by row")
    return x, y, _labels(source, len(x))
  target = _read("data.pairs.target", fields.target)
  x = _rows("data.pairs.source", source, fields.source_array)
  y = _rows("data.pairs.target", target, fields.target_array)
  ours, theirs = _ids("data.pairs.source", source, len(x)), _ids("data.pairs.target", target, len(y))
  common, first, second = np.intersect1d(ours, theirs, return_indices=True)
  if len(common) < LEAST:
    raise DataError(f"data.pairs.target: {len(common)} ids are in both files; expected the same examples in both")
  labels = _labels(source, len(x))
  return x[first], y[second], None if labels is None else labels[first]


def digit_views() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The 1,797 digits of scikit-learn as two random networks see them, 48 and 64 features, and their classes."""
  try:
    from sklearn import datasets
  except ImportError as error:
    raise ConfigError(
      "data.pairs.source='': the digits are part of scikit-learn, which is not installed; pip install "
      "'jpmhc-jax[vision]', or name an .npz file"
    ) from error
  digits = datasets.load_digits()
  pixels = digits.images.reshape(len(digits.target), -1) / 16 - 0.3
  x, y = (_random_network(pixels, width, seed) for seed, width in enumerate(VIEWS))
  return x, y, digits.target.astype(np.int32)


def _random_network(rows: np.ndarray, width: int, seed: int) -> np.ndarray:
  rng = np.random.default_rng(seed)
  hidden = np.maximum(rows @ rng.normal(size=(rows.shape[1], 4 * width)) / rows.shape[1] ** 0.5, 0)
  return (hidden @ rng.normal(size=(4 * width, width)) / (4 * width) ** 0.5).astype(np.float32)


def _read(name: str, path: str) -> dict[str, np.ndarray]:
  try:
    check_regular(pathlib.Path(path), memory_limit())
    with np.load(path, allow_pickle=False) as file:
      return {each: file[each] for each in file.files}
  except OSError as error:
    raise DataError(
      f"{name}={path!r}: cannot be read ({error.strerror or error}); `jpmhc latents` writes such a file"
    ) from error
  except DataError as error:
    raise DataError(f"{name}={path!r}: {error}") from error
  except (TypeError, *_DAMAGE) as error:  # a lone .npy is no file that closes
    raise DataError(f"{name}={path!r}: is no .npz file of numbers, or is damaged") from error


def _rows(name: str, arrays: Arrays, array: str) -> np.ndarray:
  """Latents in float32; inputs of an encoder as they are."""
  if array not in arrays:
    raise DataError(f"{name}: the file holds {', '.join(arrays)}; expected an array {array!r}")
  rows = arrays[array]
  if array != "inputs" and rows.dtype.kind in "fiu":
    with np.errstate(over="ignore"):  # infinity is refused below
      rows = rows.astype(np.float32)
  if rows.ndim != 2 or len(rows) < LEAST or rows.dtype.kind not in "fiu":
    raise DataError(
      f"{name}: {array!r} is {rows.dtype} of shape {rows.shape}; expected numbers (n, d) with n of at least {LEAST}"
    )
  if not np.isfinite(rows).all():
    row = int(np.argwhere(~np.isfinite(rows))[0][0])
    raise DataError(f"{name}: {array!r} has values that are not finite, first in row {row}; expected numbers")
  return rows


def _ids(name: str, arrays: Arrays, rows: int) -> np.ndarray:
  ids = np.asarray(arrays.get("ids", np.arange(rows)))
  if ids.shape != (rows,) or len(np.unique(ids)) < rows:
    raise DataError(f"{name}: ids of shape {ids.shape}, {len(np.unique(ids))} different; expected one a row, ({rows},)")
  return ids


def _labels(arrays: Arrays, rows: int) -> np.ndarray | None:
  """Classes from 0, where the file has one whole number a row."""
  labels = np.asarray(arrays.get("labels", ()))
  if labels.shape not in ((rows,), (rows, 1)) or labels.dtype.kind not in "iu":
    return None
  return (labels.reshape(-1).astype(np.int64) - int(labels.min())).astype(np.int32)


def _standardised(name: str, rows: np.ndarray, train: np.ndarray) -> np.ndarray:
  if rows.dtype != np.float32:  # inputs of an encoder
    return rows
  rows = rows - rows[train].mean(axis=0)
  length = np.sqrt((rows[train] ** 2).sum(axis=1).mean())
  if not length > 0:
    raise DataError(f"data.pairs: all rows of {name} to train on are equal; expected a cloud of points")
  return rows / length
