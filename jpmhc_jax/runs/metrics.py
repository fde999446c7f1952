"""The scalars of a run as a notebook shows them."""

import contextlib
import html
import importlib
from typing import Any

import numpy as np

from jpmhc_jax.reporting.workdir import Series


class Metrics(dict[str, Series]):
  """Every scalar of metrics.jsonl by name: a dict of series with `steps` and `values`, and a table of all of them."""

  @property
  def frame(self) -> Any:
    """One row a step, one column a name, NaN where nothing was logged.

    A pandas.DataFrame with the steps as its index where pandas is installed; else a NumPy structured array whose first
    field is `step`. Both give a column by its name.
    """
    steps = np.unique(np.concatenate([np.zeros(0), *(series.steps for series in self.values())])).astype(np.int64)
    columns = {name: np.full(steps.size, np.nan) for name in self}
    for name, series in self.items():
      columns[name][np.searchsorted(steps, series.steps)] = series.values
    with contextlib.suppress(ImportError):
      pandas = importlib.import_module("pandas")
      return pandas.DataFrame(columns, index=pandas.Index(steps, name="step"))
    table = np.zeros(steps.size, [("step", np.int64), *((name, np.float64) for name in columns)])
    table["step"] = steps
    for name, values in columns.items():
      table[name] = values
    return table

  def _repr_html_(self) -> str:
    rows = "".join(
      f"<tr><td>{html.escape(name)}</td><td>{series.values.size}</td><td>{int(series.steps[-1])}</td>"
      f"<td>{series.last():.6g}</td></tr>"
      for name, series in sorted(self.items())
    )
    return f"<table><tr><th>name</th><th>points</th><th>last step</th><th>last value</th></tr>{rows}</table>"
