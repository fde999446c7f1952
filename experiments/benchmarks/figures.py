"""Draws the results of the benchmarks: for every JSON that it knows in a folder a picture of the same name.

python -m experiments.benchmarks.figures [FOLDER]
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
import json
import pathlib
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from jpmhc_jax.core import arguments

RESULTS = pathlib.Path(__file__).with_name("results")
Rows = Sequence[Mapping[str, Any]]


def block(axes: Sequence[Axes], results: Mapping[str, Any]) -> None:
  """Roofline of the parts, blocks beside the package, and how a block grows with n, d and tokens.

  A section that the run left out (`--sections`, or no package to lie beside) is an empty panel that says so.
  """
  panels = {"roofline": _roofline, "beside_peers": _beside_peers, "scaling": _scaling}
  for axis, (section, fill) in zip(axes, panels.items(), strict=True):
    if section in results:
      fill(axis, results[section])
    else:
      axis.set_axis_off()
      axis.set_title(f"{section}: not measured in this run")


def step(axes: Sequence[Axes], results: Mapping[str, Any]) -> None:
  """Time and temporaries of the training step."""
  names = [f"{row['network']} (×{row['ratio_to_plain']:.2f})" for row in results["rows"]]
  _bars(axes[0], names, [row["step_ms"] for row in results["rows"]], "ms a training step")
  _bars(axes[1], names, [row["temporary_MiB"] for row in results["rows"]], "MiB of temporaries")


def mixers(axes: Sequence[Axes], results: Mapping[str, Any]) -> None:
  """Every family's projection over Cayley's, n = 4 and n = 8, and the package's blocks over ours."""
  for axis, (title, rows) in zip(axes, results["projections"].items(), strict=False):
    rows = sorted(rows, key=lambda row: row["forward_backward_over_cayley"])
    ratios = [row["forward_backward_over_cayley"] for row in rows]
    _bars(axis, [row["name"] for row in rows], ratios, f"{title}: projection, forward and backward, over Cayley's")
    axis.axvline(3, color="0.4", linestyle="--")
  pairs = [
    (f"{row['name']}, {kind}, {title}", row[f"{kind}_over_ours"])
    for title, rows in results["peers"].items()
    for row in rows
    for kind in ("eager", "compiled")
    if f"{kind}_over_ours" in row and "projection" not in title
  ]
  _bars(axes[2], *zip(*pairs, strict=True), "hyper-connections (PyTorch) over ours")
  axes[2].axvline(3, color="0.4", linestyle="--")


def remat(axes: Sequence[Axes], results: Mapping[str, Any]) -> None:
  """Memory against time of every rematerialisation policy."""
  for axis, network in zip(axes, ("trm", "decoder"), strict=True):
    rows = [row for row in results["rows"] if row["network"] == network]
    for row in rows:
      axis.plot(row["temporary_MiB"], row["ratio_to_none"], "o", color="C0")
    _labels(axis, [(row["temporary_MiB"], row["ratio_to_none"], row["policy"]) for row in rows])
    axis.set(xlabel="MiB of temporaries", ylabel="step, over that without a policy", title=network)
    axis.margins(0.2)


def growth(axes: Sequence[Axes], results: Mapping[str, Any]) -> None:
  """Compile time and temporaries as recursions and layers grow."""
  rows = results["rows"]
  lines = {
    "cycles T (TRM, n = 4)": [(row["T"], row) for row in rows if row.get("n") == 4],
    "updates n (TRM, T = 3)": [(row["n"], row) for row in rows if row.get("T") == 3],
    "layers (decoder)": [(row["layers"], row) for row in rows if "layers" in row],
  }
  for axis, key, label in (
    (axes[0], "compile_s", "seconds to compile"),
    (axes[1], "temporary_MiB", "MiB of temporaries"),
  ):
    for name, line in lines.items():
      line = sorted(line, key=lambda point: point[0])
      axis.semilogx([x for x, _ in line], [row[key] for _, row in line], "o-", base=2, label=name)
    axis.set(xlabel="how many", ylabel=label)
    axis.set_ylim(bottom=0)
    axis.legend()


