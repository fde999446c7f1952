"""jpmhc figures: the charts and tables of a report as files for a paper."""

import argparse
import dataclasses

from jpmhc_jax.core import arguments


@dataclasses.dataclass(frozen=True)
class Figures:
  """The command `jpmhc figures`."""

  name: str = "figures"
  help: str = "Write the charts of runs as PDF, SVG or PNG, and their tables as CSV and LaTeX."
  takes_overrides: bool = False
  computes: bool = False

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("paths", nargs="+", type=arguments.stored, metavar="WORKDIR", help="folders of runs or sweeps")
    parser.add_argument("--format", choices=("pdf", "svg", "png"), default="pdf", help="of the charts; default pdf")
    parser.add_argument(
      "--width", type=arguments.number(1, 20), default=3.25, help="of a chart in inches; default 3.25, one column"
    )
    parser.add_argument(
      "--out", type=arguments.stored, default=None, metavar="DIR", help="folder to write; default figures/ in the first"
    )

  def run(self, options: argparse.Namespace) -> int:
    """Writes the files and prints their folder; 0."""
    from jpmhc_jax.reporting.figures import write_figures
    from jpmhc_jax.reporting.report import runs_of

    out = options.out or options.paths[0] / "figures"
    runs, _ = runs_of(options.paths)
    files = write_figures(runs, out, options.format, options.width)
    print(f"figures: {len(files)} files in {out}")
    return 0
