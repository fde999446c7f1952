"""What a learned choice between mixer families chose, connection by connection."""

from collections.abc import Sequence

import numpy as np

from jpmhc_jax.reporting import curves, markup
from jpmhc_jax.reporting.charts import Chart
from jpmhc_jax.reporting.lines import Line
from jpmhc_jax.reporting.markup import Cell, Markup, number, tag
from jpmhc_jax.reporting.workdir import Run, Series

PREFIX = "choice/"


def is_weight(diagnostic: str) -> bool:
  """True for the weights that `mixer/<connection>/choice/<family>` records."""
  return diagnostic.startswith(PREFIX)


def weights(run: Run) -> dict[str, dict[str, Series]]:
  """Connection -> family -> its weight over training; empty for a run without a choice."""
  connections: dict[str, dict[str, Series]] = {connection: {} for connection in curves.mixer_depths(run)}
  for connection, diagnostic, name in curves.mixer_names(run):
    if is_weight(diagnostic):
      connections[connection][diagnostic.removeprefix(PREFIX)] = run.series[name]
  return {connection: families for connection, families in connections.items() if families}


def charts(run: Run) -> list[Chart]:
  """The weights over training, one chart a connection; none for a run without a choice."""
  return [
    Chart(
      f"Weights in {connection}",
      [Line(family, series.steps, series.values, i) for i, (family, series) in enumerate(families.items())],
      about="Of the families that are blended: at 100 % the choice is made.",
      percent=True,
    )
    for connection, families in weights(run).items()
  ]


def table(run: Run) -> Markup | None:
  """What was chosen in each connection, and when; None for a run without a choice."""
  rows = []
  for connection, families in weights(run).items():
    family, weight = _leader(families)
    steps = families[family].steps[families[family].values == 1.0]
    decided = number(float(steps[0])) if weight == 1.0 else Cell("not decided yet", class_="number missing")
    rows.append([Cell(connection), Cell(family), number(weight, percent=True), decided])
  header = ["connection", "family", "weight", "decided at step"]
  return markup.table("Chosen family", header, rows, class_="sortable") if rows else None


def comparison(runs: Sequence[Run]) -> Markup | None:
  """What each run chose: how many of its connections take each family; None without a choice."""
  chosen = [(run, connections) for run in runs if (connections := weights(run))]
  if not chosen:
    return None
  families = list(dict.fromkeys(family for _, of_run in chosen for each in of_run.values() for family in each))
  rows = []
  for run, connections in chosen:
    picks = [_leader(each)[0] for each in connections.values()]
    link = tag("a", run.name, href=f"#run-{run.anchor}")
    rows.append([Cell(link, run.name), *(number(picks.count(family)) for family in families)])
  return markup.table("Connections that chose each family", ["run", *families], rows, class_="sortable")


def _leader(families: dict[str, Series]) -> tuple[str, float]:
  names, last = list(families), [series.last() for series in families.values()]
  best = int(np.argmax(last))
  return names[best], last[best]