FIGURES: dict[str, tuple[int, Callable[[Sequence[Axes], Mapping[str, Any]], None]]] = {
  "block": (3, block),
  "step": (2, step),
  "mixers": (3, mixers),
  "remat": (2, remat),
  "growth": (2, growth),
}


def _roofline(axis: Axes, rows: Rows) -> None:
  """Milliseconds of each part over the megabytes it must move, and the copy's line."""
  rows = [row for row in rows if row["d"] == 128]
  copy = next(row for row in rows if row["part"] == "copy")
  largest = max(row["MB"] for row in rows) * 1.2
  axis.plot([0, largest], [0, largest * copy["ms"] / copy["MB"]], color="0.5", label="a copy, in the same rounds")
  parts = [row for row in rows if row["part"] != "copy"]
  for row in parts:
    axis.plot(row["MB"], row["ms"], "o", color="C0")
  _labels(axis, [(row["MB"], row["ms"], f"{row['part']} ({row['of_copy']:.0%})") for row in parts])
  axis.set(xlabel="MB that must move", ylabel="ms", xlim=(0, largest), ylim=(0, 1.2 * max(row["ms"] for row in rows)))
  axis.set_title(f"{copy['tokens']:,} tokens, n = {copy['n']}, d = {copy['d']}: share of the copy's bandwidth")
  axis.legend(loc="upper left")


def _beside_peers(axis: Axes, rows: Rows) -> None:
  rows = [row for row in rows if row["d"] == 128]
  _bars(axis, [row["block"] for row in rows], [row["ms"] for row in rows], "ms, forward and backward, d = 128")


def _scaling(axis: Axes, rows: Rows) -> None:
  start = {**rows[0], "n": 4}
  for name in ("n", "d", "tokens"):
    others = {"n", "d", "tokens"} - {name}
    line = sorted((row[name], row["ms"]) for row in rows if all(row[o] == start[o] for o in others))
    axis.loglog(*zip(*line, strict=True), "o-", label=name)
  axis.set(xlabel=f"value; the others stay at n = 4, d = {start['d']}, {start['tokens']:,} tokens", ylabel="ms")
  axis.legend()


def _labels(axis: Axes, points: Iterable[tuple[float, float, str]]) -> None:
  points = list(points)
  middle = (min(x for x, _, _ in points) + max(x for x, _, _ in points)) / 2
  for x, y, text in points:
    left, side = (5, "left") if x < middle else (-5, "right")
    axis.annotate(text, (x, y), xytext=(left, 3), textcoords="offset points", fontsize=8, ha=side)


def _bars(axis: Axes, names: Sequence[str], values: Sequence[float], label: str) -> None:
  axis.barh(range(len(names)), values, color="C0")
  axis.set_yticks(range(len(names)), names, fontsize=8)
  axis.invert_yaxis()
  for row, value in enumerate(values):
    text = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    axis.annotate(text, (value, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
  axis.set_xlabel(label)
  axis.margins(x=0.12)


def draw(name: str, results: Mapping[str, Any], path: pathlib.Path) -> None:
  """The picture of one benchmark's results, a key of FIGURES."""
  count, fill = FIGURES[name]
  figure, axes = pyplot.subplots(1, count, figsize=(6.4 * count, 5), squeeze=False)
  fill(axes[0], results)
  for axis in axes[0]:
    axis.spines[["top", "right"]].set_visible(False)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder", nargs="?", type=arguments.path, default=RESULTS)
  for path in sorted(parser.parse_args().folder.glob("*.json")):
    name = path.stem.partition("_")[0]
    if name in FIGURES:
      draw(name, json.loads(path.read_text()), path.with_suffix(".png"))
      print(path.with_suffix(".png"))


if __name__ == "__main__":
  main()
