"""A chart of a run's scalars for a notebook."""

import io

from matplotlib.figure import Figure

from jpmhc_jax.core.errors import ConfigError, nearest
from jpmhc_jax.reporting.workdir import Run, Series


class Chart(Figure):
  """A figure that a notebook shows without pyplot; `savefig` writes it to a file."""

  def _repr_svg_(self) -> str:
    image = io.StringIO()
    self.savefig(image, format="svg")
    return image.getvalue()


def curve(run: Run, name: str) -> Chart:
  """A scalar over the steps: of 'loss' what training and evaluation say of it, or one by its whole name.

  Raises ConfigError for a name that the run has not logged.
  """
  charts: dict[str, Series] = {
    whole: series
    for whole in (name, f"train/{name}", f"evaluation/{name}", f"evaluation/unaveraged/{name}")
    if (series := run.series.get(whole)) is not None
  }
  if not charts:
    known = {whole.removeprefix("train/").removeprefix("evaluation/") for whole in run.series}
    raise ConfigError(f"plot({name!r}): the run has logged no such scalar.{nearest(name, known)}")
  chart = Chart(figsize=(7, 3.5), layout="constrained")
  axes = chart.add_subplot()
  for whole, series in charts.items():
    few = series.values.size < 40
    axes.plot(series.steps, series.values, marker="o" if few else "", markersize=3, linewidth=1.3, label=whole)
  axes.set(xlabel="step", ylabel=name, title=run.name)
  axes.grid(alpha=0.3)
  axes.legend()
  return chart
