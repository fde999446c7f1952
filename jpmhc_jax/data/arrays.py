"""Examples that lie in memory as arrays of any shape and dtype: the shortest way to a data set of one's own."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from jpmhc_jax.core.errors import DataError, nearest
from jpmhc_jax.data.batches import BatchPlan, Split
from jpmhc_jax.data.dataset import Batch, digest, ExampleDataset

_RESERVED = ("valid", "index")  # what an evaluation batch has beside the arrays
_NARROWER: dict[str, Any] = {"f": np.float32, "i": np.int32, "u": np.uint32}  # of 64 bits or more
_SHOWN = 16  # numbers of an array in the report


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayDataset(ExampleDataset):
  """Batches are rows of the arrays, every example once an epoch in random order; made by `of`.

  >>> x = np.linspace(0, 1, 10)[:, None]
  >>> train, held = {"x": x, "y": 2 * x}, {"x": x[:2], "y": 2 * x[:2]}
  >>> data = jp.ArrayDataset.of(train, held, kind="lines", batch_size=4, seed=0)
  >>> data.batch(7)["x"].shape, data.evaluation_batches(4)[0]["valid"].tolist()
  ((4, 1), [True, True, False, False])
  """

  @classmethod
  def of(
    cls,
    train: Mapping[str, np.ndarray],
    evaluation: Mapping[str, np.ndarray],
    *,
    kind: str,
    batch_size: int,
    seed: int,
    epochs: int = 100,
    notes: Mapping[str, Any] | None = None,
  ) -> "ArrayDataset":
    """A data set of arrays by name, (examples, …): the same names, dtypes and shapes of a row on both sides.

    Numbers of 64 bits become such of 32. epochs: of one plan, whose last partial batch is dropped. Raises DataError for
    arrays that do not fit together, ConfigError for fewer than batch_size examples in a plan.
    """
    sides = {"train": _checked("train", train), "evaluation": _checked("evaluation", evaluation)}
    _check_alike(*sides.values())
    learnt, held = (Split.of_singles(len(next(iter(side.values()))), Take(side)) for side in sides.values())
    plan = BatchPlan(learnt, batch_size=batch_size, seed=seed, epochs=epochs)
    parts = (
      part for side in sides.values() for name, array in side.items() for part in (name, str(array.dtype), array)
    )
    return cls(kind=kind, train=learnt, evaluation=held, plan=plan, content=digest(kind, *parts), notes=notes or {})

  def example(self, batch: Batch, result: Mapping[str, np.ndarray], row: int) -> dict[str, Any] | None:
    """The numbers of the row, beside those that the task predicts."""
    given = {name: _shown(values[row]) for name, values in batch.items() if name not in _RESERVED}
    answers = [{"values": _shown(result["predictions"][row])}] if "predictions" in result else []
    name = f"{self.kind} {int(batch['index'][row])}"
    return {"kind": "values", "task": name, "test": 0, "input": given, "predictions": answers}


@dataclasses.dataclass(frozen=True)
class Take:
  """Rows of the arrays by number."""

  arrays: Mapping[str, np.ndarray]

  def __call__(self, examples: np.ndarray) -> Batch:
    return {name: array[examples] for name, array in self.arrays.items()}


def _checked(side: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  if not isinstance(arrays, Mapping) or not arrays:
    raise DataError(f"{side}={arrays!r}: expected arrays by name, such as {{'x': x, 'y': y}}")
  checked = {name: np.asarray(array) for name, array in arrays.items()}
  for name, array in checked.items():
    if name in _RESERVED:
      raise DataError(f"{side}[{name!r}]: the evaluation has an array of that name; expected another name")
    if array.dtype.kind not in "fiub":
      raise DataError(f"{side}[{name!r}] holds {array.dtype}; expected numbers or truth values")
    if not array.ndim or not len(array):
      raise DataError(f"{side}[{name!r}] has the shape {array.shape}; expected (examples, …) with at least one example")
  lengths = {name: len(array) for name, array in checked.items()}
  if len(set(lengths.values())) > 1:
    raise DataError(f"{side}: arrays of {lengths} examples; expected as many in each")
  return {name: _narrowed(f"{side}[{name!r}]", array) for name, array in checked.items()}


def _narrowed(name: str, array: np.ndarray) -> np.ndarray:
  """The array in a dtype that JAX has by default."""
  narrow = _NARROWER.get(array.dtype.kind)
  if narrow is None or array.dtype.itemsize <= np.dtype(narrow).itemsize:
    return array
  if array.dtype.kind in "iu":
    limits = np.iinfo(narrow)
    if array.min() < limits.min or array.max() > limits.max:
      raise DataError(f"{name} holds {array.min()} to {array.max()}; expected numbers of 32 bits")
  return array.astype(narrow)


def _check_alike(train: Mapping[str, np.ndarray], evaluation: Mapping[str, np.ndarray]) -> None:
  for name in (*train, *evaluation):
    if name not in train or name not in evaluation:
      side, other = ("train", evaluation) if name in train else ("evaluation", train)
      raise DataError(f"{side}[{name!r}]: the other side has no such array.{nearest(name, other)}")
    ours, theirs = ((array.dtype, array.shape[1:]) for array in (train[name], evaluation[name]))
    if ours != theirs:
      raise DataError(
        f"{name!r}: rows of {ours[0]}{list(ours[1])} to train on and of {theirs[0]}{list(theirs[1])} held out; "
        "expected one dtype and shape"
      )


def _shown(values: Any) -> list[float]:
  return np.ravel(np.asarray(values, np.float64))[:_SHOWN].tolist()
